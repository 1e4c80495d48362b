"""Dialogs into the PersonaChat form: from JSON and CSV (json_text.py) or ParlAI text (parlai_text.py), one file or a
train and valid pair, and from tables (tables.py). What they may hold is in schema.py, which layouts of rows in rows.py.

All readers yield one dialog after the other with the name of its part. A dialog is `{"personality": [sentence, ...],
"utterances": [{"history": [turn, ...], "candidates": [distractor, ..., gold reply]}, ...]}`; example_entry.py explains
each key.
"""

import hashlib
import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path

from convai.data import example_world
from convai.data.compressed import ByteStream, Meter, has_ending
from convai.data.conversation import Dialog
from convai.data.digests import KnownDigests
from convai.data.held_out import SPLITS, Data, Plan, lone_part, plan_splits, with_held_out
from convai.data.json_text import header_of_csv, read_csv, read_json
from convai.data.parlai_text import read_parlai
from convai.data.reading import AS_BY_DEFAULT, Reading
from convai.data.schema import BYTE_ORDER_MARK, PART_NAMES, Strings
from convai.data.tables import HUB_PREFIX, INSTALL_DATASETS, Tables, holds_parquet
from convai.data.text_stream import lines_of_file
from convai.data.weighted import EXAMPLE, PERSONACHAT, weighted_sources
from convai.errors import UserError, argument
from convai.io.download import fetch, is_url
from convai.options import ReadingOptions

PERSONACHAT_URL = "https://s3.amazonaws.com/datasets.huggingface.co/personachat/personachat_self_original.json"

PartDialog = tuple[str, Dialog | None]  # the name of a part and a dialog of it; None where there is such a part at all

logger = logging.getLogger(__name__)


class Source(ABC):
    """Where dialogs come from."""

    def __init__(self) -> None:
        self.meter = Meter()  # how far the reading is

    @abstractmethod
    def digest(self, known: KnownDigests | None = None) -> str:
        """Return a hash that changes when the data do."""

    @abstractmethod
    def stream(self) -> Iterator[PartDialog]:
        """Yield (part, None) for each part of the data, then (part, dialog) for its dialogs; raises UserError.

        Parts are "train", "valid" and "test", or "" where none is named.
        """

    @abstractmethod
    def place_of(self, split: str) -> str:
        """Return the file, folder or name of a split, for messages."""

    def splits(self) -> dict[str, list[Dialog]]:
        """Return the dialogs that `stream` yields, by part, all in memory."""
        strings, splits = Strings(), dict[str, list[Dialog]]()
        for part, dialog in self.stream():
            dialogs = splits.setdefault(part, [])
            if dialog is not None:
                dialogs.append(_sharing(dialog, strings))
        return {part: splits[part] for part in ("", *PART_NAMES) if part in splits}

    def load(self, split_needed: bool = True) -> dict[str, list[Dialog]]:
        """Return both splits, checked, a part of the dialogs held out where there is no valid; raises UserError.

        Where no split is needed, "valid" may be empty: a lone dialog is all in "train".
        """
        splits = with_held_out(self.place_of("train"), self.splits(), split_needed)
        self._check_sizes({name: len(dialogs) for name, dialogs in splits.items()}, split_needed)
        return splits

    def data(self, split_needed: bool = True) -> Data:
        """Return what a store is built of, which has the splits that `load` returns."""

        def plan(n_dialogs: Mapping[str, int], n_conversations: int) -> Plan:
            n_lone = n_dialogs[lone_part(n_dialogs)] if set(n_dialogs) != {"test"} else 0
            found = plan_splits(self.place_of("train"), n_dialogs, n_lone, n_conversations, split_needed)
            if found.held_out is None:
                self._check_sizes(n_dialogs, split_needed)
            return found

        self.meter.done = 0
        return Data(self.place_of("train"), self.stream, plan, lambda: (self.meter.done, self.meter.total))

    def _check_sizes(self, n_dialogs: Mapping[str, int], split_needed: bool) -> None:
        for name in SPLITS:
            if not n_dialogs[name] and (split_needed or name == "train"):
                raise UserError(f"{self.place_of(name)}: the {name} split is empty; it needs at least one dialog.")


def _sharing(dialog: Dialog, strings: Strings) -> Dialog:
    """Have a dialog's lists hold the shared strings; return it."""
    for texts in [dialog["personality"], *(u[key] for u in dialog["utterances"] for key in ("history", "candidates"))]:
        texts[:] = [strings[text] for text in texts]
    return dialog


class ExampleSource(Source):
    """The embedded example set (`--dataset_path example`)."""

    def digest(self, known: KnownDigests | None = None) -> str:
        return hashlib.sha256(Path(example_world.__file__).read_bytes()).hexdigest()

    def stream(self) -> Iterator[PartDialog]:
        for part, dialogs in example_world.example_dataset().items():
            yield part, None
            yield from ((part, dialog) for dialog in dialogs)

    def place_of(self, split: str) -> str:
        return "the example set"


class FileSource(Source):
    """One file with both splits or of which a part is held out, or one file for each split."""

    def __init__(self, paths: list[Path], options: ReadingOptions = AS_BY_DEFAULT):
        self.paths = paths
        self.options = options
        self.meter = Meter(sum(path.stat().st_size for path in paths))

    def digest(self, known: KnownDigests | None = None) -> str:
        """Return a hash over the bytes of the files and their roles."""
        known = known or KnownDigests()
        return hashlib.sha256(b"".join(known.of(path) for path in self.paths)).hexdigest()

    def stream(self) -> Iterator[PartDialog]:
        if len(self.paths) == 1:
            yield from read_file(self.paths[0], self.options, self.meter)
            return
        for name, path in zip(SPLITS, self.paths, strict=True):
            yield from _only_split(path, name, self.options, self.meter)

    def place_of(self, split: str) -> str:
        return str(self.paths[SPLITS.index(split) if len(self.paths) == 2 else 0])


class TableSource(Source):
    """A data set on the hub or a folder of .parquet files."""

    def __init__(self, dataset_path: str, options: ReadingOptions = AS_BY_DEFAULT):
        super().__init__()
        self.tables = Tables(dataset_path, options)

    def digest(self, known: KnownDigests | None = None) -> str:
        return self.tables.digest(known or KnownDigests())

    def stream(self) -> Iterator[PartDialog]:
        yield from self.tables.dialogs(self.meter)

    def place_of(self, split: str) -> str:
        return self.tables.name


class MixtureSource(Source):
    """Several sources, the dialogs of each split one source after the other; weights are for training alone."""

    def __init__(self, dataset_path: str, sources: list[Source]):
        super().__init__()
        self.name = dataset_path
        self.sources = sources

    def digest(self, known: KnownDigests | None = None) -> str:
        return hashlib.sha256(" ".join(source.digest(known) for source in self.sources).encode()).hexdigest()

    def stream(self) -> Iterator[PartDialog]:
        """Yield as Source.stream does; which dialogs are held out is known when all are read."""
        for part, dialogs in self.load().items():
            yield part, None
            yield from ((part, dialog) for dialog in dialogs)

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
    return FileSource([path], options).splits()


def read_file(path: Path, options: ReadingOptions = AS_BY_DEFAULT, meter: Meter | None = None) -> Iterator[PartDialog]:
    """Read one file of any format; yield as Source.stream does."""
    reading = Reading(path, options, meter)
    if has_ending(path, ".json") or _beginning(path).startswith((b"{", b"[")):
        yield from read_json(path, reading)
    else:
        is_csv = header_of_csv(next((line for _, line in lines_of_file(path)), ""), path) is not None
        yield "", None
        yield from (("", dialog) for dialog in (read_csv if is_csv else read_parlai)(path, reading))
    reading.tell()


def _beginning(path: Path) -> bytes:
    stream = ByteStream(path)
    beginning = stream.read(1000)
    stream.close()
    return beginning.removeprefix(BYTE_ORDER_MARK.encode()).lstrip()


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


def _only_split(path: Path, split: str, options: ReadingOptions, meter: Meter) -> Iterator[PartDialog]:
    """Read a file that stands for one split: its part of that name, or all it has."""
    chosen = None
    for part, dialog in read_file(path, options, meter):
        if chosen is None:
            chosen = part
            if part not in (split, ""):
                parts = list(dict.fromkeys(name for name, _ in read_file(path, options)))
                if split not in parts and len(parts) > 1:
                    raise UserError(f"{path}: it has the splits {', '.join(parts)}, but no {split}.")
                chosen = split if split in parts else part
        if part == chosen:
            yield split, dialog
