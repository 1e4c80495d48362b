"""English text in natural casing as ConvAI2 writes it: "It's 10,000 - isn't it?" becomes "it is 10000 isn't it ?".

ConvAI2 is written in lower case, with spaces around tokens and no marks but . , ? ! ; and the apostrophe. A contraction
is one word; of those with a pronoun only some occur, the others stand in full ("it is", "you are", never "it's"), and
a genitive has no apostrophe ("my moms house"). Text that is already so written stays as it is.
"""

import re
import unicodedata
from functools import cache

from convai.model.word_splitting import word_splitter

_CURLY_QUOTES = str.maketrans("‘’ʼ`´“”", "'''''\"\"")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d{3}\b)")
_WORD_PIECE = re.compile(r"(?:[^\W_]|')+")
_ABBREVIATION = re.compile(r"(?:[^\W_]\.){2,}[^\W_]?|[^\W_]{2,}\.")
_WORD_OR_MARK = re.compile(r"[^\W_]+(?:'[^\W_]+)*|[.,?!;&]")
# Contractions with a pronoun that ConvAI2 has; "not" is contracted everywhere.
_KEPT = re.compile(r"(?:that|he|she|there)'s|i'm|they're|i've|(?:i|you)'(?:d|ll)|.*n't")
_IS = re.compile(r"(?:it|what|who|where|how|why|here)'s")
_HAS_BEEN = re.compile(r"\b(it|what|who|where|how) is (been|got)\b")
_ENDINGS = {"'m": " am", "'re": " are", "'ve": " have", "'ll": " will", "'d": " would", "'s": "s"}
_LONG_FORMS = {r"\bwon't\b": "will not", r"n't\b": " not", r"'s\b": " is"} | {
    rf"{ending}\b": long for ending, long in _ENDINGS.items() if ending != "'s"
}


@cache
def as_convai2(text: str) -> str:
    """Return a text as ConvAI2 would write it; one of other marks only, such as an emoticon, stays in lower case."""
    plain = unicodedata.normalize("NFKD", text.translate(_CURLY_QUOTES))  # ConvAI2 is ASCII: accents are left out
    plain = "".join(char for char in plain if not unicodedata.combining(char))
    chunks = _COMMA_IN_NUMBER.sub("", plain).split()
    words = [word for n, chunk in enumerate(chunks, start=1) for word in _words_of(chunk, n == len(chunks))]
    return _HAS_BEEN.sub(r"\1 has \2", " ".join(words)) or " ".join(text.lower().split())


def long_forms(text: str) -> str:
    """Return a text of ConvAI2's form with its contractions in full, for comparing two that may differ in them."""
    for ending, long in _LONG_FORMS.items():
        text = re.sub(ending, long, text)
    return text


def _words_of(chunk: str, is_last: bool) -> list[str]:
    """Return the words and marks of what stands between two spaces."""
    parts, pieces = [""], word_splitter("spacy")(chunk)
    for n, piece in enumerate(pieces, start=1):
        is_abbreviation = _ABBREVIATION.fullmatch(piece)
        if is_abbreviation:  # "U.S." is written "us", and "Mr." "mr"; at the end the dot is the sentence's, too
            piece = piece.replace(".", "")
        # What the splitter parts within a word ("do n't", "can not", "10 pm") is one in ConvAI2.
        if _WORD_PIECE.fullmatch(parts[-1]) and _WORD_PIECE.fullmatch(piece):
            parts[-1] += piece
        else:
            parts.append(piece)
        if is_abbreviation and is_last and n == len(pieces):
            parts.append(".")
    return [word for part in parts for found in _WORD_OR_MARK.findall(part) for word in _spelled(found).split()]


def _spelled(word: str) -> str:
    """Return a word with the contraction that ConvAI2 would use, or in full."""
    if word == "&":
        return "and"
    if word == "let's":
        return "let us"
    stem, apostrophe, ending = word.rpartition("'")
    if not stem or _KEPT.fullmatch(word):
        return word
    if _IS.fullmatch(word):
        return f"{stem} is"
    return stem + _ENDINGS.get(apostrophe + ending, apostrophe + ending)
