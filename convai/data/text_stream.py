"""The text of a data file, line by line, in memory for a line at a time."""

import sys
from collections.abc import Iterator
from pathlib import Path

from convai.data.compressed import ByteStream, Meter
from convai.data.schema import BYTE_ORDER_MARK
from convai.errors import UserError

MAX_DIALOG_BYTES = 2**26
# Of text in memory: one emoji makes each of its characters take four bytes, so that such a dialog must be shorter.
MAX_TEXT_BYTES = 5 * 2**25
_BLOCK_BYTES = 2**20
# What parsed values take: bytes for each mark that parts them. More than this is no dialog that people had.
_BYTES_OF_MARK = {"[": 88, "{": 200, ":": 120, ",": 64}
_MAX_PARSED_BYTES = 3 * 10**8
UNSUSPICIOUS = 2**21  # characters, of which whatever they hold fits


def lines_of_file(path: Path, meter: Meter | None = None) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file with their numbers, from 1 on, without line feeds and byte order marks.

    UserError where it cannot be read or is no text, and for a line that is longer than a dialog may be.
    """
    for number, offset, line in _byte_lines(path, meter):
        try:
            text = [line.decode()]
        except UnicodeDecodeError as error:
            raise not_utf8(path, offset + error.start) from error
        if "\0" in text[0]:
            raise no_text(path, offset + line.index(b"\0"))
        if sys.getsizeof(text[0]) > MAX_TEXT_BYTES:
            raise too_large(f"{path}, line {number},")
        del line  # it may be large, and so may its text: neither is kept while the line is worked on
        yield number, text.pop().replace(BYTE_ORDER_MARK, "")  # one stands within, too, where files were joined


def not_utf8(path: Path, offset: int) -> UserError:
    return UserError(f"{path} is not UTF-8 text (byte {offset}); convert it to UTF-8.")


def no_text(path: Path, offset: int) -> UserError:
    return UserError(f"{path} is no text: byte {offset} is NUL; convert it to UTF-8 text.")


def too_large(place: str) -> UserError:
    """Return the error for what takes more memory than the reading of any data should."""
    return UserError(f"{place} is larger than {MAX_DIALOG_BYTES // 2**20} MB or holds millions of values, which is no "
                     "dialog; part or remove it.")  # fmt: skip


def check_size(text: str, place: str, start: int = 0) -> None:
    """Raise UserError for JSON or CSV that would take far more memory when it is parsed than it has characters."""
    if len(text) - start <= UNSUSPICIOUS:
        return
    if sum(text.count(mark, start) * n_bytes for mark, n_bytes in _BYTES_OF_MARK.items()) > _MAX_PARSED_BYTES:
        raise too_large(place)


def _byte_lines(path: Path, meter: Meter | None) -> Iterator[tuple[int, int, bytes]]:
    """Yield each line with its number and the number of bytes before it."""
    stream = ByteStream(path, meter)
    parts: list[bytes] = []  # of a line that goes on
    offset = size = 0
    number = 1
    while block := stream.read(_BLOCK_BYTES):
        *whole, rest = block.split(b"\n")
        for end in whole:
            parts.append(end)
            size += len(end)
            line = [b"".join(parts)]
            parts = []
            yield number, offset, line.pop()
            offset += size + 1
            number += 1
            size = 0
        parts.append(rest)
        size += len(rest)
        if size > MAX_DIALOG_BYTES:
            raise too_large(f"{path}, line {number},")
    stream.close()
    if size:
        yield number, offset, b"".join(parts)
