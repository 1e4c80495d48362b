"""A text into its sentences, by spaCy's rules."""

from functools import cache
from typing import Any

from convai.model.word_splitting import MAX_WORDS, cut_overlong_words


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, without space around them; a line break ends one, too."""
    lines = (line for line in text.split("\n") if line.strip())
    return [sentence for line in lines for sentence in map(str.strip, _split(line)) if sentence]


def _split(text: str) -> list[str]:
    splitter = _splitter()
    sentences = [str(sentence) for sentence in splitter(cut_overlong_words(text)).sents]
    if len(splitter.vocab.strings) > MAX_WORDS:
        _splitter.cache_clear()
    return sentences


@cache
def _splitter() -> Any:
    # Importing spaCy takes seconds: only when there is text to split.
    from spacy.lang.en import English

    nlp = English()
    nlp.add_pipe("sentencizer")
    nlp.max_length = 2**31  # the limit is for models that take much memory, of which there is none here
    return nlp
