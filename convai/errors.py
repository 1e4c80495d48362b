"""Mistakes a user can mend: reported as one line with exit status 2, never as a traceback."""

import errno
import functools
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A problem with what the user gave (a file, an option, the network): says what, where, and what to do."""


class NoFigure(UserError):
    """A figure that cannot be given, as it would mean nothing; others still can."""


def report_user_errors(main: Callable) -> Callable:
    """Wrap a script's `main`: a UserError becomes one line on stderr and exit status 2, Ctrl-C exits with 130."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"{rank_label()}error: {error}", file=sys.stderr, flush=True)
            sys.exit(2)
        except KeyboardInterrupt:
            print(f"{rank_label()}interrupted", file=sys.stderr, flush=True)
            sys.exit(130)

    return wrapped


def rank_label() -> str:
    """Return "rank N: " in every process of several but the first, "" otherwise."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"rank {rank}: "


def disk_reason(error: BaseException) -> str:
    """Return in plain words why a file could not be read or written."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the disk"
    return f"{error.strerror}: {error.filename}" if isinstance(error, OSError) and error.filename else str(error)


def one_line(text: str) -> str:
    return " ".join(text.split())
