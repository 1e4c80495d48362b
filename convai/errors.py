"""Mistakes a user can mend: reported as one line with exit status 2, never as a traceback."""

import errno
import functools
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """A problem with what the user gave (a file, an argument, the network): says what, where, and what to do."""


class NoFigure(UserError):
    """A figure that cannot be given, as it would mean nothing; others still can."""


class _Speech:
    """How messages name what the user can change."""

    is_of_options = False


def speak_of_options(is_of_options: bool = True) -> None:
    """Have messages name arguments as a script's options, `--like_this`, rather than as Python's, `like_this`."""
    _Speech.is_of_options = is_of_options


def argument(name: str) -> str:
    """Return an argument's name for a message, as the user gives it."""
    return f"--{name}" if _Speech.is_of_options else name


def report_user_errors(main: Callable) -> Callable:
    """Wrap a script's `main`: a UserError becomes one line on stderr and exit status 2, Ctrl-C exits with 130.

    From then on messages speak of options.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        speak_of_options()
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
