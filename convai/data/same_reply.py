"""When two replies count as the same one: the rule that training, validation and every evaluation share.

Equal as text, by ParlAI's rule (case, ASCII punctuation and articles do not matter), or equal as tokens: a distractor
that is the gold reply by either could only be ranked below it by chance.
"""

import re
import string
from collections.abc import Callable, Sequence

_PUNCTUATION_TO_SPACE = str.maketrans(dict.fromkeys(string.punctuation, " "))
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def normalize_answer(text: str) -> list[str]:
    """Return the words that count in comparing replies: lower case, without ASCII punctuation and articles."""
    return _ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION_TO_SPACE)).split()


def is_gold(candidate: str, gold: str) -> bool:
    """Whether a candidate counts as the gold reply: by ParlAI's rule punctuation, case and articles do not matter."""
    return normalize_answer(candidate) == normalize_answer(gold)


def without_twins(candidates: Sequence[str], golds: Sequence[str], encode: Callable[[str], Sequence[int]]) -> list[str]:
    """Return the candidates less those that are the gold reply once more, as text or as tokens by `encode`.

    `golds` are the gold reply and others that are as right; of all candidates that are one of them the first's own
    stays: the last that is equal to it to the letter, or else by the text rule. Where there is none all stay.
    """
    own = [i for i, candidate in enumerate(candidates) if candidate == golds[0]]
    own = own or [i for i, candidate in enumerate(candidates) if is_gold(candidate, golds[0])]
    if not own:
        return list(candidates)
    texts, tokens = [normalize_answer(gold) for gold in golds], [encode(gold) for gold in golds]
    return [
        candidate
        for i, candidate in enumerate(candidates)
        if i == own[-1] or not (normalize_answer(candidate) in texts or encode(candidate) in tokens)
    ]
