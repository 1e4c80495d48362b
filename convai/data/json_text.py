"""JSON and CSV into dialogs: an object of parts, an array, or a row a line."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from convai.data.compressed import has_ending
from convai.data.conversation import Dialog
from convai.data.rows import PlacedRows, checked_rows, is_of_rows, layout_of_rows, place_of_row, unknown_layout
from convai.data.schema import KeyCheck, Losses, Strings, check_parts, key_meant, kind_of, name_parts
from convai.errors import UserError


def parse_json(text: str, path: Path) -> dict[str, list[Dialog]]:
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
        if error.msg == "Extra data" and _has_row_a_line(text[: error.pos], path):
            splits = {"": _dialogs_of(_rows_of_lines(text, path, share_strings), path, strings)}
            check_parts(splits, path)
            return splits
        place = f"at line {error.lineno}, column {error.colno}"
        raise UserError(f"{path} is not JSON: {error.msg} {place}; mend it there, or fetch the file again.") from error
    except (RecursionError, ValueError) as error:
        raise UserError(f"{path} is no PersonaChat file ({error}); see example_entry.py for the format.") from error
    if not isinstance(data, dict | list):
        raise UserError(f"{path} holds {kind_of(data)} only; see example_entry.py for the format.")
    if isinstance(data, dict) and ("utterances" in data or is_of_rows(data)):  # a dialog by itself
        data = [data]
    parts = {"": data} if isinstance(data, list) else name_parts(data, path)
    splits = {name: _part_of_rows(part, path, name, strings) for name, part in parts.items()}
    check_parts(splits, path)
    return splits


def _part_of_rows(part: Any, path: Path, name: str, strings: Strings) -> Any:
    """Return the dialogs of a part whose first element is a row; what may be dialogs or of no use as it is."""
    first = part[0] if isinstance(part, list) and part else None
    if is_of_rows(first):
        return _dialogs_of([(place_of_row(path, name, n), row) for n, row in enumerate(part)], path, strings)
    # Of a key that looks like one that dialogs have, the check of these says which is meant.
    if first and isinstance(first, dict) and not any(key_meant(key, ("utterances",)) for key in first):
        raise unknown_layout(first, place_of_row(path, name, 0))
    return part


def parse_csv(text: str, path: Path) -> dict[str, list[Dialog]] | None:
    """Return the dialogs of a CSV file, which its first line is told by; None for a file of another kind."""
    try:
        header = next(csv.reader([text.partition("\n")[0]]), [])
    except csv.Error:  # ParlAI's text may have long lines, and lone carriage returns
        header = []
    if layout_of_rows(header) is None:
        if has_ending(path, ".csv"):
            raise unknown_layout(header, path)
        return None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[str, dict[str, Any]]] = []
    try:
        for number, row in enumerate(reader):
            place = place_of_row(path, "", number)
            if None in row:
                raise UserError(f"{place} has more fields than the first line; put those with commas into quotes.")
            rows.append((place, row))
    except csv.Error as error:
        place = place_of_row(path, "", len(rows))
        raise UserError(f"{place} is not CSV: {error}; mend the quotes there.") from error
    splits = {"": _dialogs_of(rows, path, Strings())}
    check_parts(splits, path)
    return splits


def _has_row_a_line(first: str, path: Path) -> bool:
    """Whether a file whose first value is this one has a row on each line.

    Dialogs of the PersonaChat form are taken for lines by the file's name only: elsewhere that is a mistake.
    """
    return "\n" not in first.strip() and (has_ending(path, ".jsonl", ".ndjson") or is_of_rows(json.loads(first)))


def _rows_of_lines(text: str, path: Path, hook: Callable[[Dialog], Dialog]) -> PlacedRows:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            yield place, json.loads(line, object_hook=hook)
        except json.JSONDecodeError as error:
            raise UserError(f"{place} is not JSON: {error.msg} at column {error.colno}; mend it there, or fetch the "
                            "file again.") from error  # fmt: skip
        except (RecursionError, ValueError) as error:
            raise UserError(f"{place} holds no dialog ({error}); mend or remove it.") from error


def _dialogs_of(rows: PlacedRows, path: Path, strings: Strings) -> list[Dialog]:
    """Return the dialogs that the rows make up, by the layout of the first one; what is lost is told."""
    placed = list(checked_rows(rows))
    layout = layout_of_rows(placed[0][1])
    if layout is None:
        raise unknown_layout(placed[0][1], placed[0][0])
    keys, losses = KeyCheck(path), Losses()
    dialogs = layout.read(((place, strings.share(row)) for place, row in placed), keys, losses)
    keys.tell()
    losses.tell(path)
    return dialogs
