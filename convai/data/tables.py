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
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from convai.data.compressed import Meter
from convai.data.conversation import Dialog, Row
from convai.data.digests import KnownDigests
from convai.data.json_stream import without_marks
from convai.data.reading import AS_BY_DEFAULT, Reading
from convai.data.rows import DIALOG_LAYOUT, layout_of_rows, place_of_row, read_rows, unknown_layout
from convai.data.schema import name_parts, part_of_name
from convai.errors import UserError, argument, one_line
from convai.options import ReadingOptions

HUB_PREFIX = "hub:"
# From 4.0 on the package reads no scripts out of data sets, so no foreign code is run.
INSTALL_DATASETS = "pip install 'datasets>=4'"
_N_ROWS = 100  # that are in memory at once

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
            return _loaded(datasets, self.name.removeprefix(HUB_PREFIX), _files_by_part(self.name))
        except Exception as error:  # of the hub, of the disk, of damaged files: there is no common class
            reason = one_line(str(error).split("\n\n")[0]) or type(error).__name__
            raise UserError(f"{argument('dataset_path')} {self.name} cannot be read: {reason.rstrip('.')}. Check the "
                            "name and the network, or give a local file or folder.") from error  # fmt: skip

    def digest(self, known: KnownDigests) -> str:
        """Return a hash over the content of all splits."""
        total = hashlib.sha256()
        for name, table in sorted(self._splits.items()):
            total.update(name.encode())
            for file in table.cache_files:
                total.update(known.of(Path(file["filename"])))
        return total.hexdigest()

    def dialogs(self, meter: Meter) -> Iterator[tuple[str, Dialog | None]]:
        """Yield (part, None) and then (part, dialog) for "train", "valid" and "test", as far as they are there.

        A lone part of another name is "".
        """
        splits = dict(self._splits)
        is_lone = len(splits) == 1 and not any(map(part_of_name, splits))
        tables = {"": next(iter(splits.values()))} if is_lone else name_parts(splits, self.name)
        meter.done, meter.total = 0, sum(map(len, tables.values()))
        reading = Reading(self.name, self.options, meter)
        for part, table in tables.items():
            yield part, None
            yield from ((part, dialog) for dialog in _read(table, part, reading))
        reading.tell()


def _loaded(datasets: Any, name: str, files: dict[str, Any]) -> Any:
    try:
        # Else whole row groups are in memory, and a first one without rows is an error.
        return datasets.load_dataset(name, batch_size=_N_ROWS, **files)
    except (TypeError, ValueError) as error:
        if "batch_size" not in str(error):
            raise
        return datasets.load_dataset(name, **files)  # of files of other kinds, which lie in batches


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


def _read(table: Any, split: str, reading: Reading) -> Iterator[Dialog]:
    layout = layout_of_rows(table.column_names)
    if layout is None:
        raise unknown_layout(table.column_names, reading.where)
    kind = "dialog" if layout is DIALOG_LAYOUT else "row"

    def rows() -> Iterator[tuple[str, Row]]:
        for number, row in enumerate(_rows(table)):
            if reading.meter:
                reading.meter.done += 1
            yield place_of_row(reading.where, split, number, kind), without_marks(row)

    yield from read_rows(rows(), reading, layout)


def _rows(table: Any) -> Iterator[Row]:
    """Yield the rows of a table, whose files are read from the first batch to the last.

    A table maps its files into memory, where what was read counts as used.
    """
    import pyarrow

    for file in table.cache_files:
        with pyarrow.OSFile(file["filename"]) as content:
            for batch in pyarrow.ipc.open_stream(content):
                for start in range(0, len(batch), _N_ROWS):
                    yield from batch.slice(start, _N_ROWS).to_pylist()
    if not table.cache_files:
        yield from table
