"""JSON and CSV into dialogs: an object of parts, an array, or a row a line."""

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from convai.data.compressed import has_ending
from convai.data.conversation import Dialog, Row
from convai.data.reading import Reading
from convai.data.rows import DIALOG_LAYOUT, is_of_rows, layout_of_rows, place_of_row, read_rows, unknown_layout
from convai.data.schema import Strings, key_meant, kind_of, name_parts
from convai.errors import UserError


def parse_json(text: str, path: Path, reading: Reading) -> dict[str, list[Dialog]]:
    """Return the parts of a JSON file, checked: "" where it names none; UserError says what is wrong and where."""
    strings = Strings()

    def share_strings(entry: Dialog) -> Dialog:
        for key in ("candidates", "history", "personality"):
            if isinstance(entry.get(key), list):
                entry[key] = [strings[t] if isinstance(t, str) else t for t in entry[key]]
        return entry

    try:
        data = json.loads(text, object_hook=share_strings)
    except json.JSONDecodeError as error:
        if _has_row_a_line(text, error, path, reading):
            rows = _rows_of_lines(text, path, share_strings, reading)
            return {"": list(read_rows(_shared(rows, strings), reading))}
        place = f"at line {error.lineno}, column {error.colno}"
        raise UserError(f"{path} is not JSON: {error.msg} {place}; mend it there, or fetch the file again.") from error
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path} is no PersonaChat file ({error}); see example_entry.py for the format.") from error
    if not isinstance(data, dict | list):
        raise UserError(f"{path} holds {kind_of(data)} only; see example_entry.py for the format.")
    if isinstance(data, dict) and ("utterances" in data or is_of_rows(data)):  # a dialog by itself
        data = [data]
    parts = {"": data} if isinstance(data, list) else name_parts(data, path)
    return {name: _dialogs_of_part(part, path, name, strings, reading) for name, part in parts.items()}


def _dialogs_of_part(part: Any, path: Path, name: str, strings: Strings, reading: Reading) -> list[Dialog]:
    """Return the dialogs of a part that is an array of rows, which may be dialogs as they are."""
    if not isinstance(part, list):
        raise UserError(f'{path}: "{name}" must be a list of dialogs, not {kind_of(part)}.')
    first = part[0] if part else None
    to_tell_by = part if reading.skips_bad_rows else part[:1]
    known: Any = next((row for row in to_tell_by if isinstance(row, dict) and layout_of_rows(row)), None)
    if is_of_rows(known):
        rows = ((place_of_row(path, name, n), row) for n, row in enumerate(part))
        return list(read_rows(_shared(rows, strings), reading, layout_of_rows(known)))
    # Of a key that looks like one that dialogs have, the check of these says which is meant.
    if not known and first and isinstance(first, dict) and not any(key_meant(key, ("utterances",)) for key in first):
        raise unknown_layout(first, place_of_row(path, name, 0))
    rows = ((place_of_row(path, name, n, "dialog"), row) for n, row in enumerate(part))
    return list(read_rows(rows, reading, DIALOG_LAYOUT))


def parse_csv(text: str, path: Path, reading: Reading) -> dict[str, list[Dialog]] | None:
    """Return the dialogs of a CSV file, which its first line is told by; None for a file of another kind.

    Quotes that do not end raise UserError even where bad rows are skipped: where the next row begins is unknown.
    """
    try:
        header = next(csv.reader([text.partition("\n")[0]]), [])
    except csv.Error:  # ParlAI's text may have long lines, and lone carriage returns
        header = []
    if layout_of_rows(header) is None:
        if has_ending(path, ".csv"):
            raise unknown_layout(header, path)
        return None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    return {"": list(read_rows(_shared(_rows_of_csv(reader, path, reading), Strings()), reading))}


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


def _has_row_a_line(text: str, error: json.JSONDecodeError, path: Path, reading: Reading) -> bool:
    """Whether a file of which not all is one JSON value, as the error says, has a row on each line.

    Dialogs of the PersonaChat form are taken for lines by the file's name only: elsewhere that is a mistake.
    """
    is_named_so = has_ending(path, ".jsonl", ".ndjson")
    if error.msg != "Extra data":  # the first line may be a row to be skipped
        return is_named_so and reading.skips_bad_rows
    first = text[: error.pos]
    return "\n" not in first.strip() and (is_named_so or is_of_rows(json.loads(first)))


def _rows_of_lines(
    text: str, path: Path, hook: Callable[[Dialog], Dialog], reading: Reading
) -> Iterator[tuple[str, Any]]:
    def parsed(reading: Reading, place: str, line: str) -> Any:
        try:
            row = json.loads(line, object_hook=hook)
        except json.JSONDecodeError as error:
            raise UserError(f"{place} is not JSON: {error.msg} at column {error.colno}; mend it there, or fetch the "
                            "file again.") from error  # fmt: skip
        except (RecursionError, ValueError) as error:
            raise UserError(f"{place} holds no dialog ({error}); mend or remove it.") from error
        if not isinstance(row, dict):
            raise UserError(f"{place} must be an object, not {kind_of(row)}.")
        return row

    for number, line in enumerate(text.split("\n"), start=1):
        place = f"{path}, line {number}"
        if line.strip() and (row := reading.attempt(parsed, place, line)) is not None:
            yield place, row


def _shared(rows: Iterable[tuple[str, Any]], strings: Strings) -> Iterator[tuple[str, Any]]:
    return ((place, strings.share(row)) for place, row in rows)
