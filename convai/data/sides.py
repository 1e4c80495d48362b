r"""Conversations of two people with a persona each, as in Synthetic-Persona-Chat: a dialog of each side, or of one.

user 1 personas,user 2 personas,Best Generated Conversation
"I bake.\nI am tall.","I ski.","User 1: Hello!\nUser 2: Hi, do you ski?\nUser 1: I bake."
"""

import re
from typing import Any

from convai.data.conversation import Dialog, Row, Turn, joined, learned, lines_of
from convai.data.reading import Reading
from convai.data.schema import Losses, kind_of
from convai.errors import UserError

CONVERSATION = "Best Generated Conversation"
PERSONAS = ("user 1 personas", "user 2 personas")
_SPEAKERS = {"first": (1,), "second": (2,), "both": (1, 2)}
_SPEAKER = re.compile(r"User ?([12]) ?:(.*)", re.IGNORECASE)


class Side(dict[str, Any]):
    """The dialog of one side; `conversation` is the same for both, which must not be held out apart."""

    conversation = ""


def read_sides(reading: Reading, place: str, row: Row) -> list[Dialog]:
    """Return the dialogs of the chosen sides of a row's conversation."""
    reading.keys.check(row, frozenset({*PERSONAS, CONVERSATION}), place)
    said = _said(_text(row, CONVERSATION, place), place)
    personas = [lines_of(_text(row, column, place)) for column in PERSONAS]
    speakers = _SPEAKERS[reading.options.sides]
    dialogs: list[Dialog] = []
    for speaker in speakers:
        # What is lost is counted on one side: the other has the same turns, and replies to the last one.
        counted = reading.losses if speaker == speakers[0] else Losses()
        turns = joined([Turn(by == speaker, text) for by, text in said], counted)
        is_answered = len(speakers) > 1 and len(turns) > 1
        for dialog in learned(personas[speaker - 1], turns, Losses() if is_answered else reading.losses):
            side = Side(dialog)
            side.conversation = place
            dialogs.append(side)
    return dialogs


def _text(row: Row, key: str, place: str) -> str:
    value = row.get(key)
    if isinstance(value, str) or (value is None and key != CONVERSATION):
        return value or ""
    raise UserError(f'{place}, key "{key}" must be a string of lines, not {kind_of(value)}.')


def _said(text: str, place: str) -> list[tuple[int, str]]:
    """Return (1 or 2, what was said) for each turn; a line without a speaker goes on with the turn before it."""
    said: list[tuple[int, str]] = []
    for line in lines_of(text):
        if match := _SPEAKER.fullmatch(line):
            said.append((int(match[1]), match[2]))
        elif said:
            said[-1] = (said[-1][0], f"{said[-1][1]} {line}")
        else:
            raise UserError(f'{place}, key "{CONVERSATION}": its lines start with "User 1:" or "User 2:"; the first '
                            f"one starts with {line[:20]!r}.")  # fmt: skip
    if not said:
        raise UserError(f'{place}, key "{CONVERSATION}" is empty; fill or remove the row.')
    return said
