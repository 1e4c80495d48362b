"""Preference rows into dialogs: the chosen reply is the gold, the rejected one its distractor.

    {"prompt": "any pets ?", "chosen": "a dog .", "rejected": "i do not care ."}

Each of the three is a string or a list of messages. Where `chosen` and `rejected` hold the whole conversation, the
prompt may be left out, or stand in both.
"""

from collections.abc import Iterable

from convai.data.conversation import Dialog, Row, Turn, joined
from convai.data.messages import Spoken, spoken_in
from convai.data.schema import KeyCheck, Losses
from convai.errors import UserError

PREFERENCE_KEYS = frozenset({"prompt", "chosen", "rejected"})


def read_preferences(rows: Iterable[tuple[str, Row]], keys: KeyCheck, losses: Losses) -> list[Dialog]:
    """Return a dialog of one reply for each row; each comes with its place."""
    return [_dialog(row, place, keys, losses) for place, row in rows]


def _dialog(row: Row, place: str, keys: KeyCheck, losses: Losses) -> Dialog:
    keys.check(row, PREFERENCE_KEYS, place)
    prompt = Spoken([], [])
    if row.get("prompt") is not None:
        prompt = _spoken(row, "prompt", place, keys, losses)
    chosen, rejected = (
        _after(prompt, _spoken(row, key, place, keys, losses), key, place) for key in ("chosen", "rejected")
    )
    if (chosen.persona, chosen.turns[:-1]) != (rejected.persona, rejected.turns[:-1]):
        raise UserError(f'{place}: "chosen" and "rejected" differ before their last replies; give both the same '
                        'conversation, or put it into "prompt".')  # fmt: skip
    *history, gold = [turn.text for turn in chosen.turns]
    utterance = {"history": history, "candidates": [rejected.turns[-1].text, gold]}
    return {"personality": chosen.persona, "utterances": [utterance]}


def _after(prompt: Spoken, spoken: Spoken, key: str, place: str) -> Spoken:
    """Return what is said from the prompt, where `spoken` does not repeat it, up to a reply, which is the last turn."""
    turns = spoken.turns
    if turns[: len(prompt.turns)] != prompt.turns:
        turns = joined([*prompt.turns, *turns], Losses())  # nothing is lost: empty turns are out already
    if not spoken.turns or not turns[-1].is_own:
        raise UserError(f'{place}, key "{key}" must end with a reply of the assistant; add one, or remove the row.')
    if len(turns) == 1:
        raise UserError(f'{place}: there is nothing that "{key}" replies to; give the turns before it as "prompt".')
    return Spoken(spoken.persona or prompt.persona, turns)


def _spoken(row: Row, key: str, place: str, keys: KeyCheck, losses: Losses) -> Spoken:
    value = row.get(key)
    if isinstance(value, str):
        return Spoken([], joined([Turn(key != "prompt", value)], losses))
    persona, turns = spoken_in(value, f'{place}, key "{key}"', keys, losses)
    return Spoken(persona, joined(turns, losses))
