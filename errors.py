"""Mistakes a user can mend: reported as one line with exit status 2, never as a traceback."""

import functools
import sys
from collections.abc import Callable


class UserError(Exception):
    """A problem with what the user gave (a file, an option, the network): says what, where, and what to do."""


def report_user_errors(main: Callable) -> Callable:
    """Wrap a script's `main`: a UserError becomes one line on stderr and exit status 2, Ctrl-C exits with 130."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    return wrapped
