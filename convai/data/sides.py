r"""Conversations of two people with a persona each, as in Synthetic-Persona-Chat: two dialogs, one of each side.

user 1 personas,user 2 personas,Best Generated Conversation
"I bake.\nI am tall.","I ski.","User 1: Hello!\nUser 2: Hi, do you ski?\nUser 1: I bake."
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from convai.data.conversation import Dialog, Row, Turn, joined, learned, lines_of
from convai.data.schema import KeyCheck, Losses, kind_of
from convai.errors import UserError

CONVERSATION = "Best Generated Conversation"
PERSONAS = ("user 1 personas", "user 2 personas")
_SPEAKER = re.compile(r"User ?([12]) ?:(.*)", re.IGNORECASE)


class Side(dict[str, Any]):
    """The dialog of one side; `conversation` is the same for both, which must not be held out apart."""

    conversation = ""


def read_sides(rows: Iterable[tuple[str, Row]], keys: KeyCheck, losses: Losses) -> list[Dialog]:
    """Return the dialogs of both sides of each row's conversation; each row comes with its place."""
    dialogs: list[Dialog] = []
    for place, row in rows:
        keys.check(row, frozenset({*PERSONAS, CONVERSATION}), place)
        said = _said(_text(row, CONVERSATION, place), place)
        for speaker, column in enumerate(PERSONAS, start=1):
            persona = lines_of(_text(row, column, place))
            # What is lost is counted on one side: the other has the same turns, and replies to the last one.
            counted = losses if speaker == 1 else Losses()
            turns = joined([Turn(by == speaker, text) for by, text in said], counted)
            for dialog in learned(persona, turns, Losses() if len(turns) > 1 else losses):
                side = Side(dialog)
                side.conversation = place
                dialogs.append(side)
    return dialogs


def held_out_together(dialogs: Sequence[Dialog]) -> list[list[int]]:
    """Return the numbers of the dialogs, those of one conversation together, in their order."""
    groups: dict[Any, list[int]] = {}
    for number, dialog in enumerate(dialogs):
        groups.setdefault(getattr(dialog, "conversation", number), []).append(number)
    return list(groups.values())


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
