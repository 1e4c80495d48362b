"""JSON and CSV into dialogs, one after the other: an object of parts, an array, or a row a line."""

import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from convai.data.compressed import has_ending
from convai.data.conversation import Dialog, Row
from convai.data.json_stream import JsonStream, parse_line
from convai.data.reading import Reading
from convai.data.rows import DIALOG_LAYOUT, is_of_rows, layout_of_rows, place_of_row, read_rows, unknown_layout
from convai.data.schema import key_meant, kind_of, name_parts, part_of_name
from convai.data.text_stream import MAX_DIALOG_BYTES, check_size, lines_of_file
from convai.errors import UserError

_LINES = (".jsonl", ".ndjson")
_N_TOLD_BY = 1000  # elements among which one of a known layout is looked for, where bad ones are skipped


def read_json(path: Path, reading: Reading) -> Iterator[tuple[str, Dialog | None]]:
    """Yield (part, None) for each part of a JSON file, then (part, dialog) for its dialogs, checked.

    The part is "" where the file names none. UserError says what is wrong and where.
    """
    stream = JsonStream(path, reading.meter)
    first = stream.peek()
    if first == "{":
        yield from _of_object(stream, reading)
        return
    if first != "[":
        value = stream.value()
        stream.check_end()
        raise UserError(f"{path} holds {kind_of(value)} only; see example_entry.py for the format.")
    yield "", None
    yield from (("", dialog) for dialog in _dialogs_of_part(stream.elements(), path, "", reading))
    stream.check_end()


def _of_object(stream: JsonStream, reading: Reading) -> Iterator[tuple[str, Dialog | None]]:
    """Read a file that begins with an object: one of parts, a dialog by itself, or the first of a row a line."""
    path = stream.path
    if has_ending(path, *_LINES) and reading.skips_bad_rows:  # the first line may be a row to be skipped
        yield from _of_lines(path, reading)
        return
    start = stream.line
    values: dict[str, Any] = {}  # of keys that are no parts' names; of parts whether they are there
    n_parts = 0
    for key in stream.keys():  # noqa: SIM118 (no mapping)
        part = part_of_name(key)
        if stream.peek() != "[" or (part is None and not n_parts):
            values[key] = stream.value()
            continue
        if part is not None and values.get(key) is True:
            raise UserError(f'{path}: "{key}" is there twice; join the two, or leave one out.')
        values[key] = True
        if part is None:
            _pass_over(stream.elements())
            continue
        n_parts += 1
        yield part, None
        yield from ((part, dialog) for dialog in _dialogs_of_part(stream.elements(), path, part, reading))
    is_on_one_line = stream.line == start
    if stream.peek() and is_on_one_line and not n_parts and (has_ending(path, *_LINES) or is_of_rows(values)):
        yield from _of_lines(path, reading)
        return
    stream.check_end()
    if not n_parts and ("utterances" in values or is_of_rows(values)):  # a dialog by itself
        yield "", None
        yield from (("", dialog) for dialog in _dialogs_of_part(iter([values]), path, "", reading))
        return
    for name, part in name_parts(values, path).items():
        if part is not True:
            raise UserError(f'{path}: "{name}" must be a list of dialogs, not {kind_of(part)}.')


def _dialogs_of_part(part: Iterator[Any], path: Path, name: str, reading: Reading) -> Iterator[Dialog]:
    """Yield the dialogs of a part that is an array of rows, which may be dialogs as they are."""
    first: list[Any] = []
    known: Any = None
    for row in part:
        first.append(row)
        if isinstance(row, dict) and layout_of_rows(row):
            known = row
        if known is not None or not reading.skips_bad_rows or len(first) == _N_TOLD_BY:
            break
    is_unknown = known is None and bool(first) and isinstance(first[0], dict) and bool(first[0])
    # Of a key that looks like one that dialogs have, the check of these says which is meant.
    if is_unknown and not any(key_meant(key, ("utterances",)) for key in first[0]):
        raise unknown_layout(first[0], place_of_row(path, name, 0))
    kind, layout = ("row", layout_of_rows(known)) if is_of_rows(known) else ("dialog", DIALOG_LAYOUT)
    rows = ((place_of_row(path, name, n, kind), row) for n, row in enumerate(itertools.chain(first, part)))
    yield from read_rows(rows, reading, layout)


def _of_lines(path: Path, reading: Reading) -> Iterator[tuple[str, Dialog | None]]:
    """Read a file that has a row a line."""
    yield "", None
    yield from (("", dialog) for dialog in read_rows(_rows_of_lines(path, reading), reading))


def _rows_of_lines(path: Path, reading: Reading) -> Iterator[tuple[str, Any]]:
    def parsed(reading: Reading, place: str, line: str) -> Any:
        check_size(line, place)
        try:
            row = parse_line(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{place} is not JSON: {error.msg} at column {error.colno}; mend it there, or fetch the "
                            "file again.") from error  # fmt: skip
        except (RecursionError, ValueError) as error:
            raise UserError(f"{place} holds no dialog ({error}); mend or remove it.") from error
        if not isinstance(row, dict):
            raise UserError(f"{place} must be an object, not {kind_of(row)}.")
        return row

    for number, line in lines_of_file(path, reading.meter):
        place = f"{path}, line {number}"
        row = None if line.isspace() or not line else reading.attempt(parsed, place, line)
        del line  # it may be large
        if row is not None:
            yield place, row


def header_of_csv(first_line: str, path: Path) -> list[str] | None:
    """Return the columns of a CSV file, which its first line is told by; None for a file of another kind."""
    try:
        header = next(csv.reader([first_line]), [])
    except csv.Error:  # ParlAI's text may have long lines, and lone carriage returns
        header = []
    if layout_of_rows(header) is not None:
        return header
    if has_ending(path, ".csv"):
        raise unknown_layout(header, path)
    return None


def read_csv(path: Path, reading: Reading) -> Iterator[Dialog]:
    """Yield the dialogs of a CSV file.

    Quotes that do not end raise UserError even where bad rows are skipped: where the next row begins is unknown.
    """
    csv.field_size_limit(MAX_DIALOG_BYTES // 4)  # characters, which take four bytes each in the module's buffer
    reader = csv.DictReader(_lines_of_csv(path, reading), strict=True)
    yield from read_rows(_rows_of_csv(reader, path, reading), reading)


def _lines_of_csv(path: Path, reading: Reading) -> Iterator[str]:
    for number, line in lines_of_file(path, reading.meter):
        check_size(line, f"{path}, line {number},")
        yield from re.findall(r"[^\r]*\r|[^\r]+", f"{line}\n") if "\r" in line[:-1] else (f"{line}\n",)


def _rows_of_csv(reader: Iterator[Row], path: Path, reading: Reading) -> Iterator[tuple[str, Any]]:
    def checked(reading: Reading, place: str, row: dict[Any, Any]) -> Row:
        if None in row:
            raise UserError(f"{place} has more fields than the first line; put those with commas into quotes.")
        return row

    for number in itertools.count():
        place = place_of_row(path, "", number)
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{place} is not CSV: {error}; mend the quotes there.") from error
        if row is None:
            return
        if (whole := reading.attempt(checked, place, row)) is not None:
            yield place, whole


def _pass_over(values: Iterable[Any]) -> None:
    for _ in values:
        pass
