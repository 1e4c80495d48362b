"""Values of options: each function takes what was typed and returns the value, or says what it should have been."""

import argparse
import os

MAX_SEED = 2**63 - 1  # what torch takes


def path(text: str) -> str:
    """Return a path with `~` expanded, which shells leave as it is in `--option=~/file`; "" and names stay."""
    return os.path.expanduser(text)


def non_negative_int(text: str) -> int:
    return _number(text, int, "a whole number of at least 0", lambda value: value >= 0)


def positive_int(text: str) -> int:
    return _number(text, int, "a whole number of at least 1", lambda value: value >= 1)


def seed_number(text: str) -> int:
    return _number(text, int, f"a whole number from 0 to {MAX_SEED}", lambda value: 0 <= value <= MAX_SEED)


def non_negative_float(text: str) -> float:
    return _number(text, float, "a number of at least 0", lambda value: 0 <= value < float("inf"))


def positive_float(text: str) -> float:
    return _number(text, float, "a number above 0", lambda value: 0 < value < float("inf"))


def probability(text: str) -> float:
    return _number(text, float, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def _number(text: str, kind: type, wanted: str, holds):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not holds(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value
