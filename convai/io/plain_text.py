"""Text that can be shown: none of it sends commands to a terminal."""

import re
import unicodedata

# Sequences like ESC [ 31 m (a colour) and ESC ] 0 ; title BEL, with what belongs to them.
_TERMINAL_COMMAND = re.compile(r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)")
_TEXT_DIRECTION = {*"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}  # can make text read as what it is not


def printable(text: str) -> str:
    """Return the text as one line without control characters; a prefix of `text` gives a prefix of the result."""
    return "".join(map(_printable_character, text))


def _printable_character(character: str) -> str:
    if character.isspace():
        return " "
    category = unicodedata.category(character)
    if category == "Cs":  # a byte that was no text
        return "\N{REPLACEMENT CHARACTER}"
    return "" if category == "Cc" or character in _TEXT_DIRECTION else character


def plain_line(text: str) -> str:
    """Return what was typed without terminal commands, control characters, byte order marks and outer white space."""
    return printable(_TERMINAL_COMMAND.sub("", text).replace("\ufeff", "")).strip()
