r"""Chat messages into dialogs, and a dialog as messages.

    {"messages": [{"role": "system", "content": "i have a dog .\ni am old ."},
                  {"role": "user", "content": "any pets ?"}, {"role": "assistant", "content": "a dog ."}]}
    {"conversations": [{"from": "human", "value": "any pets ?"}, {"from": "gpt", "value": "a dog ."}]}

The system's message is the persona. Each of the assistant's turns is a reply to learn.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from convai.data.conversation import Dialog, Row, Turn, joined, learned, lines_of
from convai.data.reading import Reading
from convai.data.schema import kind_of, one_by_one
from convai.data.sentences import split_sentences
from convai.errors import UserError

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


def read_messages(reading: Reading, place: str, row: Row) -> list[Dialog]:
    """Return the dialog of a row with `messages`."""
    return _read(reading, place, row, "messages")


def read_sharegpt(reading: Reading, place: str, row: Row) -> list[Dialog]:
    """Return the dialog of a row with `conversations`."""
    return _read(reading, place, row, "conversations")


def _read(reading: Reading, place: str, row: Row, key: str) -> list[Dialog]:
    reading.keys.check(row, frozenset({key}), place)
    spoken = spoken_in(reading, row.get(key), f'{place}, key "{key}"')
    return learned(spoken.persona, joined(spoken.turns, reading.losses), reading.losses)


def spoken_in(reading: Reading, value: Any, place: str) -> Spoken:
    """Return persona and turns of a list of messages in either naming; UserError, naming the place, where it is none.

    Messages of other roles are counted as lost, and so are the system's that come after the first turn or, where that
    is no persona, all of them.
    """
    lost = reading.losses.counts
    messages = one_by_one(value)
    if not isinstance(messages, list):
        raise UserError(f"{place} must be a list of messages, not {kind_of(messages)}.")
    spoken = Spoken([], [])
    for number, message in enumerate(messages):
        where = f"{place}, message {number}"
        if not isinstance(message, dict):
            raise UserError(f"{where} must be an object, not {kind_of(message)}.")
        names = _SHAREGPT if _SHAREGPT.role in message else _MESSAGE
        reading.keys.check(message, frozenset(names), where)
        role = message.get(names.role)
        if not isinstance(role, str):
            raise UserError(f'{where}, key "{names.role}" must be a string, one of {", ".join(_ROLES)}, not '
                            f"{kind_of(role)}.")  # fmt: skip
        known = _ROLES.get(role.strip().lower())
        if known is None:
            lost[f'messages of the role "{role}", which are left out'] += 1
            continue
        text = message.get(names.text)
        if text is None and known == _ASSISTANT:
            text = ""  # it called a tool; that it said nothing is counted with the empty turns
        if not isinstance(text, str):
            raise UserError(f'{where}, key "{names.text}" must be a string, not {kind_of(text)}; write the text alone.')
        if known != _SYSTEM:
            spoken.turns.append(Turn(known == _ASSISTANT, text))
        elif spoken.turns:
            lost["messages of the system after the first turn, which are left out"] += 1
        elif reading.options.persona_from == "none":
            lost["messages of the system, which are left out as they are no persona here"] += 1
        else:
            spoken.persona.extend(persona_of(text))
    return spoken


def messages_of(persona: Sequence[str], turns: Sequence[str], user_opens: bool = True) -> dict[str, list[Row]]:
    """Return a dialog as a row that read_messages reads back as it was, of turns by one speaker and the other."""
    roles = (_USER, _ASSISTANT) if user_opens else (_ASSISTANT, _USER)
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    if persona:
        # The line break at the end of a lone sentence keeps it from being split where it holds several.
        text = "\n".join(persona) + ("\n" if len(persona) == 1 else "")
        messages = [{"role": _SYSTEM, "content": text}, *messages]
    return {"messages": messages}


def message_line(persona: Sequence[str], history: Sequence[str], agent_begins: bool = False) -> str:
    """Return a dialog as one line of JSON."""
    return json.dumps(messages_of(persona, history, not agent_begins), ensure_ascii=False) + "\n"


def persona_of(text: str) -> list[str]:
    """Return the sentences of the system's message: a line each, or those of the one line that there is."""
    return lines_of(text) if "\n" in text else split_sentences(text)
