"""Turns as they were said into a dialog of the PersonaChat form: whose replies are learned, and what stood before."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from convai.data.schema import Losses
from convai.errors import UserError

Row = dict[str, Any]
Dialog = dict[str, Any]

# Each reply has its history as a list, so memory grows with the square of a dialog's turns.
MAX_TURNS = 2**13


class TooManyTurns(UserError):
    """A conversation with more turns than are read as one."""


class Turn(NamedTuple):
    """What one speaker said; `is_own` where it is the agent."""

    is_own: bool
    text: str


def joined(turns: Iterable[Turn], losses: Losses) -> list[Turn]:
    """Return the turns with space around them removed, those of one speaker in a row joined, empty ones left out."""
    whole: list[Turn] = []
    for is_own, said in turns:
        text = said.strip()
        if not text:
            losses.counts["turns without text, which are left out"] += 1
        elif whole and whole[-1].is_own == is_own:
            whole[-1] = Turn(is_own, f"{whole[-1].text} {text}")
        else:
            whole.append(Turn(is_own, text))
    return whole


def learned(persona: Sequence[str], turns: Sequence[Turn], losses: Losses) -> list[Dialog]:
    """Return the dialog in which each own turn is a reply to those before it; none, counted, without an own turn.

    The turns alternate, as `joined` returns them.
    """
    if len(turns) > MAX_TURNS:
        raise TooManyTurns(f"it has {len(turns):,} turns; part it into dialogs of {MAX_TURNS:,} at most.")
    texts = [turn.text for turn in turns]
    utterances = [{"history": texts[:n], "candidates": [turn.text]} for n, turn in enumerate(turns) if turn.is_own]
    if not utterances:
        losses.counts["conversations without a reply to learn, which are left out"] += 1
        return []
    losses.counts["turns after a conversation's last reply, which are left out"] += not turns[-1].is_own
    return [{"personality": list(persona), "utterances": utterances}]


def lines_of(text: str) -> list[str]:
    """Return the lines of a text that hold something, without space around them."""
    return [line.strip() for line in text.split("\n") if line.strip()]
