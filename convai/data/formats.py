"""Dialogs into the PersonaChat form: from JSON and CSV (json_text.py) or ParlAI text (parlai_text.py), one file or a
train and valid pair, and from tables (tables.py). What they may hold is in schema.py, which layouts of rows in rows.py.

All readers return `{"train": dialogs, "valid": dialogs}`. A dialog is `{"personality": [sentence, ...], "utterances":
[{"history": [turn, ...], "candidates": [distractor, ..., gold reply]}, ...]}`; example_entry.py explains each key.
"""

import hashlib
import logging
import os
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convai.data import example_world
from convai.data.compressed import has_ending, open_checked, read_data_text
from convai.data.json_text import parse_csv, parse_json
from convai.data.parlai_text import parse_parlai
from convai.data.reading import AS_BY_DEFAULT, Reading
from convai.data.schema import PART_NAMES
from convai.data.sides import held_out_together
from convai.data.tables import HUB_PREFIX, INSTALL_DATASETS, Tables, holds_parquet
from convai.data.weighted import EXAMPLE, PERSONACHAT, weighted_sources
from convai.errors import UserError, argument
from convai.io.download import fetch, is_url
from convai.options import ReadingOptions

PERSONACHAT_URL = "https://s3.amazonaws.com/datasets.huggingface.co/personachat/personachat_self_original.json"
SPLITS = ("train", "valid")
HELD_OUT_SHARE = 0.05
# The data's own seed: which dialogs are held out must not change with --seed, or runs could not be compared.
DATA_SEED = 42

Dialog = dict[str, Any]
PartDialog = tuple[str, Dialog | None]  # the name of a part and a dialog of it; None where there is such a part at all

logger = logging.getLogger(__name__)


class Source(ABC):
    """Where dialogs come from."""

    @abstractmethod
    def digest(self) -> str:
        """Return a hash that changes when the data do."""

    @abstractmethod
    def splits(self) -> dict[str, list[Dialog]]:
        """Return the dialogs that are there under "train", "valid" and "test", or under "" where no part is named."""

    @abstractmethod
    def place_of(self, split: str) -> str:
        """Return the file, folder or name of a split, for messages."""

    def stream(self) -> Iterator[PartDialog]:
        """Yield (part, None) for each part of the data, then (part, dialog) for its dialogs."""
        for part, dialogs in self.splits().items():
            yield part, None
            yield from ((part, dialog) for dialog in dialogs)

    def load(self, split_needed: bool = True) -> dict[str, list[Dialog]]:
        """Return both splits, checked, a part of the dialogs held out where there is no valid; raises UserError.

        Where no split is needed, "valid" may be empty: a lone dialog is all in "train".
        """
        splits = _with_held_out(self.place_of("train"), self.splits(), split_needed)
        for name, dialogs in splits.items():
            if not dialogs and (split_needed or name == "train"):
                raise UserError(f"{self.place_of(name)}: the {name} split is empty; it needs at least one dialog.")
        return splits


class ExampleSource(Source):
    """The embedded example set (`--dataset_path example`)."""

    def digest(self) -> str:
        return hashlib.sha256(Path(example_world.__file__).read_bytes()).hexdigest()

    def splits(self) -> dict[str, list[Dialog]]:
        return example_world.example_dataset()

    def place_of(self, split: str) -> str:
        return "the example set"


class FileSource(Source):
    """One file with both splits or of which a part is held out, or one file for each split."""

    def __init__(self, paths: list[Path], options: ReadingOptions = AS_BY_DEFAULT):
        self.paths = paths
        self.options = options

    def digest(self) -> str:
        """Return a hash over the bytes of the files and their roles."""
        total = hashlib.sha256()
        for path in self.paths:
            with open_checked(path) as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()

    def splits(self) -> dict[str, list[Dialog]]:
        if len(self.paths) == 2:
            return {name: _only_split(path, name, self.options) for name, path in zip(SPLITS, self.paths, strict=True)}
        return read_splits(self.paths[0], self.options)

    def place_of(self, split: str) -> str:
        return str(self.paths[SPLITS.index(split) if len(self.paths) == 2 else 0])


class TableSource(Source):
    """A data set on the hub or a folder of .parquet files."""

    def __init__(self, dataset_path: str, options: ReadingOptions = AS_BY_DEFAULT):
        self.tables = Tables(dataset_path, options)

    def digest(self) -> str:
        return self.tables.digest()

    def splits(self) -> dict[str, list[Dialog]]:
        return self.tables.dialogs()

    def place_of(self, split: str) -> str:
        return self.tables.name


class MixtureSource(Source):
    """Several sources, the dialogs of each split one source after the other; weights are for training alone."""

    def __init__(self, dataset_path: str, sources: list[Source]):
        self.name = dataset_path
        self.sources = sources

    def digest(self) -> str:
        return hashlib.sha256(" ".join(source.digest() for source in self.sources).encode()).hexdigest()

    def splits(self) -> dict[str, list[Dialog]]:
        return self.load()

    def place_of(self, split: str) -> str:
        return self.name

    def load(self, split_needed: bool = True) -> dict[str, list[Dialog]]:
        """Return both splits, each source's own: one without a valid part holds some of its dialogs out."""
        loaded = [source.load(split_needed) for source in self.sources]
        return {name: [dialog for splits in loaded for dialog in splits[name]] for name in SPLITS}


def other_ways() -> str:
    """Return what can be done where PersonaChat cannot be downloaded."""
    path = argument("dataset_path")
    return (
        f"Two ways out: {path} hub:AlekseyKorshuk/persona-chat reads a copy on the Hugging Face hub (needs "
        f"`{INSTALL_DATASETS}`), and {path} FILE a local one. Without either: {path} example."
    )


def find_source(dataset_path: str, options: ReadingOptions = AS_BY_DEFAULT) -> Source:
    """Return where `--dataset_path` points, downloading URLs: "" is PersonaChat, "example" the embedded set.

    Otherwise a file, a URL, a folder with one train* and one valid* file or with .parquet files, TRAIN,VALID (files or
    URLs), hub:OWNER/NAME, or several of these (see weighted.py). `options` say what is made of the rows there.
    """
    if several := weighted_sources(dataset_path):
        return MixtureSource(dataset_path, [find_source(source.path, options) for source in several])
    if dataset_path == EXAMPLE:
        return ExampleSource()
    if dataset_path in ("", PERSONACHAT) and not (dataset_path and os.path.exists(dataset_path)):
        return FileSource([fetch(PERSONACHAT_URL, advice=other_ways())], options)
    if dataset_path.startswith(HUB_PREFIX):
        return TableSource(dataset_path, options)
    path = os.path.expanduser(dataset_path)
    if os.path.isdir(path):
        if holds_parquet(path):
            return TableSource(path, options)
        return FileSource([_file_of_split(Path(path), split) for split in SPLITS], options)
    parts = [path] if os.path.exists(path) else [part.strip() for part in dataset_path.split(",")]
    if len(parts) > 2 or not all(parts):
        raise UserError(f"{argument('dataset_path')} {dataset_path}: give one file, or two as TRAIN,VALID.")
    return FileSource([_local(part) for part in parts], options)


def load_each_for_evaluation(
    dataset_path: str, options: ReadingOptions = AS_BY_DEFAULT
) -> list[tuple[list[Dialog], list[Dialog]]]:
    """Return what load_for_evaluation does for each source by itself."""
    sources = [source.path for source in weighted_sources(dataset_path)] or [dataset_path]
    return [load_for_evaluation(source, options) for source in sources]


def load_for_evaluation(
    dataset_path: str, options: ReadingOptions = AS_BY_DEFAULT
) -> tuple[list[Dialog], list[Dialog]]:
    """Return the dialogs to evaluate on, after those to learn from: the valid split, else test; or all, after none.

    Of several sources those of each are joined.
    """
    if weighted_sources(dataset_path):
        loaded = load_each_for_evaluation(dataset_path, options)
        train, valid = ([dialog for dialogs in part for dialog in dialogs] for part in zip(*loaded, strict=True))
        return train, valid
    splits = find_source(dataset_path, options).splits()
    chosen = next(name for name in ("valid", "test", "", "train") if name in splits)
    if chosen == "test":
        logger.info("%s has no valid split: its test split is evaluated", dataset_path)
    elif chosen == "valid" and "test" in splits:
        logger.info("%s: its valid split is evaluated, not its test split", dataset_path)
    if not splits[chosen]:
        raise UserError(
            f"{argument('dataset_path')} {dataset_path}: there are no dialogs to evaluate on; give another file."
        )
    return splits.get("train", []) if chosen in ("valid", "test") else [], splits[chosen]


def read_splits(path: Path, options: ReadingOptions = AS_BY_DEFAULT) -> dict[str, list[Dialog]]:
    """Read one file of any format; its splits by name, {"": dialogs} where the file names none."""
    text, reading = read_data_text(path), Reading(path, options)
    if has_ending(path, ".json") or text[:1000].lstrip().startswith(("{", "[")):
        splits = parse_json(text, path, reading)
    else:
        rows = parse_csv(text, path, reading)
        splits = {"": parse_parlai(text, path, reading)} if rows is None else rows
    reading.tell()
    return splits


def _local(path_or_url: str) -> Path:
    if is_url(path_or_url):
        return fetch(path_or_url, advice=f"Give {argument('dataset_path')} a local copy of it.")
    path = Path(os.path.expanduser(path_or_url))
    if not os.path.exists(path):
        raise UserError(f'{argument("dataset_path")}: there is no {path}; give a file, a folder, a URL, or "example".')
    if path.is_dir():
        raise UserError(f"{argument('dataset_path')}: {path} is a folder; within TRAIN,VALID give two files.")
    return path


def _file_of_split(folder: Path, split: str) -> Path:
    first, *others = PART_NAMES[split]
    # "train_self.txt" and "trainset.json", but of the shorter names no "values.csv" or "device.log".
    name = re.compile(f"{first}|(?:{'|'.join(others)})(?![a-z])", re.IGNORECASE)
    found = sorted(path for path in folder.iterdir() if name.match(path.name) and path.is_file())
    if len(found) == 1:
        return found[0]
    problem = f"{len(found)} files" if found else "no file"
    names = " or ".join([f"{first}*", *(f"{other}*" for other in others if not other.startswith(first))])
    raise UserError(f"{argument('dataset_path')}: {folder} has {problem} named {names}; name the pair as TRAIN,VALID.")


def _only_split(path: Path, split: str, options: ReadingOptions) -> list[Dialog]:
    """Return the dialogs of a file that stands for one split: its part of that name, or all it has."""
    splits = read_splits(path, options)
    if split not in splits and len(splits) > 1:
        raise UserError(f"{path}: it has the splits {', '.join(splits)}, but no {split}.")
    return splits[split] if split in splits else next(iter(splits.values()))


def _with_held_out(path: str, splits: dict[str, list[Dialog]], split_needed: bool) -> dict[str, list[Dialog]]:
    """Return train and valid; of a file that has no valid, 5 % of the dialogs are held out, drawn by seed."""
    if all(name in splits for name in SPLITS):
        return {name: splits[name] for name in SPLITS}
    if splits.keys() == {"test"}:
        raise UserError(f"{path}: it has a test part only, which is for evaluation; name it train to learn from it.")
    whole, dialogs = next((name, splits[name]) for name in ("train", "", "valid") if name in splits)
    if not dialogs:
        raise UserError(f"{path}: the train split is empty; it needs at least two dialogs.")
    conversations = held_out_together(dialogs)
    if len(conversations) == 1 and not split_needed:
        return {"train": dialogs, "valid": []}
    if len(conversations) < 2:
        raise UserError(f"{path}: a lone dialog cannot be split; give at least two, or TRAIN,VALID.")
    n_held_out = max(1, round(HELD_OUT_SHARE * len(conversations)))
    drawn = random.Random(DATA_SEED).sample(range(len(conversations)), n_held_out)
    held_out = {i for number in drawn for i in conversations[number]}
    missing = "train" if whole == "valid" else "valid"
    unused = "; its test split is not used" if "test" in splits else ""
    logger.info("%s has no %s split: %d of its %d dialogs are held out for valid%s", path, missing, len(held_out),
                len(dialogs), unused)  # fmt: skip
    return {
        "train": [dialog for i, dialog in enumerate(dialogs) if i not in held_out],
        "valid": [dialog for i, dialog in enumerate(dialogs) if i in held_out],
    }
