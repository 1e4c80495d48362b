"""Data sets of any size, made out of a smaller one: with PersonaChat's shape and repetition.

PersonaChat's file holds each conversation twice, once for each partner's persona, and offers beside each gold reply 19
that were said elsewhere; so most of its strings are repetitions, which is what tokenizing it fast depends on.
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from convai.data.conversation import Dialog
from convai.data.messages import message_line

PERSONACHAT_DIALOGS = {"train": 17_878, "valid": 1_000}
N_CANDIDATES = 20
N_TURNS = 15  # of a conversation: 7 or 8 replies for each partner


class Conversations:
    """Conversations that say what `dialogs` do in other combinations, a word of each turn replaced."""

    def __init__(self, dialogs: Sequence[Dialog], seed: int):
        said = [dialog["utterances"][-1] for dialog in dialogs]
        self.turns = sorted({turn for last in said for turn in [*last["history"], last["candidates"][-1]]})
        self.words = [word for turn in self.turns for word in turn.split()]
        self.personas = [dialog["personality"] for dialog in dialogs]
        self.drawn = random.Random(seed)

    def one(self) -> list[str]:
        """Return the turns of a conversation, other ones by each call."""
        return [self._vary(self.drawn.choice(self.turns)) for _ in range(N_TURNS)]

    def _vary(self, turn: str) -> str:
        spoken = turn.split() or [""]
        spoken[self.drawn.randrange(len(spoken))] = self.drawn.choice(self.words)
        return " ".join(spoken)


def enlarged(dialogs: Sequence[Dialog], n_dialogs: int, seed: int) -> list[Dialog]:
    """Return `n_dialogs` dialogs of both sides of such conversations, with candidates."""
    return list(_sides(Conversations(dialogs, seed), n_dialogs))


def _sides(made: Conversations, n_dialogs: int) -> Iterator[Dialog]:
    conversations = [made.one() for _ in range(-(-n_dialogs // 2))]
    replies = [turn for conversation in conversations for turn in conversation]
    for number in range(n_dialogs):
        conversation = conversations[number // 2]
        # The first to speak answers to turns 1, 3, ..., the second to turns 0, 2, ...
        utterances = [
            {
                "history": conversation[:n] or ["hello"],
                "candidates": [*made.drawn.choices(replies, k=N_CANDIDATES - 1), conversation[n]],
            }
            for n in range((number + 1) % 2, N_TURNS, 2)
        ]
        yield {"personality": made.drawn.choice(made.personas), "utterances": utterances}


def write_personachat(path: Path, dialogs: Sequence[Dialog], n_dialogs: int, seed: int) -> None:
    """Write that many dialogs as one line of JSON, dialog after dialog."""
    with open(path, "w", encoding="utf-8") as file:
        for number, dialog in enumerate(_sides(Conversations(dialogs, seed), n_dialogs)):
            file.write(f"{',' if number else '['}{json.dumps(dialog)}")
        file.write("]")


def write_messages(path: Path, dialogs: Sequence[Dialog], n_dialogs: int, seed: int) -> None:
    """Write that many dialogs as chat messages, a line each; both sides of a conversation have the same turns."""
    made, turns = Conversations(dialogs, seed), list[str]()
    with open(path, "w", encoding="utf-8") as file:
        for number in range(n_dialogs):
            turns = turns if number % 2 else made.one()
            file.write(message_line(made.drawn.choice(made.personas), turns))
