r"""Chat messages into dialogs, and a dialog as messages.

    {"messages": [{"role": "system", "content": "i have a dog .\ni am old ."},
                  {"role": "user", "content": "any pets ?"}, {"role": "assistant", "content": "a dog ."}]}
    {"conversations": [{"from": "human", "value": "any pets ?"}, {"from": "gpt", "value": "a dog ."}]}

The system's message is the persona. Each of the assistant's turns is a reply to learn.
"""

import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from convai.data.conversation import Dialog, Row, Turn, joined, learned, lines_of
from convai.data.schema import KeyCheck, Losses, kind_of, one_by_one
from convai.errors import UserError
from convai.model.word_splitting import MAX_WORDS, cut_overlong_words

_SYSTEM, _USER, _ASSISTANT = "system", "user", "assistant"
_ROLES = {_SYSTEM: _SYSTEM, _USER: _USER, "human": _USER, _ASSISTANT: _ASSISTANT, "gpt": _ASSISTANT}


class _Names(NamedTuple):
    """What a message calls who speaks and what is said."""

    role: str
    text: str


_MESSAGE, _SHAREGPT = _Names("role", "content"), _Names("from", "value")


class Spoken(NamedTuple):
    """What a list of messages holds."""

    persona: list[str]
    turns: list[Turn]


def read_messages(rows: Iterable[tuple[str, Row]], keys: KeyCheck, losses: Losses) -> list[Dialog]:
    """Return the dialogs of rows with `messages`; each comes with its place."""
    return _read(rows, "messages", keys, losses)


def read_sharegpt(rows: Iterable[tuple[str, Row]], keys: KeyCheck, losses: Losses) -> list[Dialog]:
    """Return the dialogs of rows with `conversations`; each comes with its place."""
    return _read(rows, "conversations", keys, losses)


def _read(rows: Iterable[tuple[str, Row]], key: str, keys: KeyCheck, losses: Losses) -> list[Dialog]:
    dialogs = []
    for place, row in rows:
        keys.check(row, frozenset({key}), place)
        spoken = spoken_in(row.get(key), f'{place}, key "{key}"', keys, losses)
        dialogs += learned(spoken.persona, joined(spoken.turns, losses), losses)
    return dialogs


def spoken_in(value: Any, place: str, keys: KeyCheck, losses: Losses) -> Spoken:
    """Return persona and turns of a list of messages in either naming; UserError, naming the place, where it is none.

    Messages of other roles are counted as lost, and so are the system's that come after the first turn.
    """
    messages = one_by_one(value)
    if not isinstance(messages, list):
        raise UserError(f"{place} must be a list of messages, not {kind_of(messages)}.")
    spoken = Spoken([], [])
    for number, message in enumerate(messages):
        where = f"{place}, message {number}"
        if not isinstance(message, dict):
            raise UserError(f"{where} must be an object, not {kind_of(message)}.")
        names = _SHAREGPT if _SHAREGPT.role in message else _MESSAGE
        keys.check(message, frozenset(names), where)
        role = message.get(names.role)
        if not isinstance(role, str):
            raise UserError(f'{where}, key "{names.role}" must be a string, one of {", ".join(_ROLES)}, not '
                            f"{kind_of(role)}.")  # fmt: skip
        known = _ROLES.get(role.strip().lower())
        if known is None:
            losses.counts[f'messages of the role "{role}", which are left out'] += 1
            continue
        text = message.get(names.text)
        if text is None and known == _ASSISTANT:
            text = ""  # it called a tool; that it said nothing is counted with the empty turns
        if not isinstance(text, str):
            raise UserError(f'{where}, key "{names.text}" must be a string, not {kind_of(text)}; write the text alone.')
        if known != _SYSTEM:
            spoken.turns.append(Turn(known == _ASSISTANT, text))
        elif spoken.turns:
            losses.counts["messages of the system after the first turn, which are left out"] += 1
        else:
            spoken.persona.extend(persona_of(text))
    return spoken


def message_line(persona: Sequence[str], history: Sequence[str], agent_begins: bool = False) -> str:
    """Return a dialog as one line of JSON, which read_messages reads back as it was."""
    turns = enumerate(history, start=int(agent_begins))
    messages = [{"role": (_USER, _ASSISTANT)[i % 2], "content": turn} for i, turn in turns]
    if persona:
        # The line break at the end of a lone sentence keeps it from being split where it holds several.
        text = "\n".join(persona) + ("\n" if len(persona) == 1 else "")
        messages = [{"role": _SYSTEM, "content": text}, *messages]
    return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"


def persona_of(text: str) -> list[str]:
    """Return the sentences of the system's message: a line each, or those of the one line that there is."""
    return lines_of(text) if "\n" in text else lines_of("\n".join(_split(text)))


def _split(text: str) -> list[str]:
    splitter = _splitter()
    sentences = [str(sentence) for sentence in splitter(cut_overlong_words(text)).sents]
    if len(splitter.vocab) > MAX_WORDS:
        _splitter.cache_clear()
    return sentences


@cache
def _splitter() -> Any:
    # Importing spaCy takes seconds: only when there is text to split.
    from spacy.lang.en import English

    nlp = English()
    nlp.add_pipe("sentencizer")
    nlp.max_length = 2**31  # the limit is for models that take much memory, of which there is none here
    return nlp
