"""Rows of data, each an object by the names of its keys: which layout they are of, and the dialogs they make up.

A row may be a line or an element of JSON (json_text.py), a line of CSV, or a row of a table (tables.py). Layouts that
are an idea of their own have their modules: messages.py, preferences.py, sides.py.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from convai.data.conversation import Dialog, Row, TooManyTurns, Turn, joined, learned
from convai.data.messages import read_messages, read_sharegpt
from convai.data.preferences import read_preferences
from convai.data.reading import Reading
from convai.data.replies import Replies
from convai.data.schema import check_dialog, check_strings, key_meant, kind_of, one_by_one
from convai.data.sides import CONVERSATION, PERSONAS, read_sides
from convai.errors import UserError, argument

REPLY_KEYS = frozenset({"personality", "history", "candidates", "conv_id", "utterance_idx"})


class Layout(NamedTuple):
    """One way to keep dialogs in rows."""

    needed: frozenset[str]  # the keys that it is recognised by
    shown: str  # the same in words
    read: Callable[[Reading, str, Row], list[Dialog]]  # one row, given its place; UserError names it


def layout_of_rows(columns: Collection[str]) -> Layout | None:
    """Return the layout of rows with these keys; None where it is none that is known."""
    return next((layout for layout in LAYOUTS if layout.needed <= set(columns)), None)


def is_of_rows(value: Any) -> bool:
    """Whether a value is a row of a known layout that is no dialog of the PersonaChat form."""
    return isinstance(value, dict) and layout_of_rows(value) not in (None, DIALOG_LAYOUT)


def unknown_layout(columns: Iterable[str], where: Path | str) -> UserError:
    """Return the error that lists what was expected, and which key may be meant by which."""
    found = sorted(map(str, columns))
    needed = {key for layout in LAYOUTS[:2] for key in layout.needed} - set(found)
    likely = {name: key_meant(name, sorted(needed)) for name in found if name not in REPLY_KEYS}
    hint = "".join(f"; did you mean {key} by {name}?" for name, key in likely.items() if key)
    shown = ", or ".join(layout.shown for layout in LAYOUTS)
    return UserError(f"{argument('dataset_path')} {where}: its columns are {', '.join(found) or 'none'}; needed are "
                     f"{shown}{hint or '.'}")  # fmt: skip


def place_of_row(where: Path | str, part: str, number: int, kind: str = "row") -> str:
    return f"{where}: {part} {kind} {number}" if part else f"{where}: {kind} {number}"


def read_rows(rows: Iterable[tuple[str, Any]], reading: Reading, layout: Layout | None = None) -> Iterator[Dialog]:
    """Yield the dialogs that rows make up, by the layout given or that of the first row that is none to be skipped.

    A row with a fault raises UserError, or is skipped and counted, as the reading's options say.
    """

    def of_one(reading: Reading, place: str, row: Any) -> list[Dialog]:
        nonlocal layout
        if not isinstance(row, dict):
            raise UserError(f"{place} must be an object, not {kind_of(row)}.")
        found = layout or layout_of_rows(row)
        if found is None:
            raise unknown_layout(row, place)
        try:
            dialogs = found.read(reading, place, row)
        except TooManyTurns as error:
            raise UserError(f"{place}: {error}") from error
        layout = found  # not of a row with a fault, which may be of another layout
        return dialogs

    replies: Replies | None = None
    for place, row in rows:
        found = reading.attempt(of_one, place, row)
        if found is None:
            continue
        reading.n_read += 1
        if layout is not REPLY_LAYOUT:
            yield from found
            continue
        replies = replies or Replies()
        for reply in found:
            replies.add(reply)
    if replies is not None:
        yield from map(_joined_replies, replies.conversations())


def _read_dialog(reading: Reading, place: str, row: Row) -> list[Dialog]:
    dialog = row | {"utterances": one_by_one(row.get("utterances"))}
    check_dialog(dialog, place, reading.keys)
    return [dialog]


def _read_plain(reading: Reading, place: str, row: Row) -> list[Dialog]:
    """Return a dialog of which the turns are all there is: every second one is a reply."""
    reading.keys.check(row, frozenset({"dialog"}), place)
    check_strings(row.get("dialog"), f'{place}, key "dialog"')
    # Only texts that are empty could bring two turns of one speaker together; these join as elsewhere.
    turns = joined((Turn(number % 2 == 1, text) for number, text in enumerate(row["dialog"])), reading.losses)
    return learned([], turns, reading.losses)


def _read_reply(reading: Reading, place: str, row: Row) -> list[Row]:
    """Return a row of one reply as it is, checked, which _joined_replies takes."""
    reading.keys.check(row, REPLY_KEYS, place)
    for key in ("history", "candidates"):
        check_strings(row.get(key), f'{place}, key "{key}"')
    if not row["candidates"]:
        raise UserError(f'{place}, key "candidates" is empty; it needs at least the gold reply.')
    if row.get("personality") is not None:
        check_strings(row["personality"], f'{place}, key "personality"')
    if not isinstance(row.get("conv_id"), int | float | str | None):
        raise UserError(f'{place}, key "conv_id" must be a number or a string, not {kind_of(row["conv_id"])}.')
    if not isinstance(row.get("utterance_idx"), int | float | None):
        raise UserError(f'{place}, key "utterance_idx" must be a number, not {kind_of(row["utterance_idx"])}.')
    return [row]


def _joined_replies(replies: list[Row]) -> Dialog:
    """Return the dialog that its rows of one reply each, in their order, make up."""
    utterances = [{"history": row["history"], "candidates": row["candidates"]} for row in replies]
    persona: list[str] = next((row["personality"] for row in replies if row.get("personality")), [])
    return {"personality": persona, "utterances": utterances}


DIALOG_LAYOUT = Layout(frozenset({"utterances"}), "personality and utterances", _read_dialog)
# Rows of equal `conv_id` make up a dialog, in the order of the first ones; without it a row is a dialog by itself.
REPLY_LAYOUT = Layout(frozenset({"history", "candidates"}), "personality, history and candidates", _read_reply)
# In the order of recognition: preference sets often carry the messages once more.
LAYOUTS = (
    DIALOG_LAYOUT,
    REPLY_LAYOUT,
    Layout(frozenset({"chosen", "rejected"}), "prompt, chosen and rejected", read_preferences),
    Layout(frozenset({"messages"}), "messages", read_messages),
    Layout(frozenset({"conversations"}), "conversations", read_sharegpt),
    Layout(frozenset({CONVERSATION}), f"{', '.join(PERSONAS)} and {CONVERSATION}", read_sides),
    Layout(frozenset({"dialog"}), "dialog", _read_plain),
)
