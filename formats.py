"""Dialogs into the PersonaChat form: from JSON (plain or gzipped) or ParlAI text, one file or a train and valid pair,
and from tables (tables.py).

All readers return `{"train": dialogs, "valid": dialogs}`. A dialog is `{"personality": [sentence, ...], "utterances":
[{"history": [turn, ...], "candidates": [distractor, ..., gold reply]}, ...]}`; example_entry.py explains each key.
"""

import gzip
import hashlib
import json
import logging
import os
import random
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import example_world
from download import fetch, is_url
from errors import UserError
from same_reply import is_gold
from tables import HUB_PREFIX, INSTALL_DATASETS, Tables, holds_parquet

PERSONACHAT_URL = "https://s3.amazonaws.com/datasets.huggingface.co/personachat/personachat_self_original.json"
OTHER_WAYS = (
    "Two ways out: --dataset_path hub:AlekseyKorshuk/persona-chat reads a copy on the Hugging Face hub (needs "
    f"`{INSTALL_DATASETS}`), and --dataset_path FILE a local one. Without either: --dataset_path example."
)
SPLITS = ("train", "valid")
HELD_OUT_SHARE = 0.05
# The data's own seed: which dialogs are held out must not change with --seed, or runs could not be compared.
DATA_SEED = 42

Dialog = dict[str, Any]

logger = logging.getLogger(__name__)


class Source(ABC):
    """Where dialogs come from."""

    @abstractmethod
    def digest(self) -> str:
        """Return a hash that changes when the data do."""

    @abstractmethod
    def splits(self) -> dict[str, list[Dialog]]:
        """Return the dialogs that are there under "train" and "valid", or under "" where no split is named."""

    @abstractmethod
    def place_of(self, split: str) -> str:
        """Return the file, folder or name of a split, for messages."""

    def load(self) -> dict[str, list[Dialog]]:
        """Return both splits, checked, a part of the dialogs held out where there is no valid; raises UserError."""
        splits = _with_held_out(self.place_of("train"), self.splits())
        for name, dialogs in splits.items():
            if not dialogs:
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

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def digest(self) -> str:
        """Return a hash over the bytes of the files and their roles."""
        total = hashlib.sha256()
        for path in self.paths:
            with open_checked(path) as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()

    def splits(self) -> dict[str, list[Dialog]]:
        if len(self.paths) == 2:
            return {name: _only_split(path, name) for name, path in zip(SPLITS, self.paths, strict=True)}
        return read_splits(self.paths[0])

    def place_of(self, split: str) -> str:
        return str(self.paths[SPLITS.index(split) if len(self.paths) == 2 else 0])


class TableSource(Source):
    """A data set on the hub or a folder of .parquet files."""

    def __init__(self, dataset_path: str):
        self.tables = Tables(dataset_path)

    def digest(self) -> str:
        return self.tables.digest()

    def splits(self) -> dict[str, list[Dialog]]:
        splits = self.tables.dialogs()
        _check_splits(splits, self.tables.name)
        return splits

    def place_of(self, split: str) -> str:
        return self.tables.name


def find_source(dataset_path: str) -> Source:
    """Return where `--dataset_path` points, downloading URLs: "" is PersonaChat, "example" the embedded set.

    Otherwise a file, a URL, a folder with one train* and one valid* file or with .parquet files, TRAIN,VALID (files or
    URLs), or hub:OWNER/NAME.
    """
    if dataset_path == "example":
        return ExampleSource()
    if not dataset_path:
        return FileSource([fetch(PERSONACHAT_URL, advice=OTHER_WAYS)])
    if dataset_path.startswith(HUB_PREFIX):
        return TableSource(dataset_path)
    path = os.path.expanduser(dataset_path)
    if os.path.isdir(path):
        if holds_parquet(path):
            return TableSource(path)
        return FileSource([_file_of_split(Path(path), split) for split in SPLITS])
    parts = [path] if os.path.exists(path) else [part.strip() for part in dataset_path.split(",")]
    if len(parts) > 2 or not all(parts):
        raise UserError(f"--dataset_path {dataset_path}: give one file, or two as TRAIN,VALID.")
    return FileSource([_local(part) for part in parts])


def load_for_evaluation(dataset_path: str) -> tuple[list[Dialog], list[Dialog]]:
    """Return the dialogs to evaluate on, after those to learn from: of data without a valid split all, after none."""
    splits = find_source(dataset_path).splits()
    train = splits.get("train", []) if "valid" in splits else []
    valid = splits["valid"] if "valid" in splits else next(iter(splits.values()))
    if not valid:
        raise UserError(f"--dataset_path {dataset_path}: there are no dialogs to evaluate on; give another file.")
    return train, valid


def read_splits(path: Path) -> dict[str, list[Dialog]]:
    """Read one file of either format; its splits by name, {"": dialogs} where the file names none."""
    text = _read_text(path)
    if path.name.endswith((".json", ".json.gz")) or text[:1000].lstrip().startswith(("{", "[")):
        return _parse_json(text, path)
    return {"": list(_parse_parlai(text, path))}


def open_checked(path: Path):
    """Open a file for reading bytes; UserError where it is missing or unreadable."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"--dataset_path: {path} cannot be read ({error.strerror}); check the path.") from error


def _read_text(path: Path) -> str:
    try:
        with open_checked(path) as file:
            content = file.read()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); convert it to UTF-8.") from error
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it and fetch it again.") from error


def _local(path_or_url: str) -> Path:
    if is_url(path_or_url):
        return fetch(path_or_url, advice="Give --dataset_path a local copy of it.")
    path = Path(os.path.expanduser(path_or_url))
    if not os.path.exists(path):
        raise UserError(f'--dataset_path: there is no {path}; give a file, a folder, a URL, or "example".')
    if path.is_dir():
        raise UserError(f"--dataset_path: {path} is a folder; within TRAIN,VALID give two files.")
    return path


def _file_of_split(folder: Path, split: str) -> Path:
    found = sorted(path for path in folder.glob(f"{split}*") if path.is_file())
    if len(found) == 1:
        return found[0]
    problem = f"{len(found)} files" if found else "no file"
    raise UserError(f"--dataset_path: {folder} has {problem} named {split}*; name the pair as TRAIN,VALID.")


def _only_split(path: Path, split: str) -> list[Dialog]:
    """Return the dialogs of a file that stands for one split: its part of that name, or all it has."""
    splits = read_splits(path)
    if split not in splits and len(splits) > 1:
        raise UserError(f"{path}: it has the splits {', '.join(splits)}, but no {split}.")
    return splits[split] if split in splits else next(iter(splits.values()))


def _with_held_out(path: str, splits: dict[str, list[Dialog]]) -> dict[str, list[Dialog]]:
    """Return train and valid; of a file that has no valid, 5 % of the dialogs are held out, drawn by seed."""
    if all(name in splits for name in SPLITS):
        return {name: splits[name] for name in SPLITS}
    dialogs = splits.get("train") or splits.get("") or next(iter(splits.values()), [])
    if not dialogs:
        raise UserError(f"{path}: the train split is empty; it needs at least two dialogs.")
    if len(dialogs) < 2:
        raise UserError(f"{path}: a lone dialog cannot be split; give at least two, or TRAIN,VALID.")
    n_held_out = max(1, round(HELD_OUT_SHARE * len(dialogs)))
    held_out = set(random.Random(DATA_SEED).sample(range(len(dialogs)), n_held_out))
    logger.info("%s has no valid split: %d of its %d dialogs are held out for it", path, n_held_out, len(dialogs))
    return {
        "train": [dialog for i, dialog in enumerate(dialogs) if i not in held_out],
        "valid": [dialog for i, dialog in enumerate(dialogs) if i in held_out],
    }


def _parse_json(text: str, path: Path) -> dict[str, list[Dialog]]:
    interned: dict[str, str] = {}

    def share_strings(entry: dict) -> dict:
        # PersonaChat repeats every utterance dozens of times: sharing equal strings bounds the memory.
        for key in ("candidates", "history"):
            if isinstance(entry.get(key), list):
                entry[key] = [interned.setdefault(t, t) if isinstance(t, str) else t for t in entry[key]]
        return entry

    try:
        data = json.loads(text, object_hook=share_strings)
    except json.JSONDecodeError as error:
        place = f"at line {error.lineno}, column {error.colno}"
        raise UserError(f"{path} is not JSON: {error.msg} {place}; mend it there, or fetch the file again.") from error
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path} is no PersonaChat file ({error}); see example_entry.py for the format.") from error
    if not isinstance(data, dict | list):
        raise UserError(f"{path} holds {_kind(data)} only; see example_entry.py for the format.")
    splits = {"": data} if isinstance(data, list) else data
    known = {name: splits[name] for name in ("", *SPLITS) if name in splits}
    if not known:
        raise UserError(f'{path}: there is neither a "train" nor a "valid" key; see example_entry.py for the format.')
    _check_splits(known, path)
    return known


def _check_splits(splits: dict[str, Any], path: Path | str) -> None:
    """Raise UserError, naming the place, where parsed data are not of the schema; fill in missing personalities."""
    for name, dialogs in splits.items():
        if not isinstance(dialogs, list):
            raise UserError(f'{path}: "{name}" must be a list of dialogs, not {_kind(dialogs)}.')
        for number, dialog in enumerate(dialogs):
            _check_dialog(dialog, f"{path}: {name} dialog {number}" if name else f"{path}: dialog {number}")


def _check_dialog(dialog: Any, where: str) -> None:
    """Raise UserError, naming the place, where a parsed dialog is not of the schema; fill in a missing personality."""
    if not isinstance(dialog, dict):
        raise UserError(f"{where} must be an object, not {_kind(dialog)}.")
    _check_strings(dialog.setdefault("personality", []), f'{where}, key "personality"')
    utterances = dialog.get("utterances")
    if not isinstance(utterances, list):
        raise UserError(f'{where}, key "utterances" must be a list, not {_kind(utterances)}.')
    if not utterances:
        raise UserError(f'{where} has no turns: its "utterances" are empty; fill or remove it.')
    for number, utterance in enumerate(utterances):
        place = f"{where}, utterance {number}"
        if not isinstance(utterance, dict):
            raise UserError(f"{place} must be an object, not {_kind(utterance)}.")
        for key in ("history", "candidates"):
            _check_strings(utterance.get(key), f'{place}, key "{key}"')
        if not utterance["candidates"]:
            raise UserError(f'{place}, key "candidates" is empty; it needs at least the gold reply.')


def _check_strings(value: Any, where: str) -> None:
    if not isinstance(value, list):
        raise UserError(f"{where} must be a list of strings, not {_kind(value)}.")
    for item in value:
        if not isinstance(item, str):
            raise UserError(f"{where} must hold strings only, not {_kind(item)}.")


def _kind(value: Any) -> str:
    names = {type(None): "missing or null", dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return names.get(type(value), "a number")


_PARLAI_LINE = re.compile(r"(\d{1,9}) (.*)")
_PERSONA_LINE = re.compile(r"(your|partner's) persona:(.*)", re.IGNORECASE)


def _parse_parlai(text: str, path: Path) -> Iterator[Dialog]:
    r"""Yield the dialogs of ParlAI's numbered text: persona lines, then `N turn\treply[\treward\tcand|cand|...]`."""
    dialog: Dialog | None = None
    previous = 0
    for n_line, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        match = _PARLAI_LINE.fullmatch(line)
        if not match:
            raise UserError(f"{path}, line {n_line}: in ParlAI text a line starts with its number in the dialog and a "
                            f"space; this one starts with {line[:20]!r}.")  # fmt: skip
        if dialog is None or int(match[1]) <= previous:  # a number that is no higher starts a new dialog
            if dialog:
                yield _finished(dialog, path, n_line)
            dialog, turns, unanswered = {"personality": [], "utterances": []}, [], ""
        previous = int(match[1])
        said, reply, reward, offered, *_ = [*match[2].replace("\\n", "\n").split("\t"), "", "", ""]
        if "|" in reward:
            raise UserError(f"{path}, line {n_line}: the third field is for a reward; put two tabs between the reply "
                            "and the candidates.")  # fmt: skip
        turn = f"{unanswered} {take_persona(said, dialog['personality'])}".strip()
        replies = _alternatives(reply)
        if not replies:
            unanswered = turn  # said without an answer: it belongs to what the next answer replies to
            continue
        gold = replies[0]
        distractors = [c for c in _alternatives(offered) if not any(is_gold(c, reply) for reply in replies)]
        dialog["utterances"].append({"history": [*turns, turn], "candidates": [*distractors, gold]})
        turns, unanswered = [*turns, turn, gold], ""
    if dialog:
        yield _finished(dialog, path, n_line + 1)


def take_persona(text: str, personality: list[str]) -> str:
    """Move the persona sentences of a turn, each on a line of its own, to `personality`; return what is left."""
    said = []
    for line in text.split("\n"):
        persona = _PERSONA_LINE.fullmatch(line.strip())
        if not persona:
            said.append(line)
        elif persona[1].lower() == "your" and persona[2].strip():  # the partner's is not the agent's to know
            personality.append(persona[2].strip())
    return "\n".join(said)


def _alternatives(field: str) -> list[str]:
    return [text.strip() for text in field.split("|") if text.strip()]


def _finished(dialog: Dialog, path: Path, next_line: int) -> Dialog:
    if not dialog["utterances"]:
        raise UserError(f"{path}: the dialog that ends before line {next_line} has no turns; a turn and its reply "
                        "stand on one line, parted by a tab.")  # fmt: skip
    return dialog
