"""What was read for one reply, kept for the next: a context that begins with the same tokens is read from there on.

Nothing is approximated: a kept token is one whose id, token type and position are the same, and so is all before it.
"""

from itertools import takewhile
from typing import NamedTuple

from convai.data.inputs import Prompt
from convai.model.row_cache import CacheOfRows


class Known(NamedTuple):
    """The first tokens of a prompt, as the model has read them."""

    n_tokens: int
    cache: CacheOfRows  # of one row, and nobody else's


class PrefixMemory:
    """The caches of a few readings, those used last."""

    def __init__(self, n_entries: int = 2):
        """A chat has two: the agent's view of the dialog, and that from the user's place (DialogAgent.suggest)."""
        self.n_entries = n_entries
        self._entries: list[tuple[Prompt, CacheOfRows]] = []

    def put(self, tokens: Prompt, cache: CacheOfRows) -> None:
        """Keep the cache of a row which holds these tokens; it is not to be written to any more."""
        self._entries = [(tokens, cache), *self._entries][: self.n_entries]

    def take(self, prompt: Prompt) -> Known | None:
        """Return what is known of a prompt, all but its last token at most; None where that is nothing."""
        shared = [_n_shared(prompt, tokens) for tokens, _ in self._entries]
        n_known = min(max(shared, default=0), len(prompt.input_ids) - 1)
        if n_known < 1:
            return None
        best = shared.index(max(shared))
        tokens, cache = self._entries[best]
        length = len(tokens.input_ids)
        if n_known == length:  # read on, so that nobody else could use it
            del self._entries[best]
            return Known(n_known, cache)
        return Known(n_known, cache.part(0, length, n_known))

    def clear(self) -> None:
        """Forget everything."""
        self._entries = []


def _n_shared(one: Prompt, other: Prompt) -> int:
    """Return how many tokens two inputs begin with alike."""
    pairs = zip(zip(*one, strict=True), zip(*other, strict=True), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
