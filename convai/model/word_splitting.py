"""Text to the words that GPT's BPE starts from, and back to text as people write it.

GPT was pre-trained on text that had passed ftfy, a few replacements and spaCy's English tokenizer, in lower case
(Radford et al., 2018, section 4.1).
"""

import re
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

from tokenizers import normalizers, pre_tokenizers

from convai.errors import UserError, argument

PRE_TOKENIZATIONS = ("spacy", "bert")
MAX_WORDS = 2**16  # that spaCy, which keeps every one that it has met, may have met before it starts anew
_LONGEST_KEPT = 64  # characters: long ones are rare, and would fill memory

# Decoding undoes the spaces that word splitting put before punctuation and contractions: "do n't"; by bert "don ' t".
_SPACE_BEFORE_PUNCTUATION = re.compile(r" (?=[.?!,])")
_SPLIT_CONTRACTION = re.compile(r" (?:n't|' ?(?:s|m|re|ve|ll|d|t))\b")


def word_splitter(pre_tokenization: str) -> Callable[[str], list[str]]:
    """Return the function from a text to its lower-case words that GPT's BPE starts from."""
    if pre_tokenization not in PRE_TOKENIZATIONS:
        raise UserError(
            f"{argument('tokenization')} must be one of {', '.join(PRE_TOKENIZATIONS)}, not {pre_tokenization!r}."
        )
    return _split_as_bert if pre_tokenization == "bert" else _split_as_pretrained


def _split_as_bert(text: str) -> list[str]:
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    return [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(join_surrogates(text)))]


def _split_as_pretrained(text: str) -> list[str]:
    # ftfy finds nothing to fix in printable ASCII, unless there are HTML entities.
    is_sound = text.isascii() and text.isprintable() and "&" not in text
    text = standardize_text(text if is_sound else _fix_text(text))
    chunks = text.split(" ")
    # Plain words and marks split the same wherever they stand, and the same ones come again and again.
    if max(map(len, chunks)) <= _LONGEST_KEPT and all(map(_is_plain, chunks)):
        return [word for chunk in chunks for word in _split_chunk(chunk)]
    return _split_by_spacy(text)


def _fix_text(text: str) -> str:
    from ftfy import fix_text

    return fix_text(text)


@lru_cache(maxsize=2**16)
def _is_plain(chunk: str) -> bool:
    return bool(_PLAIN_CHUNK.fullmatch(chunk))


@lru_cache(maxsize=2**16)
def _split_chunk(chunk: str) -> list[str]:
    return _split_by_spacy(chunk)


def _split_by_spacy(text: str) -> list[str]:
    splitter = _spacy_splitter()
    # spaCy takes a line break and the space after it for one token.
    words = [token.text.lower().rstrip(" ") for token in splitter(cut_overlong_words(text))]
    if len(splitter.vocab.strings) > MAX_WORDS:
        _spacy_splitter.cache_clear()
    return words


def cut_overlong_words(text: str) -> str:
    """Return a text for spaCy, whose time grows with the square of a word: a thousand emoji in a row take seconds."""
    return _OVERLONG_WORD.sub(r"\g<0> ", text)


@cache
def _spacy_splitter() -> Any:
    # Importing spaCy takes seconds: only when there is text to split.
    from spacy.lang.en import English

    return English().tokenizer


def join_surrogates(text: str) -> str:
    """Join surrogate pairs and replace lone halves by U+FFFD: JSON and terminals let them in, tokenizers does not."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


_DASHES_AND_QUOTES = str.maketrans({"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"})
_OVERLONG_WORD = re.compile(r"\S{500}(?=\S)")  # no real word is
# What spaCy splits alike wherever it stands: two million random texts of nothing else showed no exception. Emoticons,
# quotes and abbreviations with inner dots are different.
_PLAIN_CHUNK = re.compile(r"[A-Za-z0-9]+(?:'[A-Za-z]+)?\.?|[.,?!]+")
_PUNCTUATION_RUN = re.compile(r"""([-~!";?+,()\\/*\[\]{}|_])\1*""")  # a run of one mark, not of different ones


def standardize_text(text: str) -> str:
    """Apply GPT's text clean-up: dash variants and ellipses in ASCII, spaces around runs of one punctuation mark."""
    text = _PUNCTUATION_RUN.sub(r" \g<0> ", text.translate(_DASHES_AND_QUOTES))
    text = re.sub(r"\s*\n\s*", " \n ", text)
    return re.sub(r"[^\S\n]+", " ", text).strip()


def join_punctuation(text: str) -> str:
    """Undo the spaces before sentence marks and contractions: "i do n't know ." becomes "i don't know."."""
    text = _SPLIT_CONTRACTION.sub(lambda match: match[0].replace(" ", ""), text)
    return _SPACE_BEFORE_PUNCTUATION.sub("", text)
