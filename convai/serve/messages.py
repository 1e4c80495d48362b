"""Chat messages to what a reply answers: the persona's sentences, and the turns so far."""

from collections.abc import Sequence
from typing import NamedTuple

from convai.data.conversation import Turn, joined
from convai.data.messages import persona_of
from convai.data.schema import Losses
from convai.io.plain_text import plain_line
from convai.serve.errors import ApiError
from convai.serve.schemas import Message

MAX_PERSONA = 10_000  # characters; to split a hundred times as many takes seconds, and no model reads them


class Asked(NamedTuple):
    """A dialog that waits for the agent's turn: its last turn is the user's, or there is none yet."""

    persona: list[str]
    turns: list[str]


def dialog_of(messages: Sequence[Message], max_messages: int) -> Asked:
    """Return persona and turns of a request, read as training data are: turns of one speaker in a row are one.

    ApiError (400) where there are too many, where the system speaks late, or where it is not the agent's turn.
    """
    if len(messages) > max_messages:
        raise _wrong(f"there are {len(messages)} messages, and {max_messages} are the most; send the last ones")
    persona: list[str] = []
    said: list[Turn] = []
    for number, message in enumerate(messages):
        if message.role in ("system", "developer"):
            if said:
                raise _wrong(f"messages[{number}]: the system's message is the persona and must come first")
            if len(message.text) > MAX_PERSONA:
                raise _wrong(f"messages[{number}]: a persona has {MAX_PERSONA} characters at most")
            persona += persona_of(message.text)
        elif message.content is None and message.role == "user":
            raise _wrong(f"messages[{number}]: the user's content must be text")
        else:
            said.append(Turn(message.role == "assistant", message.text))
    turns = joined(said, Losses())
    if said and not said[-1].is_own and not plain_line(said[-1].text):
        raise _wrong("the last message is empty; the agent has nothing to answer")
    if turns and turns[-1].is_own:
        raise _wrong("messages must end with the user's turn; to have the agent speak for the user, swap the roles")
    sentences = [line for line in map(plain_line, persona) if line]
    return Asked(sentences, [turn.text for turn in turns])


def _wrong(message: str) -> ApiError:
    return ApiError(400, message, param="messages")


def check_characters(texts: Sequence[str], max_characters: int) -> None:
    """ApiError (400) where texts are longer together than allowed."""
    if (n := sum(map(len, texts))) > max_characters:
        raise ApiError(400, f"the texts have {n} characters together, and {max_characters} are the most")
