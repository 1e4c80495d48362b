"""Rows of one reply each, in any order, into conversations: on disk, as the last row may belong to the first."""

import json
import sqlite3
import tempfile
from collections.abc import Iterator
from typing import Any

from convai.data.conversation import Row
from convai.data.text_stream import MAX_DIALOG_BYTES, too_large
from convai.errors import UserError, disk_reason

_KEYS = ("personality", "history", "candidates")
_N_INSERTED = 10_000  # rows at once
_LARGEST = 1e300


class Replies:
    """Keeps rows in a temporary file until all are there, and what orders them in a temporary database."""

    def __init__(self) -> None:
        """Raises UserError, as the other methods do, where there is no room."""
        self._keys: list[tuple[str, float, int, int, int]] = []
        self._n_rows = self._n_bytes = 0
        try:
            self._file = tempfile.TemporaryFile(prefix="convai-")  # noqa: SIM115 (`conversations` closes it)
            # A database without a name lies in memory while it is small, then in a temporary file.
            self._database = sqlite3.connect("")
            self._database.execute("PRAGMA temp_store = FILE")
            self._database.execute("PRAGMA cache_size = -32768")  # kB
            self._database.execute("CREATE TABLE replies (conversation TEXT, place REAL, n INTEGER, start INTEGER, "
                                   "size INTEGER)")  # fmt: skip
        except (OSError, sqlite3.Error) as error:
            raise _no_room(error) from error

    def add(self, row: Row) -> None:
        """Take a row in: one without `conv_id` is a conversation by itself, one without `utterance_idx` comes first."""
        content = json.dumps({key: row.get(key) for key in _KEYS}).encode()
        place = min(max(row.get("utterance_idx") or 0, -_LARGEST), _LARGEST)
        key = _key_of(row.get("conv_id"), self._n_rows)
        self._keys.append((key, float(place), self._n_rows, self._n_bytes, len(content)))
        self._n_rows += 1
        self._n_bytes += len(content)
        try:
            self._file.write(content)
            if len(self._keys) == _N_INSERTED:
                self._insert()
        except (OSError, sqlite3.Error) as error:
            raise _no_room(error) from error

    def conversations(self) -> Iterator[list[Row]]:
        """Yield the rows of each conversation, in their order; conversations in the order of their first rows."""
        try:
            self._insert()
            self._database.execute("CREATE TABLE firsts AS SELECT conversation, MIN(n) AS first FROM replies GROUP BY "
                                   "conversation")  # fmt: skip
            found = self._database.execute(
                "SELECT first, start, size FROM replies JOIN firsts USING (conversation) ORDER BY first, place, n"
            )
            yield from self._joined(found)
        except (OSError, sqlite3.Error) as error:
            raise _no_room(error) from error
        finally:
            self._database.close()
            self._file.close()

    def _joined(self, found: sqlite3.Cursor) -> Iterator[list[Row]]:
        rows: list[Row] = []
        previous, n_bytes = None, 0
        for first, start, size in found:
            if rows and first != previous:
                yield rows
                rows, n_bytes = [], 0
            previous = first
            n_bytes += size
            if n_bytes > MAX_DIALOG_BYTES:
                raise too_large(f"the conversation that begins with row {first} of the replies")
            self._file.seek(start)
            rows.append(json.loads(self._file.read(size)))
        if rows:
            yield rows

    def _insert(self) -> None:
        self._database.executemany("INSERT INTO replies VALUES (?, ?, ?, ?, ?)", self._keys)
        self._keys.clear()


def _key_of(conversation: Any, n_row: int) -> str:
    """Return what rows of one conversation share; 7 and 7.0 are the same one, "7" is another."""
    if conversation is None:
        return f"row {n_row}"
    if isinstance(conversation, str):
        return "text " + json.dumps(conversation)  # ASCII, whatever it holds
    is_whole = isinstance(conversation, int) or conversation.is_integer()
    return f"number {int(conversation) if is_whole else conversation!r}"


def _no_room(error: Exception) -> UserError:
    return UserError(f"the rows of replies cannot be put in order in {tempfile.gettempdir()} ({disk_reason(error)}); "
                     "make room there, or set TMPDIR to a folder with more.")  # fmt: skip
