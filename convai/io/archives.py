"""Archives unpacked safely: nothing outside of the folder, no links, bounded in bytes and members, all or nothing."""

import errno
import functools
import gzip
import io
import re
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from convai.errors import UserError, disk_reason, one_line

BLOCK_BYTES = 1 << 16
MAX_HEADER_BYTES = 1 << 20  # of one member of a tar file: tarfile loads these into memory
MAX_DEPTH = 32  # folders within folders
# What the readers of archives raise on damaged ones. RuntimeError: a zip with a password or an unknown compression, or
# tar headers nested without end (RecursionError).
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, ValueError, RuntimeError)


# Name, kind (None for one that is to be refused) and opener; None is what tarfile opens where there is no content.
Member = tuple[str, str | None, Callable[[], IO[bytes] | None]]


class BadArchive(UserError):
    """The archive itself is at fault (damaged, unsafe, too large), not the disk it is unpacked to."""


def unpack_archive(archive: str | Path, target: str | Path, *, max_bytes: int = 4 << 30, max_files: int = 1000) -> Path:
    """Unpack a .tar, .tar.gz or .zip file, recognised by its content, into the new folder `target`: all or nothing.

    Returns `target`, or the one folder in it that holds everything. `max_bytes` bounds the unpacked files together,
    `max_files` the members. Links, devices and names that lead outside of `target` are refused; permissions are not
    carried over. Raises BadArchive for all of these, UserError where the disk fails.
    """
    archive, target = Path(archive), Path(target)
    if target.exists():
        raise UserError(f"cannot unpack {archive}: {target} exists already; remove it or choose another folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f"{target.name}.", suffix=".tmp", dir=target.parent) as scratch:
            content = Path(scratch) / "content"  # not the temporary folder itself, which is closed to other users
            content.mkdir()
            _extract(_members(archive, max_bytes + 4096 * max_files + MAX_HEADER_BYTES), content, max_bytes, max_files)
            content.rename(target)
    except BadArchive as error:
        raise BadArchive(one_line(f"cannot unpack {archive}: {error}")) from error
    except DAMAGE as error:
        raise BadArchive(one_line(f"{archive} is damaged, or not a .tar, .tar.gz or .zip archive ({error})")) from error
    except OSError as error:
        # A name that no file can have and a nonsensical offset are the archive's fault, the rest is the disk's.
        at_fault = BadArchive if error.errno in (errno.ENAMETOOLONG, errno.EINVAL) else UserError
        raise at_fault(one_line(f"cannot unpack {archive}: {disk_reason(error)}")) from error
    return top_folder(target)


class _TarBytes:
    """The bytes of a tar file as `tarfile` reads them, with bounds on all of them and on each header."""

    def __init__(self, file: gzip.GzipFile | io.BufferedReader, max_bytes: int):
        self.file, self.max_bytes, self.latest = file, max_bytes, b""
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES or self.tell() > self.max_bytes:
            raise BadArchive("it is too large when unpacked, or has oversized headers")
        self.latest = self.file.read(size)
        return self.latest


def _members(archive: Path, max_tar_bytes: int) -> Iterator[Member]:
    """Yield name, kind and opener of each member, in order; a kind other than "file" and "folder" is to be refused."""
    with archive.open("rb") as file:
        magic = file.read(2)
        file.seek(0)
        if magic == b"PK":
            with zipfile.ZipFile(file) as zipped:
                for info in zipped.infolist():
                    mode = stat.S_IFMT(info.external_attr >> 16)  # 0 where it was written without Unix modes
                    plain = "folder" if info.is_dir() else "file"
                    kind = {0: plain, stat.S_IFREG: plain, stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}.get(mode)
                    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                        kind = "file packed by another method than deflate"  # zipfile unpacks these without a bound
                    yield info.filename, kind, functools.partial(zipped.open, info)
            return
        stream = _TarBytes(gzip.GzipFile(fileobj=file) if magic == b"\x1f\x8b" else file, max_tar_bytes)
        # tarfile's annotations ask for all of a file, but to read one it needs no more than these methods.
        with tarfile.open(fileobj=stream, mode="r:") as tar:  # type: ignore[call-overload]
            for member in tar:
                is_plain = member.isreg() and not member.issparse() and member.size >= 0
                kind = "file" if is_plain else "folder" if member.isdir() else "link" if member.linkname else None
                yield member.name, kind, functools.partial(tar.extractfile, member)
        if stream.latest != bytes(tarfile.BLOCKSIZE):  # tarfile takes a missing end marker for the end
            raise tarfile.ReadError("it ends too early")
        while stream.read(BLOCK_BYTES):  # gzip compares its checksum only at the end
            pass


def _extract(members: Iterator[Member], folder: Path, max_bytes: int, max_files: int) -> None:
    """Write the members below `folder`, counting the bytes that really come out of them."""
    left, n_files = max_bytes, 0
    for n_members, (name, kind, open_member) in enumerate(members, start=1):
        label = f"member {name[-100:]!r}"  # escaped: a name may hold line breaks or terminal commands
        parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
        if n_members > max_files:
            raise BadArchive(f"it has more than {max_files} members")
        if kind not in ("file", "folder"):
            raise BadArchive(f"{label} is a {kind or 'special file'}")
        if ".." in parts or re.match(r"[/\\]|[A-Za-z]:", name) or len(parts) > MAX_DEPTH:
            raise BadArchive(f"{label} leads outside of the folder, or too deep")
        path = folder.joinpath(*parts)
        try:
            (path if kind == "folder" else path.parent).mkdir(parents=True, exist_ok=True)
            if kind == "folder":
                continue
            opened = open_member()
            assert opened is not None, name  # what has no content is a folder or refused
            with opened as source, path.open("xb") as copy:
                while block := source.read(BLOCK_BYTES):
                    left -= len(block)
                    if left < 0:
                        raise BadArchive(f"it has more than {max_bytes:,} bytes when unpacked ({label})")
                    copy.write(block)
        except (FileExistsError, NotADirectoryError) as error:
            raise BadArchive(f"{label} takes the place of another") from error
        n_files += 1
    if not n_files:
        raise BadArchive("it holds no files")


def top_folder(folder: Path) -> Path:
    """The one folder in `folder` if there is nothing beside it, else `folder`."""
    entries = list(folder.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else folder
