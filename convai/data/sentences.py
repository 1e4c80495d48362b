"""A text into its sentences, by spaCy's rules."""

from collections.abc import Callable
from functools import cache


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, without space around them; a line break ends one, too."""
    lines = (line for line in text.split("\n") if line.strip())
    return [sentence for line in lines for sentence in map(str.strip, _splitter()(line)) if sentence]


@cache
def _splitter() -> Callable[[str], list[str]]:
    # Importing spaCy takes seconds: only when there is text to split.
    from spacy.lang.en import English

    nlp = English()
    nlp.add_pipe("sentencizer")
    nlp.max_length = 2**31  # the limit is for models that take much memory, of which there is none here
    return lambda text: [str(sentence) for sentence in nlp(text).sents]
