"""Hashes of data files that are computed once: kept beside the cache, with what shows that a file is still the same."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from convai.data.compressed import open_checked
from convai.io.files import write_json

# A file that was written so recently may change once more within one tick of the disk's clock.
_UNSETTLED_S = 2.0
_MAX_KEPT = 1000


class KnownDigests:
    """SHA-256 of files; one whose size, time and inode are those of its last hashing is not read again."""

    def __init__(self, cache: str = ""):
        """`cache` is the path prefix of the token cache; "" keeps nothing."""
        prefix = Path(cache)
        self._path = prefix.with_name(f".{prefix.name}.digests.json") if cache else None
        self._known: dict[str, Any] | None = None

    def of(self, path: Path) -> bytes:
        """Return the hash of a file's content; UserError where it cannot be read."""
        with open_checked(path) as file:
            if self._path is None:
                return hashlib.file_digest(file, "sha256").digest()
            if self._known is None:
                self._known = _read(self._path)
            name, state = str(path.resolve()), _state(path)
            recorded = self._known.get(name)
            if isinstance(recorded, dict) and recorded.get("state") == state:
                return bytes.fromhex(recorded["sha256"])
            digest = hashlib.file_digest(file, "sha256").digest()
        is_settled = time.time() - state[1] / 1e9 > _UNSETTLED_S
        if is_settled and _state(path) == state:
            self._known.pop(name, None)
            self._known[name] = {"state": state, "sha256": digest.hex()}
            self._write()
        return digest

    def _write(self) -> None:
        assert self._path is not None and self._known is not None
        latest = dict(list(self._known.items())[-_MAX_KEPT:])
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, latest)
        except OSError:  # a folder that cannot be written: the next run reads the file once more
            return


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ino]


def _read(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: the files are hashed again
        return {}
    return known if isinstance(known, dict) else {}
