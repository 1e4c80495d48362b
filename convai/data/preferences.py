"""Preference rows into dialogs: the chosen reply is the gold, the rejected one its distractor.

    {"prompt": "any pets ?", "chosen": "a dog .", "rejected": "i do not care ."}

Each of the three is a string or a list of messages. Where `chosen` and `rejected` hold the whole conversation, the
prompt may be left out, or stand in both.
"""

from convai.data.conversation import Dialog, Row, Turn, joined
from convai.data.messages import Spoken, spoken_in
from convai.data.reading import Reading
from convai.data.schema import Losses
from convai.errors import UserError

PREFERENCE_KEYS = frozenset({"prompt", "chosen", "rejected"})


def read_preferences(reading: Reading, place: str, row: Row) -> list[Dialog]:
    """Return a row's dialog, which has one reply."""
    reading.keys.check(row, PREFERENCE_KEYS, place)
    prompt = Spoken([], [])
    if row.get("prompt") is not None:
        prompt = _spoken(reading, row, "prompt", place)
    chosen, rejected = (_after(prompt, _spoken(reading, row, key, place), key, place) for key in ("chosen", "rejected"))
    if (chosen.persona, chosen.turns[:-1]) != (rejected.persona, rejected.turns[:-1]):
        raise UserError(f'{place}: "chosen" and "rejected" differ before their last replies; give both the same '
                        'conversation, or put it into "prompt".')  # fmt: skip
    *history, gold = [turn.text for turn in chosen.turns]
    utterance = {"history": history, "candidates": [rejected.turns[-1].text, gold]}
    return [{"personality": chosen.persona, "utterances": [utterance]}]


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


def _spoken(reading: Reading, row: Row, key: str, place: str) -> Spoken:
    value = row.get(key)
    if isinstance(value, str):
        return Spoken([], joined([Turn(key != "prompt", value)], reading.losses))
    persona, turns = spoken_in(reading, value, f'{place}, key "{key}"')
    return Spoken(persona, joined(turns, reading.losses))
