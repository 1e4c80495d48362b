"""Several data sets as one: a view of their splits, which stay in the stores that they are in.

The examples of a source are numbered in a row, after those of the sources before it. Its weight is how often its
examples are seen an epoch: 2 is twice, 0.5 every second time. Of a fraction each epoch takes the next examples of a
seeded order, so that with a weight of 0.5 two epochs see all of a source. Validation sees every example once.
"""

import bisect
import random
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from convai.data.distractors import Decode
from convai.data.store import DialogSplit, Example, TokenIds
from convai.data.weighted import WeightedSource


class Mixture(Sequence[Example]):
    """The examples of one split of several data sets; distractors are drawn from the example's own source."""

    def __init__(self, sources: Sequence[WeightedSource], parts: Sequence[DialogSplit]):
        self.name = parts[0].name
        self.sources = tuple(source.name for source in sources)
        self.weights = [source.weight for source in sources]
        self.parts = parts
        self._example_ends = list(accumulate(map(len, parts)))
        self._dialog_ends = list(accumulate(part.n_dialogs for part in parts))

    def __len__(self) -> int:
        return self._example_ends[-1]

    def __getitem__(self, index: int) -> Example:  # type: ignore[override] # one at a time, no slices
        return self.example(index)

    @property
    def n_dialogs(self) -> int:
        return self._dialog_ends[-1]

    def example(self, index: int, num_candidates: int | None = None, n_drawn: int = 0) -> Example:
        """Return example `index`, as DialogSplit.example does."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        number, within = _located(self._example_ends, index)
        return self.parts[number].example(within, num_candidates, n_drawn)

    def draw_by(self, kind: str, decode: Decode) -> int:
        """From now on draw distractors of this kind, each source's from itself; return for how many examples."""
        return sum(part.draw_by(kind, decode) for part in self.parts)

    def persona(self, dialog: int) -> list[TokenIds]:
        """Return the persona sentences of a dialog."""
        number, within = _located(self._dialog_ends, dialog)
        return self.parts[number].persona(within)

    def source_of(self, index: int) -> int:
        """Return the number of the source that an example is of."""
        return _located(self._example_ends, index)[0]

    @property
    def n_seen(self) -> int:
        """How many examples an epoch has."""
        return sum(map(_n_seen, self.parts, self.weights))

    def seen_in(self, epoch: int, seed: int) -> np.ndarray:
        """Return the numbers (n_seen,) of the examples that epoch `epoch` (from 1 on) sees, source by source."""
        seen = []
        for number, (part, weight) in enumerate(zip(self.parts, self.weights, strict=True)):
            n_whole = int(weight)
            n_left = _n_seen(part, weight) - n_whole * len(part)
            generator = np.random.default_rng(random.Random(f"{seed} {number}").getrandbits(62))
            some = generator.permutation(len(part)).take(range((epoch - 1) * n_left, epoch * n_left), mode="wrap")
            numbers = np.concatenate([np.tile(np.arange(len(part)), n_whole), some])
            seen.append(numbers + self._example_ends[number] - len(part))
        return np.concatenate(seen)

    def described(self) -> str:
        """Return what it is made of, as "a.jsonl*1 (20 examples) + b.json*0.5 (30 examples)"."""
        told = zip(self.sources, self.weights, map(len, self.parts), strict=True)
        return " + ".join(f"{name}*{weight:g} ({n} examples)" for name, weight, n in told)


AnySplit = DialogSplit | Mixture


def _n_seen(part: DialogSplit, weight: float) -> int:
    """Return how many examples of a source an epoch has: at least one of those that there are."""
    return max(min(1, len(part)), round(weight * len(part)))


def _located(ends: list[int], index: int) -> tuple[int, int]:
    """Return the number of the part that holds an index, and the index within it."""
    number = bisect.bisect_right(ends, index)
    return number, index - (ends[number - 1] if number else 0)
