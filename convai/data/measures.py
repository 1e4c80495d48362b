"""How long texts and inputs are: in a model's tokens or, where there is no model, in words."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from convai.data.inputs import InputBuilder, cut_history

MAX_REMEMBERED = 2**18  # texts whose measure is kept


class Measured(NamedTuple):
    """A text as tokens, or words, and the share of it that has no token."""

    tokens: Sequence[int] | Sequence[str]
    lost_share: float = 0.0


class Measure(Protocol):
    """Counts what texts and inputs take."""

    unit: str
    max_history: int  # exchanges of history in an input
    max_positions: int | None  # None: no limit is known

    def of(self, text: str) -> Measured:
        """Return a text as tokens, or words."""

    def of_input(self, persona: Sequence[str], history: Sequence[str], candidates: Sequence[str]) -> int:
        """Return what the longest input takes that these make with one of the candidates."""


class WordMeasure:
    """Words, parted by white space."""

    unit = "words"
    max_positions = None

    def __init__(self, max_history: int):
        self.max_history = max_history

    def of(self, text: str) -> Measured:
        return Measured(text.split())

    def of_input(self, persona: Sequence[str], history: Sequence[str], candidates: Sequence[str]) -> int:
        context = [*persona, *cut_history(history, self.max_history)]
        return sum(len(text.split()) for text in context) + max(len(text.split()) for text in candidates)


class TokenMeasure:
    """The tokens of one model."""

    unit = "tokens"

    def __init__(self, builder: InputBuilder, max_history: int):
        self.builder = builder
        self.max_history = max_history
        self.max_positions: int | None = builder.max_positions
        self._known: dict[int, tuple[list[int], float]] = {}  # by the hashes of texts, which are 64 bits long

    def of(self, text: str) -> Measured:
        return Measured(*self._encoded(text))

    def of_input(self, persona: Sequence[str], history: Sequence[str], candidates: Sequence[str]) -> int:
        recent = cut_history(history, self.max_history)
        n_context = self.builder.layout.n_context(list(map(self._ids, persona)), list(map(self._ids, recent)))
        return n_context + max(len(self._ids(text)) for text in candidates) + 1  # its end

    def _ids(self, text: str) -> list[int]:
        return self._encoded(text)[0]

    def _encoded(self, text: str) -> tuple[list[int], float]:
        key = hash(text)
        found = self._known.get(key)
        if found is None:
            tokenizer = self.builder.tokenizer
            ids = tokenizer.encode(text)
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            found = self._known[key] = (ids, tokenizer.lost_share(text, ids))
        return found
