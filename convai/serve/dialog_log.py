"""--log_dialogs: what was said, as lines of chat messages that training reads.

Each dialog is in the file once, with all its turns. A request brings a whole dialog, so the line of what it continues
is overwritten with spaces, which readers skip, once the longer one is there. A server that is killed loses nothing.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from convai.data.messages import message_line
from convai.errors import UserError, disk_reason

MAX_REMEMBERED = 10_000  # dialogs that a request may still continue


class _Line(NamedTuple):
    start: int
    content: bytes


class DialogLog:
    """Appends dialogs to a file. UserError where it cannot be opened."""

    def __init__(self, path: Path):
        self.path = path
        self._lines: OrderedDict[tuple[str, ...], _Line] = OrderedDict()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # For nobody else to read, as it holds what people said.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            self._file = os.fdopen(descriptor, "r+b", buffering=0)
            self._end_line()
        except OSError as error:
            raise UserError(f"--log_dialogs {path} cannot be written: {disk_reason(error)}.") from error

    def add(self, persona: Sequence[str], turns: Sequence[str], reply: str) -> None:
        """Write a dialog and its new reply; OSError where that fails."""
        text = message_line(persona, [*turns, reply], agent_begins=len(turns) % 2 == 0)
        line = _Line(self._file.seek(0, os.SEEK_END), text.encode())
        self._file.write(line.content)
        before = self._lines.pop((*persona, "", *turns[:-1]), None)
        if before:
            self._blank(before)
        self._lines[(*persona, "", *turns, reply)] = line
        if len(self._lines) > MAX_REMEMBERED:
            self._lines.popitem(last=False)

    def close(self) -> None:
        self._file.close()

    def _blank(self, line: _Line) -> None:
        """Overwrite a line, unless others have changed the file meanwhile."""
        self._file.seek(line.start)
        if self._file.read(len(line.content)) == line.content:
            self._file.seek(line.start)
            self._file.write(b" " * (len(line.content) - 1))

    def _end_line(self) -> None:
        """Begin a new line where the file ends within one."""
        if self._file.seek(0, os.SEEK_END):
            self._file.seek(-1, os.SEEK_END)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")
