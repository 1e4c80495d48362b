"""Dialogs kept as tables: data sets on the Hugging Face hub and local folders of .parquet files.

Their rows are of any layout of rows.py. A row may be a dialog, with the columns `personality` (sentences) and
`utterances` (`history` and `candidates` each), as in AlekseyKorshuk/persona-chat; or a reply, with the columns
`personality`, `history` and `candidates`, where rows of equal `conv_id` are a dialog, ordered by `utterance_idx`, as in
bavard/personachat_truecased.
"""

import hashlib
import logging
import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from convai.data.conversation import Dialog
from convai.data.reading import AS_BY_DEFAULT, Reading
from convai.data.rows import DIALOG_LAYOUT, layout_of_rows, place_of_row, read_rows, unknown_layout
from convai.data.schema import Strings, name_parts, part_of_name
from convai.errors import UserError, argument, one_line
from convai.options import ReadingOptions

HUB_PREFIX = "hub:"
# From 4.0 on the package reads no scripts out of data sets, so no foreign code is run.
INSTALL_DATASETS = "pip install 'datasets>=4'"

logger = logging.getLogger(__name__)


class Tables:
    """The splits of a data set on the hub (`hub:OWNER/NAME`) or of a folder with .parquet files."""

    def __init__(self, dataset_path: str, options: ReadingOptions = AS_BY_DEFAULT):
        self.name = dataset_path
        self.options = options

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

    def dialogs(self) -> dict[str, list[Dialog]]:
        """Return the dialogs of "train", "valid" and "test", as far as they are there; of a lone other part as ""."""
        splits = dict(self._splits)
        is_lone = len(splits) == 1 and not any(map(part_of_name, splits))
        tables = {"": next(iter(splits.values()))} if is_lone else name_parts(splits, self.name)
        reading = Reading(self.name, self.options)
        dialogs = {split: _read(table, split, reading) for split, table in tables.items()}
        reading.tell()
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


def _read(table: Any, split: str, reading: Reading) -> list[Dialog]:
    layout = layout_of_rows(table.column_names)
    if layout is None:
        raise unknown_layout(table.column_names, reading.where)
    strings = Strings()
    kind = "dialog" if layout is DIALOG_LAYOUT else "row"
    rows = ((place_of_row(reading.where, split, n, kind), strings.share(row)) for n, row in enumerate(table))
    return list(read_rows(rows, reading, layout))
