"""Ending a run in order on SIGTERM and Ctrl-C: the update is finished and a checkpoint written first."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

# How processes that were ended by a signal are known to shells.
EXIT_STATUS_OF_SIGNAL = 128


class Interruption:
    """Takes note of SIGINT and SIGTERM within `watch`; outside of it they act as usual."""

    def __init__(self, has_launcher: bool = False):
        """With a launcher, which repeats the signals that it passes on, a second one does not end the run at once."""
        self.signal_number = 0
        self._has_launcher = has_launcher
        self._at_once = False
        self._process = os.getpid()

    def has_come(self) -> bool:
        """Whether a signal was noted."""
        return self.signal_number > 0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Note signals instead of being ended by them."""
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within this block, where a checkpoint is already written, a signal ends the process without waiting."""
        self._at_once = True
        try:
            if self.signal_number:
                self.leave()
            yield
        finally:
            self._at_once = False

    def leave(self) -> None:
        """Exit with the status of the signal."""
        sys.exit(EXIT_STATUS_OF_SIGNAL + (self.signal_number or signal.SIGTERM))

    def _note(self, number: int, frame) -> None:
        if os.getpid() != self._process:  # a worker that loads data; it ends with its parent
            return
        is_repeated, self.signal_number = bool(self.signal_number), number
        if self._at_once or (is_repeated and not self._has_launcher):
            self.leave()
        if not is_repeated:
            logger.warning("%s: finishing this update, then writing a checkpoint ...", signal.Signals(number).name)
