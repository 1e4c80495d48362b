"""How distractors are drawn for an example whose data offer only the gold reply.

    random                   gold replies of other dialogs
    same_speaker_other_turn  the other gold replies of its own dialog, in a drawn order: what fits the persona, too, but
                             not this turn; where they are too few, others at random
    similar                  gold replies of other dialogs that are most like the gold one in their words, by BM25
                             (Robertson and Zaragoza, 2009); where too few share any, others at random

Each kind draws the same ones for an example every time, by the data's own seed; they are all different, and none is the
gold reply once more (see same_reply).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from convai.data.held_out import DATA_SEED
from convai.data.same_reply import normalize_answer

# Replies that `similar` chooses among, a drawn sample of larger data: some 100 MB, and a millisecond or two a look-up.
N_SIMILAR = 200_000
_N_REMEMBERED = 200_000  # examples whose similar replies are kept: validation asks for the same ones again and again

logger = logging.getLogger(__name__)


class Replies(Protocol):
    """What drawing asks of a split of E examples."""

    def __len__(self) -> int: ...

    def golds(self) -> np.ndarray:
        """Return the utterance number of each example's gold reply, (E,)."""

    def gold(self, index: int) -> int:
        """Return the utterance number of an example's gold reply."""

    def examples_beside(self, index: int) -> range:
        """Return the examples of an example's dialog, itself among them."""

    def utterance(self, number: int) -> list[int]:
        """Return the token ids of an utterance."""

    def identity(self, number: int) -> set[Any]:
        """Return what two utterances share where they count as the same reply."""


Decode = Callable[[Sequence[int]], str]
Draw = Callable[[Replies, int, int], list[int]]  # split, example, how many -> examples whose gold replies distract


def drawing(kind: str, replies: Replies, decode: Decode) -> Draw:
    """Return how distractors of a kind are drawn in a split; `decode` makes text of token ids."""
    return _PLAIN[kind] if kind in _PLAIN else Similar(replies, decode)


def draw_at_random(replies: Replies, index: int, n: int) -> list[int]:
    """Return `n` examples of other dialogs; fewer where need be."""
    return _Drawn(replies, index, n).filled()


def draw_of_same_speaker(replies: Replies, index: int, n: int) -> list[int]:
    """Return the other examples of the dialog, `n` at most, and for those that are missing some of other dialogs."""
    drawn, own = _Drawn(replies, index, n), replies.examples_beside(index)
    for other in np.random.default_rng((DATA_SEED, index)).permutation(len(own)):
        drawn.take(own[other])
    return drawn.filled()


class Similar:
    """Draws the replies that are most like the gold one; made once for a split, it holds an index over its words."""

    def __init__(self, replies: Replies, decode: Decode):
        import bm25s  # late: it is for this kind alone

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # as imported it reports every step
        self.decode = decode
        # Equal replies once, each by the first example that has it.
        self.utterances, self.examples = np.unique(replies.golds(), return_index=True)
        if len(self.utterances) > N_SIMILAR:
            chosen = np.random.default_rng(DATA_SEED).choice(len(self.utterances), N_SIMILAR, replace=False)
            logger.info("similar distractors are chosen among %d of the %d different replies", N_SIMILAR,
                        len(self.utterances))  # fmt: skip
            chosen.sort()
            self.utterances, self.examples = self.utterances[chosen], self.examples[chosen]
        self.word_ids: dict[str, int] = {}
        numbers = tqdm(self.utterances.tolist(), desc="indexing", unit=" replies", disable=None, leave=False)
        documents = [self._words(replies.utterance(number), learns=True) for number in numbers]
        self.index = bm25s.BM25()
        if self.word_ids:
            self.index.index((documents, self.word_ids), create_empty_token=False, show_progress=False)
        self._remembered: dict[tuple[int, int], list[int]] = {}

    def __call__(self, replies: Replies, index: int, n: int) -> list[int]:
        if (index, n) in self._remembered:
            return self._remembered[index, n]
        drawn = _Drawn(replies, index, n)
        own = {replies.gold(example) for example in replies.examples_beside(index)}
        for row in self._ranked(self._words(replies.utterance(replies.gold(index)))):
            if drawn.is_whole:
                break
            if self.utterances[row] not in own:
                drawn.take(int(self.examples[row]))
        found = drawn.filled()
        if len(self._remembered) < _N_REMEMBERED:
            self._remembered[index, n] = found
        return found

    def _words(self, ids: Sequence[int], learns: bool = False) -> list[int]:
        """Return the numbers of the words that count in comparing replies, of those that are known."""
        words = normalize_answer(self.decode(ids))
        if learns:
            return [self.word_ids.setdefault(word, len(self.word_ids)) for word in words]
        return [self.word_ids[word] for word in words if word in self.word_ids]

    def _ranked(self, words: list[int]) -> Iterator[int]:
        """Yield the rows that share a word, the most similar first; of equally similar ones the first in the data."""
        if not words:
            return
        scores = self.index.get_scores(words)
        n_sharing, n_done, n = int(np.count_nonzero(scores > 0)), 0, 64
        while n_done < n_sharing:
            n = min(n, n_sharing)
            rows = np.flatnonzero(scores >= np.partition(scores, -n)[-n])
            rows = rows[np.argsort(-scores[rows], kind="stable")]
            yield from rows[n_done:].tolist()
            n_done, n = len(rows), 8 * n


class _Drawn:
    """The distractors of one example as far as they are drawn: all different, and none the gold reply once more."""

    def __init__(self, replies: Replies, index: int, n: int):
        self.replies = replies
        self.index = index
        self.n = n
        self.examples: list[int] = []
        self.seen = replies.identity(replies.gold(index))

    @property
    def is_whole(self) -> bool:
        return len(self.examples) >= self.n

    def take(self, example: int) -> None:
        """Add an example, unless there are enough or its reply is one of those that are there."""
        identity = self.replies.identity(self.replies.gold(example))
        if not self.is_whole and self.seen.isdisjoint(identity):
            self.seen |= identity
            self.examples.append(example)

    def filled(self) -> list[int]:
        """Return them with what is missing drawn from other dialogs."""
        own = self.replies.examples_beside(self.index)
        n_others = len(self.replies) - len(own)
        if self.is_whole or not n_others:
            return self.examples
        # Twenty tries for each one wanted find it unless nearly all replies are alike.
        random = np.random.default_rng((DATA_SEED, self.index))
        for other in random.choice(n_others, size=min(20 * self.n, n_others), replace=False):
            if self.is_whole:
                break
            self.take(int(other if other < own.start else other + len(own)))
        return self.examples


_PLAIN: dict[str, Draw] = {"random": draw_at_random, "same_speaker_other_turn": draw_of_same_speaker}
