"""A dialog of the PersonaChat form as what was said and answered, one after the other: how other forms keep dialogs."""

from collections.abc import Sequence
from typing import NamedTuple

from convai.data.conversation import Dialog
from convai.data.schema import Losses


class Exchange(NamedTuple):
    """What the user said, None where the agent opened the dialog, and the agent's reply."""

    said: str | None
    reply: str
    distractors: Sequence[str] = ()


def conversations_of(dialog: Dialog, losses: Losses) -> list[list[Exchange]]:
    """Return the conversations that a dialog consists of: one, or more where a history does not go on with the last.

    In forms where a conversation is all there is, each of its replies is one to learn. What the dialog has otherwise is
    counted as lost.
    """
    conversations: list[list[Exchange]] = []
    spoken: list[str] = []
    for utterance in dialog["utterances"]:
        history = utterance["history"]
        *distractors, gold = utterance["candidates"]
        new = history[len(spoken) :]
        if not conversations or history[: len(spoken)] != spoken or len(new) % 2 == 0:
            conversations.append([])
            new = history
        # Roles are counted from the reply backwards: before it the user spoke.
        agent_opens = len(new) % 2 == 0
        said: list[str | None] = [None, *new[1::2]] if agent_opens else [*new[::2]]
        replies = new[::2] if agent_opens else new[1::2]
        conversations[-1] += map(Exchange, said, replies)
        conversations[-1].append(Exchange(said[-1], gold, distractors))
        losses.counts["earlier replies that were only read, which become replies to learn"] += len(replies)
        spoken = [*history, gold]
    n_more = len(conversations) - 1
    losses.counts["conversations more than dialogs, as a history does not go on with the one before"] += n_more
    return conversations
