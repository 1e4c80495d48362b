"""Files written whole or not at all, and read with errors in plain words."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from convai.errors import UserError

TEMPORARY_FILES = f"*.{'[0-9a-f]' * 8}.tmp"  # a pattern of the names that `atomic_write` gives


@contextmanager
def atomic_write(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a name beside `path`; the file or folder that the block makes there becomes `path` at its end, in one step.

    Nobody ever sees half of it, and processes that write the same `path` do not meet. Where the block fails, the
    earlier `path` stays and nothing is left beside it. With `durable` that holds for a loss of power, too: all is
    forced to disk first. A device or pipe cannot be replaced: the block writes to it. Raises OSError.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        if durable:
            for content in [*temporary.rglob("*"), temporary]:
                force_to_disk(content)
        os.replace(temporary, path)
        if durable:
            force_to_disk(path.parent)
    finally:
        remove(temporary)


@contextmanager
def atomic_writes(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; the files that the block makes there go into `folder` at its end, one after the other.

    Nobody sees half of a file. Raises OSError.
    """
    temporary = folder / f"content.{secrets.token_hex(4)}.tmp"
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in sorted(temporary.iterdir()):
            os.replace(path, folder / path.name)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or a folder as far as that is possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError:  # a name that no file can have, say: nothing is there
        return


def force_to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk. Raises OSError.

    Windows writes out only what is open for writing, and opens no folders; there their lists are not waited for.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `path` in one step, in UTF-8. Raises OSError."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value, *, indent: int | None = 2, ensure_ascii: bool = False) -> None:
    """Write `value` as JSON to `path` in one step. Raises OSError."""
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=ensure_ascii) + "\n")


def read_json_object(path: Path) -> dict:
    """Return the JSON object in `path`; UserError naming line and column where it is malformed."""
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}; an object is needed.")
    return value


def read_text(path: Path) -> str:
    """Return the text in `path`; UserError where it cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read: {error}; convert it to UTF-8.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check the path.") from error
