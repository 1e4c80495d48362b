"""Files and archives from the web, fetched once into the user's cache: resumable and checked.

What is in the cache already costs no network access; delete it from `cache_folder()` to have it fetched again.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from convai.errors import UserError, disk_reason, one_line
from convai.io.archives import BadArchive, top_folder, unpack_archive

TIMEOUT_S = (10, 60)  # to connect; between two blocks of the body
RETRY_PAUSES_S = (1, 4, 10)  # after failures that may pass, in a row without progress
BLOCK_BYTES = 1 << 16  # what an interrupted download may lose

logger = logging.getLogger(__name__)


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
        with locked(target):
            if not target.is_file():  # another process may have fetched it while we waited
                _download(url, target, advice)
    return target


def fetch_archive(url: str, *, advice: str = "") -> Path:
    """Return the folder with the content of the archive at `url`, fetched and unpacked into the cache only once.

    Raises UserError as `fetch` and `unpack_archive` do.
    """
    target = cache_folder() / (_cached_name(url) + ".unpacked")
    if not target.is_dir():
        with locked(target):
            if not target.is_dir():
                archive = fetch(url, advice=advice)
                try:
                    unpack_archive(archive, target)
                except BadArchive as error:
                    archive.unlink()  # kept, it would fail again on every later call
                    raise BadArchive(one_line(f"{url}: {error}. {advice}")) from error
                archive.unlink()
    return top_folder(target)


def _cached_name(url: str) -> str:
    """A file name: a hash that keeps equal names from different places apart, then the readable name."""
    last = unquote(re.split(r"[?#]", url)[0].rstrip("/").rpartition("/")[2])
    name = re.sub(r"[^\w.-]+", "_", last, flags=re.ASCII)
    return f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name[-80:] or 'download'}"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from making `path` at the same time."""
    from filelock import FileLock

    lock = FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        reason = disk_reason(error)
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
                raise UserError(one_line(f"cannot download {url}: {reason}. {advice}")) from error
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
    unit: dict[str, Any] = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
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
        same = _version(response) in ("", version) and total in (None, int(sent[2])) if sent else False
        if response.status_code == 206 and sent and same and int(sent[1]) == have:
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

    causes: list[BaseException] = [error]
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
    return disk_reason(causes[-1]), False
