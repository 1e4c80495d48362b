"""The values of a JSON file one after the other, whatever its size: a file of gigabytes may be a single line.

Python's own decoder reads value after value from a window of the text, which grows where a value goes on behind it. So
messages, numbers and escapes are those of `json`, and memory is that of the largest value, which has a limit.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from convai.data.compressed import ByteStream, Meter
from convai.data.schema import BYTE_ORDER_MARK
from convai.data.text_stream import (
    MAX_DIALOG_BYTES,
    MAX_TEXT_BYTES,
    UNSUSPICIOUS,
    check_size,
    no_text,
    not_utf8,
    too_large,
)
from convai.errors import UserError

_BLOCK_BYTES = 2**20
_LARGEST_STEP = 2**23  # by which the window grows
_MARK = BYTE_ORDER_MARK.encode()
_SPACE = re.compile(r"[ \t\n\r]*")
_ESCAPED_MARK = re.compile(r"\\u[fF][eE][fF][fF]")
_LONGEST_WORD = 16  # characters of -Infinity, or of an escape: what may be wrong only because it is cut


class JsonStream:
    """A file's values, taken one after the other; UserError, naming line and column, for what is no JSON."""

    def __init__(self, path: Path, meter: Meter | None = None):
        self.path = path
        self._stream = ByteStream(path, meter)
        self._decode = json.JSONDecoder().raw_decode
        self._text = ""  # the window
        self._rest = b""  # what was read of the character behind it
        self._position = 0  # in it, of what comes next
        self._is_end = False
        self._has_escaped_marks = False
        # Of the window's first character.
        self._offset, self._line, self._column = 0, 1, 1

    def peek(self) -> str:
        """Return the next character that is not space; "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._position)
            assert match is not None
            self._position = match.end()
            if self._position < len(self._text) or self._is_end:
                return self._text[self._position : self._position + 1]
            self._read_more()

    @property
    def line(self) -> int:
        """The number of the line where what comes next begins."""
        return self._line + self._text.count("\n", 0, self._position)

    def take(self, expected: str, message: str) -> str:
        """Return the next character, one of those expected; UserError with the message where it is another."""
        found = self.peek()
        if not found or found not in expected:
            raise self._error(message, self._position)
        self._position += 1
        return found

    def value(self) -> Any:
        """Return the next value."""
        self.peek()
        while True:
            if len(self._text) - self._position > UNSUSPICIOUS:
                check_size(self._text, self._place(self._position), self._position)
            try:
                value, end = self._decode(self._text, self._position)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - _LONGEST_WORD
                if self._is_end or not is_cut:
                    raise self._error(error.msg, error.pos) from error
            except (RecursionError, ValueError) as error:
                raise UserError(f"{self.path} is no PersonaChat file ({error}); see example_entry.py for the "
                                "format.") from error  # fmt: skip
            else:
                # A number may go on where the window ends: "1" may become "1.5e3", and so may "1.5e".
                n_beyond = _LONGEST_WORD if isinstance(value, int | float) else 0
                if self._is_end or end + n_beyond <= len(self._text):
                    self._position = end
                    if end > UNSUSPICIOUS:
                        self._drop_what_is_done()
                    return without_marks(value) if self._has_escaped_marks else value
            self._read_more()

    def elements(self) -> Iterator[Any]:
        """Yield the elements of the array that comes next."""
        self.take("[", "Expecting value")
        if self.peek() == "]":
            self._position += 1
            return
        while True:
            yield self.value()
            if self.take(",]", "Expecting ',' delimiter") == "]":
                return

    def keys(self) -> Iterator[str]:
        """Yield the keys of the object that comes next; the caller takes the value of each before the next one."""
        self.take("{", "Expecting value")
        if self.peek() == "}":
            self._position += 1
            return
        while True:
            if self.peek() != '"':
                raise self._error("Expecting property name enclosed in double quotes", self._position)
            key = self.value()
            self.take(":", "Expecting ':' delimiter")
            yield key
            if self.take(",}", "Expecting ',' delimiter") == "}":
                return

    def check_end(self) -> None:
        """Raise UserError where something comes next."""
        if self.peek():
            raise self._error("Extra data", self._position)

    def _drop_what_is_done(self) -> None:
        """Have the window begin at what comes next."""
        for start in range(0, self._position, _BLOCK_BYTES):
            done = self._text[start : min(start + _BLOCK_BYTES, self._position)]
            self._offset += len(done) if done.isascii() else len(done.encode())
            self._line, self._column = _moved(self._line, self._column, done)
        self._text = self._text[self._position :]
        self._position = 0

    def _read_more(self) -> None:
        """Have the window begin at what comes next, and end further on."""
        if self._position:
            self._drop_what_is_done()
        is_too_large = sys.getsizeof(self._text) > MAX_TEXT_BYTES
        raw = bytearray(self._text.encode())
        self._text = ""  # the window is in memory once, and while it is parsed its bytes are not
        raw += self._rest
        if is_too_large or len(raw) > MAX_DIALOG_BYTES:
            raise too_large(self._place(0))
        n_before = len(raw)
        raw += self._stream.read(min(max(_BLOCK_BYTES, n_before), _LARGEST_STEP))
        self._is_end = len(raw) == n_before
        if _MARK in raw:
            raw = raw.replace(_MARK, b"")
        try:
            self._text, self._rest = raw.decode(), b""
        except UnicodeDecodeError as error:
            if self._is_end or error.reason != "unexpected end of data":
                raise not_utf8(self.path, self._offset + error.start) from error
            self._text, self._rest = raw[: error.start].decode(), bytes(raw[error.start :])
        if "\0" in self._text:
            raise no_text(self.path, self._offset + raw.index(b"\0"))
        self._has_escaped_marks = self._has_escaped_marks or bool(_ESCAPED_MARK.search(self._text))

    def _place(self, position: int) -> str:
        return f"{self.path}: what begins {self._where(position)}"

    def _error(self, message: str, position: int) -> UserError:
        return UserError(f"{self.path} is not JSON: {message} {self._where(position)}; mend it there, or fetch the "
                         "file again.")  # fmt: skip

    def _where(self, position: int) -> str:
        line, column = _moved(self._line, self._column, self._text[:position])
        return f"at line {line}, column {column}"


def _moved(line: int, column: int, text: str) -> tuple[int, int]:
    """Return line and column behind a text that begins at these."""
    n_lines = text.count("\n")
    return line + n_lines, len(text) - text.rfind("\n") if n_lines else column + len(text)


def without_marks(value: Any) -> Any:
    """Return a parsed value without the byte order marks in its strings."""
    if isinstance(value, str):
        return value.replace(BYTE_ORDER_MARK, "")
    if isinstance(value, list):
        return [without_marks(item) for item in value]
    return {key: without_marks(item) for key, item in value.items()} if isinstance(value, dict) else value


def parse_line(line: str) -> Any:
    """Return the value of a line of JSON, without byte order marks in its strings; raises what `json.loads` does."""
    value = json.loads(line)
    return without_marks(value) if _ESCAPED_MARK.search(line) else value
