"""Dialogs kept as tables: data sets on the Hugging Face hub and local folders of .parquet files.

Two layouts are read. A row is a dialog, with the columns `personality` (sentences) and `utterances` (`history` and
`candidates` each), as in AlekseyKorshuk/persona-chat. Or a row is a reply, with the columns `personality`, `history`
and `candidates`; rows of equal `conv_id` are a dialog, ordered by `utterance_idx`, as in bavard/personachat_truecased.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from convai.data.schema import KeyCheck, Strings, key_meant, name_parts, part_of_name
from convai.errors import UserError, argument, one_line

HUB_PREFIX = "hub:"
# From 4.0 on the package reads no scripts out of data sets, so no foreign code is run.
INSTALL_DATASETS = "pip install 'datasets>=4'"
REPLY_KEYS = frozenset({"personality", "history", "candidates", "conv_id", "utterance_idx"})

Row = dict[str, Any]

logger = logging.getLogger(__name__)


class Tables:
    """The splits of a data set on the hub (`hub:OWNER/NAME`) or of a folder with .parquet files."""

    def __init__(self, dataset_path: str):
        self.name = dataset_path

    @cached_property
    def _splits(self) -> Any:
        """The `datasets.DatasetDict`, memory-mapped; downloaded and converted once into that package's cache."""
        try:
            import datasets
        except ImportError as error:
            raise UserError(f"{argument('dataset_path')} {self.name} is read with the package datasets ({error}); "
                            f"install it with `{INSTALL_DATASETS}`, or give a JSON or text "
                            "file.") from error  # fmt: skip
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it reports every request
        try:
            return datasets.load_dataset(self.name.removeprefix(HUB_PREFIX), **_files_by_part(self.name))
        except Exception as error:  # of the hub, of the disk, of damaged files: there is no common class
            reason = one_line(str(error).split("\n\n")[0]) or type(error).__name__
            raise UserError(f"{argument('dataset_path')} {self.name} cannot be read: {reason.rstrip('.')}. Check the "
                            "name and the network, or give a local file or folder.") from error  # fmt: skip

    def digest(self) -> str:
        """Return a hash over the content of all splits."""
        total = hashlib.sha256()
        for name, table in sorted(self._splits.items()):
            total.update(name.encode())
            for file in table.cache_files:
                with open(file["filename"], "rb") as content:
                    total.update(hashlib.file_digest(content, "sha256").digest())
        return total.hexdigest()

    def dialogs(self) -> dict[str, list[Row]]:
        """Return the dialogs of "train", "valid" and "test", as far as they are there; of a lone other part as ""."""
        splits = dict(self._splits)
        is_lone = len(splits) == 1 and not any(map(part_of_name, splits))
        tables = {"": next(iter(splits.values()))} if is_lone else name_parts(splits, self.name)
        keys = KeyCheck(self.name)
        dialogs = {split: _read(table, self.name, split, keys) for split, table in tables.items()}
        keys.tell()
        return dialogs


def holds_parquet(folder: str) -> bool:
    """Whether there are .parquet files in the folder, or one level below as the hub has them."""
    folders = [folder, *(entry.path for entry in os.scandir(folder) if entry.is_dir())]
    return any(name.endswith(".parquet") for inside in folders for name in os.listdir(inside))


def _files_by_part(name: str) -> dict[str, dict[str, list[str]]]:
    """Return the argument that names a folder's files by our parts where one is called eval*: the package says test."""
    if name.startswith(HUB_PREFIX):
        return {}
    parts: dict[str, list[str]] = {}
    words = set()
    for path in sorted([*Path(name).glob("*.parquet"), *Path(name).glob("*/*.parquet")]):
        folder = "" if path.parent == Path(name) else path.parent.name
        for word in re.split(r"[-._ ]+", f"{path.name} {folder}".lower()):
            if part := part_of_name(word):
                words.add(word)
                parts.setdefault(part, []).append(str(path))
                break
    return {"data_files": parts} if "eval" in words else {}


def _read(table: Any, where: str, split: str, keys: KeyCheck) -> list[Row]:
    columns = set(table.column_names)
    strings = Strings()

    def share(value: Any) -> Any:
        if isinstance(value, str):
            return strings[value]
        if isinstance(value, list):
            return [share(item) for item in value]
        return {key: share(item) for key, item in value.items()} if isinstance(value, dict) else value

    rows = map(share, table)
    if "utterances" in columns:
        return [row | {"utterances": _one_by_one(row["utterances"])} for row in rows]
    if {"history", "candidates"} <= columns:
        return _join_replies(rows, f"{where}: {split} row" if split else f"{where}: row", keys)
    likely = {name: key_meant(name, {"utterances", "history", "candidates"} - columns) for name in columns - REPLY_KEYS}
    hint = "".join(f"; did you mean {key} by {name}?" for name, key in sorted(likely.items()) if key)
    raise UserError(f"{argument('dataset_path')} {where}: its columns are {', '.join(sorted(columns)) or 'none'}; "
                    "needed are personality and utterances, or personality, history and "
                    f"candidates{hint or '.'}")  # fmt: skip


def _one_by_one(utterances: list[Row] | dict[str, list[Any]] | None) -> list[Row] | None:
    """Return a list of objects, also where older versions of `datasets` have written one object of lists."""
    if not isinstance(utterances, dict):
        return utterances
    return [dict(zip(utterances, values, strict=True)) for values in zip(*utterances.values(), strict=True)]


def _join_replies(rows: Iterable[Row], where: str, keys: KeyCheck) -> list[Row]:
    """Return the dialogs that rows of one reply each make up, in the order of their first rows.

    A row without `conv_id` is a dialog by itself, one without `utterance_idx` comes first.
    """
    dialogs: dict[Any, list[Row]] = {}
    for number, row in enumerate(rows):
        keys.check(row, REPLY_KEYS, f"{where} {number}")
        conversation = row.get("conv_id")
        dialogs.setdefault(("row", number) if conversation is None else conversation, []).append(row)
    joined = []
    for replies in dialogs.values():
        replies.sort(key=lambda row: row.get("utterance_idx") or 0)
        utterances = [{"history": row["history"], "candidates": row["candidates"]} for row in replies]
        persona: list[str] = next((row["personality"] for row in replies if row.get("personality")), [])
        joined.append({"personality": persona, "utterances": utterances})
    return joined
