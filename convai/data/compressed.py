"""The bytes of a data file as a stream: plain, gzipped, or compressed by zstd."""

import gzip
import io
import sys
import zlib
from pathlib import Path

from convai.errors import UserError, argument

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_MIB = 2**20
ENDINGS = ("", ".gz", ".zst")


class Meter:
    """How much of the data has been read, and how much there is: bytes of files as they lie on the disk, or rows."""

    def __init__(self, total: int = 0):
        self.done = 0
        self.total = total


def open_checked(path: Path) -> io.BufferedReader:
    """Open a file for reading bytes; UserError where it is missing or unreadable."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(
            f"{argument('dataset_path')}: {path} cannot be read ({error.strerror}); check the path."
        ) from error


class ByteStream:
    """What a data file holds, decompressed while it is read; UserError where it cannot be read."""

    def __init__(self, path: Path, meter: Meter | None = None):
        self._path = path
        self._file = open_checked(path)
        self._meter = meter
        self._before = meter.done if meter else 0
        self._content: io.BufferedIOBase
        try:
            first = self._file.peek(len(_ZSTD))
        except OSError as error:
            raise self._unreadable(error) from error
        if first.startswith(_GZIP):
            self._content = gzip.GzipFile(fileobj=self._file)
        elif first.startswith(_ZSTD):
            self._content = zstd.ZstdFile(self._file)  # refuses frames that ask for more than 128 MB to be undone with
        else:
            self._content = self._file

    def read(self, n: int) -> bytes:
        """Return the next `n` bytes, fewer only at the end."""
        blocks, n_read = [], 0
        try:
            while n_read < n and (block := self._content.read(min(n - n_read, _MIB))):
                blocks.append(block)
                n_read += len(block)
        except (EOFError, zlib.error, zstd.ZstdError, OSError) as error:
            raise self._unreadable(error) from error
        if self._meter:
            self._meter.done = self._before + self._file.tell()
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    def close(self) -> None:
        self._content.close()
        self._file.close()

    def _unreadable(self, error: Exception) -> UserError:
        return UserError(f"{self._path} cannot be read ({error}); remove it and fetch it again.")


def has_ending(path: Path, *endings: str) -> bool:
    """Whether a file's name, without what names its compression, ends so."""
    return path.name.lower().endswith(tuple(ending + packed for ending in endings for packed in ENDINGS))
