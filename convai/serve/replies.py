"""A reply as it grows, token by token: which text is settled, and what ends it."""

from collections.abc import Sequence

from convai.data.store import TokenIds
from convai.dialog.terminal import settled
from convai.model.tokenization import DialogTokenizer
from convai.serve.jobs import EndReason


class GrowingReply:
    """The text of a reply so far. Its last word may still change, as decoding joins words and punctuation."""

    def __init__(self, tokenizer: DialogTokenizer, stops: Sequence[str], is_streamed: bool):
        self.ids: TokenIds = []
        self.text = ""  # as far as it is known; whole once it `is_over`
        self.reason: EndReason = "stop"
        self.is_over = False
        self._tokenizer = tokenizer
        self._stops = stops
        self._is_streamed = is_streamed
        self._n_sent = 0

    def add(self, token: int) -> str:
        """Take a token in and return the text that is now settled and was not before, "" for replies not streamed."""
        self.ids.append(token)
        if not (self._is_streamed or self._stops):
            return ""
        self.text = settled(self._tokenizer.decode(self.ids))
        if self._cut_at_stop():
            self.is_over = True
            return ""
        return self._grown(len(self.text) - self._n_held_back())

    def end(self, reason: EndReason) -> str:
        """The reply is over, for a `reason` that a stop overrides; return what of its text was not returned before."""
        if not self.is_over:
            self.is_over = True
            self.text = self._tokenizer.decode(self.ids)
            self.reason = "stop" if self._cut_at_stop() else reason
        return self._grown(len(self.text))

    @property
    def was_cut(self) -> bool:
        """Whether a stop has taken some of what was generated."""
        return self.text != self._tokenizer.decode(self.ids)

    def _grown(self, end: int) -> str:
        if not self._is_streamed or end <= self._n_sent:
            return ""
        new = self.text[self._n_sent : end]
        self._n_sent = end
        return new

    def _cut_at_stop(self) -> bool:
        found = [place for stop in self._stops if (place := self.text.find(stop)) >= 0]
        if found:
            self.text = self.text[: min(found)].rstrip()
        return bool(found)

    def _n_held_back(self) -> int:
        """Return how many characters at the end may be the beginning of a stop, or space before one."""
        for n in range(min(len(self.text), max(map(len, self._stops), default=0)), 0, -1):
            if any(stop.startswith(self.text[-n:]) for stop in self._stops):
                return n + len(self.text[:-n]) - len(self.text[:-n].rstrip())
        return 0
