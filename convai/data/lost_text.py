"""Text that a vocabulary cannot spell: counted over the utterances of a data set, and said in one sentence."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from convai.model.tokenization import DialogTokenizer

MOSTLY = 0.5  # an utterance more of which than this is unknown says nothing of what it said
_SHOWN = 60  # characters of an example


class LostText:
    """Counts the utterances of which most became unknown tokens, and those of which nothing is left."""

    def __init__(self, tokenizer: DialogTokenizer):
        self.tokenizer = tokenizer
        self.n_utterances = 0
        self.n_unknown = 0
        self.n_empty = 0
        self.first_unknown = ""
        self.first_empty = ""

    def add(self, text: str, ids: Sequence[int]) -> None:
        """Count an utterance and the ids that it became; one without any text cannot lose it."""
        self.n_utterances += 1
        if not ids and text.strip():
            self.n_empty += 1
            self.first_empty = self.first_empty or text
        elif self.tokenizer.lost_share(text, ids) > MOSTLY:
            self.n_unknown += 1
            self.first_unknown = self.first_unknown or text

    def add_all(self, texts: Iterable[str]) -> "LostText":
        """Tokenize and count utterances, each once; return self."""
        for text in dict.fromkeys(texts):
            self.add(text, self.tokenizer.encode(text))
        return self

    def counts(self) -> dict[str, Any]:
        """Return what was counted, which `join` takes."""
        return {name: value for name, value in vars(self).items() if name != "tokenizer"}

    def join(self, counts: Mapping[str, Any]) -> None:
        """Add what was counted of utterances that come after these."""
        for name, value in counts.items():
            before = getattr(self, name)
            setattr(self, name, before + value if isinstance(value, int) else before or value)

    def sentence(self) -> str:
        """Return one line that says how much was lost, with an example of each kind; "" where nothing was."""
        parts = []
        if self.n_unknown:
            parts.append(f"{self._share(self.n_unknown)} are mostly unknown to it ({_shown(self.first_unknown)})")
        if self.n_empty:
            parts.append(f"{self._share(self.n_empty)} are empty in it ({_shown(self.first_empty)})")
        if not parts:
            return ""
        return (f"the vocabulary cannot spell all of the text: {', and '.join(parts)}. The model will not know what "
                "they say; check the language, or let new_model.py learn a vocabulary of your data")  # fmt: skip

    def note(self) -> str:
        """Return one line for who has just written these few utterances; "" where nothing was lost."""
        parts = []
        if self.n_unknown:
            parts.append(f"{_shown(self.first_unknown)} is mostly unknown to it")
        if self.n_empty:
            parts.append(f"of {_shown(self.first_empty)} nothing is left")
        return f"The model's vocabulary cannot spell this: {', '.join(parts)}." if parts else ""

    def _share(self, n: int) -> str:
        return f"{n} of {self.n_utterances} utterances ({100 * n / self.n_utterances:.3g} %)"


def _shown(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ...")
