"""The text of a data file: plain, gzipped, or compressed by zstd where this Python can undo that."""

import gzip
import importlib
import io
import zlib
from pathlib import Path

from convai.data.schema import BYTE_ORDER_MARK
from convai.errors import UserError, argument

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
# Python's own from 3.14 on, and what brings it to older ones; both are used alike.
_ZSTD_MODULES = ("compression.zstd", "backports.zstd")
ENDINGS = ("", ".gz", ".zst")


def open_checked(path: Path) -> io.BufferedReader:
    """Open a file for reading bytes; UserError where it is missing or unreadable."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(
            f"{argument('dataset_path')}: {path} cannot be read ({error.strerror}); check the path."
        ) from error


def read_data_text(path: Path) -> str:
    """Return the text of a data file, however it is compressed; UserError where it cannot be read."""
    try:
        with open_checked(path) as file:
            content = file.read()
        if content.startswith(_GZIP):
            content = gzip.decompress(content)
        elif content.startswith(_ZSTD):
            content = _decompress_zstd(content, path)
        return content.decode("utf-8").replace(BYTE_ORDER_MARK, "")  # one stands within, too, where files were joined
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); convert it to UTF-8.") from error
    except (EOFError, zlib.error, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); remove it and fetch it again.") from error


def has_ending(path: Path, *endings: str) -> bool:
    """Whether a file's name, without what names its compression, ends so."""
    return path.name.lower().endswith(tuple(ending + packed for ending in endings for packed in ENDINGS))


def _decompress_zstd(content: bytes, path: Path) -> bytes:
    for name in _ZSTD_MODULES:
        try:
            zstd = importlib.import_module(name)
        except ImportError:
            continue
        try:
            return bytes(zstd.decompress(content))
        except zstd.ZstdError as error:
            raise UserError(f"{path} cannot be read ({error}); remove it and fetch it again.") from error
    raise UserError(f"{path} is compressed by zstd, which needs Python 3.14 or the package backports.zstd; decompress "
                    "it (zstd -d), or compress it by gzip.")  # fmt: skip
