"""Files and archives from the web, fetched once into the user's cache: resumable, checked, unpacked safely.

What is in the cache already costs no network access; delete it from `cache_folder()` to have it fetched again.
"""

import contextlib
import errno
import functools
import gzip
import hashlib
import json
import logging
import os
import re
import socket
import stat
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from errors import UserError

TIMEOUT_S = (10, 60)  # to connect; between two blocks of the body
RETRY_PAUSES_S = (1, 4, 10)  # after failures that may pass, in a row without progress
BLOCK_BYTES = 1 << 16  # what an interrupted download may lose
MAX_HEADER_BYTES = 1 << 20  # of one member of a tar file: tarfile loads these into memory
MAX_DEPTH = 32  # folders within folders in an archive
# What the readers of archives raise on damaged ones. RuntimeError: a zip with a password or an unknown compression, or
# tar headers nested without end (RecursionError).
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, ValueError, RuntimeError)

logger = logging.getLogger(__name__)


class BadArchive(UserError):
    """The archive itself is at fault (damaged, unsafe, too large), not the disk it is unpacked to."""


def cache_folder() -> Path:
    """The user's cache for downloads; it need not exist yet."""
    if own := os.environ.get("CONVAI_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "transfer-learning-conv-ai"


def is_url(text: str) -> bool:
    return str(text).lower().startswith(("http://", "https://"))


def fetch(url: str, *, folder: str | Path | None = None, advice: str = "") -> Path:
    """Return the path of `url`'s content in `folder` (default: the cache), downloaded unless it is there already.

    An interrupted download continues on the next call. Raises UserError with the URL, the reason and `advice`, which
    says what the user can do instead.
    """
    target = Path(folder or cache_folder()) / _cached_name(url)
    if not target.is_file():
        with _locked(target):
            if not target.is_file():  # another process may have fetched it while we waited
                _download(url, target, advice)
    return target


def fetch_archive(url: str, *, advice: str = "") -> Path:
    """Return the folder with the content of the archive at `url`, fetched and unpacked into the cache only once.

    Raises UserError as `fetch` and `unpack_archive` do.
    """
    target = cache_folder() / (_cached_name(url) + ".unpacked")
    if not target.is_dir():
        with _locked(target):
            if not target.is_dir():
                archive = fetch(url, advice=advice)
                try:
                    unpack_archive(archive, target)
                except BadArchive as error:
                    archive.unlink()  # kept, it would fail again on every later call
                    raise BadArchive(_line(f"{url}: {error}", advice)) from error
                archive.unlink()
    return _top_folder(target)


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
        raise BadArchive(_line(f"cannot unpack {archive}: {error}")) from error
    except DAMAGE as error:
        raise BadArchive(_line(f"{archive} is damaged, or not a .tar, .tar.gz or .zip archive ({error})")) from error
    except OSError as error:
        # A name that no file can have and a nonsensical offset are the archive's fault, the rest is the disk's.
        at_fault = BadArchive if error.errno in (errno.ENAMETOOLONG, errno.EINVAL) else UserError
        raise at_fault(_line(f"cannot unpack {archive}: {_disk_reason(error)}")) from error
    return _top_folder(target)


def _cached_name(url: str) -> str:
    """A file name: a hash that keeps equal names from different places apart, then the readable name."""
    last = unquote(re.split(r"[?#]", url)[0].rstrip("/").rpartition("/")[2])
    name = re.sub(r"[^\w.-]+", "_", last, flags=re.ASCII)
    return f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name[-80:] or 'download'}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes from making `path` at the same time."""
    from filelock import FileLock

    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        reason = _disk_reason(error)
        raise UserError(f"cannot write to {path.parent}: {reason}; set CONVAI_CACHE to a folder of yours") from error
    try:
        yield
    finally:
        lock.release()


def _download(url: str, target: Path, advice: str) -> None:
    """Transfer `url` to `target`, trying again after failures that may pass."""
    import urllib3

    part, note = (target.with_name(target.name + suffix) for suffix in (".part", ".part.json"))
    failures = longest = 0
    while True:
        try:
            _transfer(url, part, note)
            part.replace(target)
            note.unlink(missing_ok=True)
            return
        except (OSError, urllib3.exceptions.HTTPError) as error:  # what requests raises is an OSError
            reason, may_pass = _network_reason(error)
            size = part.stat().st_size if part.exists() else 0
            failures, longest = (0, size) if size > longest else (failures, longest)
            if not may_pass or failures == len(RETRY_PAUSES_S):
                raise UserError(_line(f"cannot download {url}: {reason}", advice)) from error
            time.sleep(RETRY_PAUSES_S[failures])
            failures += 1


def _transfer(url: str, part: Path, note: Path) -> None:
    """Complete the file `part` in one request; `note` holds the version and length of what `part` is a piece of."""
    from tqdm import tqdm

    try:
        version, total = json.loads(note.read_text())
    except (OSError, ValueError, TypeError):  # missing, or cut short by a crash: start again
        version, total = "", None
    have = part.stat().st_size if version and part.exists() else 0
    if have and have == total:  # stopped between the last byte and the renaming
        return
    logger.info("downloading %s to %s", url, part.parent)
    response, offset, total = _request(url, have, version, total)
    if not offset:
        part.unlink(missing_ok=True)  # before the note: old bytes must never pass for a piece of the new version
        note.write_text(json.dumps([_version(response), total]))
    unit = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
    # disable=None: silent unless stderr is a terminal
    bar = tqdm(desc=part.stem.partition("-")[2], total=total, initial=offset, disable=None, leave=False, **unit)
    with response, bar, part.open("ab") as file:
        # The bytes as they were sent: these are what Content-Length and Range count.
        for block in response.raw.stream(BLOCK_BYTES, decode_content=False):
            file.write(block)
            bar.update(len(block))
    size = part.stat().st_size
    if total is not None and size != total:
        if size > total:
            part.unlink()
        raise ConnectionError(f"{size:,} of {total:,} bytes arrived")


def _request(url: str, have: int, version: str, total: int | None):
    """GET `url` from byte `have` on, or all of it where the server cannot continue that version.

    Returns the open response, the offset of its first byte (`have` or 0) and the length of the whole file if known.
    """
    import requests

    resume = {"Range": f"bytes={have}-", "If-Range": version} if have else {}
    response = requests.get(url, headers={"Accept-Encoding": "identity"} | resume, stream=True, timeout=TIMEOUT_S)
    if have and response.status_code in (206, 416):
        # A server may know Range but not If-Range: see for ourselves that the file is still the same.
        sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        same = _version(response) in ("", version) and sent and total in (None, int(sent[2]))
        if response.status_code == 206 and same and int(sent[1]) == have:
            return response, have, int(sent[2])
        response.close()
        return _request(url, 0, "", None)
    response.raise_for_status()
    length = response.headers.get("Content-Length", "")
    return response, 0, int(length) if length.isdecimal() else None


def _version(response) -> str:
    """What If-Range can compare: a strong ETag, else the date of the last change, else nothing."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _network_reason(error: Exception) -> tuple[str, bool]:
    """Say in plain words why a transfer failed, and whether that may pass by itself."""
    import requests
    import urllib3

    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)

    def is_a(*kinds: type) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if isinstance(error, requests.HTTPError):
        status = error.response.status_code
        return f"HTTP {status} {error.response.reason}", status >= 500 or status in (408, 429)
    if is_a(socket.gaierror):
        return "the host name could not be resolved (is there a network?)", False
    if is_a(ConnectionRefusedError):
        return "connection refused", False
    if is_a(requests.exceptions.SSLError):
        return f"no secure connection ({causes[-1]})", False
    if is_a(requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError):
        return "timed out", not is_a(requests.ConnectTimeout)
    if is_a(ConnectionError, urllib3.exceptions.ProtocolError):
        return f"the connection broke off ({error})", True
    return _disk_reason(causes[-1]), False


def _disk_reason(error: Exception) -> str:
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the disk"
    return f"{error.strerror}: {error.filename}" if getattr(error, "filename", None) else str(error)


def _line(text: str, advice: str = "") -> str:
    return " ".join((f"{text}; {advice}" if advice else text).split())


class _TarBytes:
    """The bytes of a tar file as `tarfile` reads them, with bounds on all of them and on each header."""

    def __init__(self, file: BinaryIO, max_bytes: int):
        self.file, self.max_bytes, self.latest = file, max_bytes, b""
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES or self.tell() > self.max_bytes:
            raise BadArchive("it is too large when unpacked, or has oversized headers")
        self.latest = self.file.read(size)
        return self.latest


def _members(archive: Path, max_tar_bytes: int) -> Iterator[tuple[str, str, Callable[[], BinaryIO]]]:
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
                    yield info.filename, kind, functools.partial(zipped.open, info)
            return
        stream = _TarBytes(gzip.GzipFile(fileobj=file) if magic == b"\x1f\x8b" else file, max_tar_bytes)
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            for member in tar:
                plain = member.isreg() and not member.issparse() and member.size >= 0
                kind = "file" if plain else "folder" if member.isdir() else "link" if member.linkname else None
                yield member.name, kind, functools.partial(tar.extractfile, member)
        if stream.latest != bytes(tarfile.BLOCKSIZE):  # tarfile takes a missing end marker for the end
            raise tarfile.ReadError("it ends too early")
        while stream.read(BLOCK_BYTES):  # gzip compares its checksum only at the end
            pass


def _extract(members: Iterator, folder: Path, max_bytes: int, max_files: int) -> None:
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
            with open_member() as source, path.open("xb") as copy:
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


def _top_folder(folder: Path) -> Path:
    """The one folder in `folder` if there is nothing beside it, else `folder`."""
    entries = list(folder.iterdir())
    return entries[0] if len(entries) == 1 and entries[0].is_dir() else folder
