"""A data set of PersonaChat's size, made out of a smaller one: as many dialogs and candidates, as much repetition.

PersonaChat's file holds each conversation twice, once for each partner's persona, and offers beside each gold reply 19
that were said elsewhere; so most of its strings are repetitions, which is what tokenizing it fast depends on.
"""

import random
from collections.abc import Iterator, Sequence

from convai.data.conversation import Dialog

PERSONACHAT_DIALOGS = {"train": 17_878, "valid": 1_000}
N_CANDIDATES = 20
N_TURNS = 15  # of a conversation: 7 or 8 replies for each partner


def enlarged(dialogs: Sequence[Dialog], n_dialogs: int, seed: int) -> list[Dialog]:
    """Return `n_dialogs` dialogs that say what `dialogs` do in other combinations, a word of each turn replaced."""
    drawn = random.Random(seed)
    said = [dialog["utterances"][-1] for dialog in dialogs]
    turns = sorted({turn for last in said for turn in [*last["history"], last["candidates"][-1]]})
    words = [word for turn in turns for word in turn.split()]
    personas = [dialog["personality"] for dialog in dialogs]

    def vary(turn: str) -> str:
        spoken = turn.split() or [""]
        spoken[drawn.randrange(len(spoken))] = drawn.choice(words)
        return " ".join(spoken)

    conversations = [[vary(drawn.choice(turns)) for _ in range(N_TURNS)] for _ in range(-(-n_dialogs // 2))]
    replies = [turn for conversation in conversations for turn in conversation]

    def sides() -> Iterator[Dialog]:
        for conversation in conversations:
            for first in (1, 0):  # the first to speak answers to turns 1, 3, ..., the second to turns 0, 2, ...
                utterances = [
                    {
                        "history": conversation[:n] or ["hello"],
                        "candidates": [*drawn.choices(replies, k=N_CANDIDATES - 1), conversation[n]],
                    }
                    for n in range(first, N_TURNS, 2)
                ]
                yield {"personality": drawn.choice(personas), "utterances": utterances}

    return list(sides())[:n_dialogs]
