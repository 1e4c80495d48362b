"""Lengths counted, one number for each length: their quantiles, and their histogram in a line of text."""

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = ".:-=+*#@"


class Place(NamedTuple):
    """Where something stands: numbers from 0, of the dialog in its part and of the utterance in the dialog."""

    dialog: int
    utterance: int | None = None

    def __str__(self) -> str:
        where = f"dialog {self.dialog}"
        return where if self.utterance is None else f"{where}, utterance {self.utterance}"


class Lengths:
    """How often each length occurs, and where the longest one is."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.longest: Place | None = None
        self.longest_text = ""
        self._max = -1

    def add(self, length: int, place: Place, text: str = "") -> None:
        self.counts[length] += 1
        if length > self._max:
            self._max, self.longest, self.longest_text = length, place, text

    def __bool__(self) -> bool:
        return bool(self.counts)

    @property
    def n(self) -> int:
        return self.counts.total()

    @property
    def min(self) -> int:
        return min(self.counts)

    @property
    def max(self) -> int:
        return self._max

    @property
    def mean(self) -> float:
        return sum(length * n for length, n in self.counts.items()) / self.n

    def quantile(self, share: float) -> int:
        """Return the smallest length that at least this share of all does not exceed."""
        return quantile(self.counts, share)

    def facts(self) -> dict[str, Any]:
        """Return what there is to say of them, as JSON; nothing of none."""
        if not self:
            return {"n": 0}
        numbers = {"n": self.n, "min": self.min, "median": self.quantile(0.5), "p95": self.quantile(0.95),
                   "max": self.max, "mean": round(self.mean, 2)}  # fmt: skip
        place = self.longest._asdict() if self.longest else None
        return numbers | {"longest": place, "counts": {str(key): self.counts[key] for key in sorted(self.counts)}}


def quantile(counts: Mapping[int, int], share: float) -> int:
    needed = share * sum(counts.values())
    n_below = 0
    for length in sorted(counts):
        n_below += counts[length]
        if n_below >= needed:
            break
    return length


class Bins(NamedTuple):
    """A histogram: how many lengths are in each bin, of which bin i holds those from start + i * width on."""

    start: int
    width: int
    heights: list[int]
    has_rest: bool = False  # the last bin holds all that are longer, too

    @property
    def end(self) -> int:
        return self.start + self.width * len(self.heights)

    def of(self, counts: Mapping[int, int]) -> "Bins":
        """Return the histogram of others, none of them shorter than the start, in the same bins."""
        heights = [0] * len(self.heights)
        for length, n in counts.items():
            heights[min((length - self.start) // self.width, len(heights) - 1)] += n
        return Bins(self.start, self.width, heights, max(counts) >= self.end)


def bins_of(counts: Mapping[int, int], n_bins: int) -> Bins:
    """Return at most `n_bins` bins of one width; the longest in a hundred share the last with those before."""
    start, top = min(counts), quantile(counts, 0.99)
    width = -(-(top + 1 - start) // n_bins)
    return Bins(start, width, [0] * ((top - start) // width + 1)).of(counts)


def drawn(bins: Bins, blocks: str = BLOCKS) -> str:
    """Return the bins as a line of blocks; a bin of few still shows, an empty one is a space."""
    top = max(bins.heights)
    levels = [-(-height * len(blocks) // top) for height in bins.heights]
    return "".join(blocks[level - 1] if level else " " for level in levels)
