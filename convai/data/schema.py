"""What data may hold: the names of its parts and keys. What is unknown is named, what is wrong is refused.

All readers share these rules: files of JSON and CSV (json_text.py), tables (tables.py), ParlAI's text (parlai_text.py).
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from convai.errors import UserError

# Our names of the parts of a data set, and what others call them.
PART_NAMES = {
    "train": ("train", "training"),
    "valid": ("valid", "validation", "dev", "val", "eval"),
    "test": ("test", "testing"),
}
DIALOG_KEYS = frozenset({"personality", "utterances"})
UTTERANCE_KEYS = frozenset({"history", "candidates"})
# Names that other formats give to what our keys hold; misspelled ones are found by their letters.
_SYNONYMS = {
    "personality": {"persona", "personas", "profile", "facts"},
    "utterances": {"dialog", "dialogs", "dialogue", "turns", "messages", "conversation"},
    "history": {"context", "dialog_history", "dialogue_history"},
    "candidates": {"reply", "replies", "response", "responses", "options"},
    "labels": {"answer", "answers"},
}
_SIMILARITY = 0.75  # of letters, from which on a key is taken for a misspelled one
BYTE_ORDER_MARK = "\ufeff"

Part = TypeVar("Part")

logger = logging.getLogger(__name__)


class Strings(dict[str, str]):
    """Equal strings as one object, without byte order marks: `strings[text]`.

    PersonaChat repeats every utterance dozens of times: sharing equal ones bounds the memory.
    """

    def __missing__(self, text: str) -> str:
        self[text] = plain = text.replace(BYTE_ORDER_MARK, "")
        return plain

    def share(self, value: Any) -> Any:
        """Return a parsed value with all of its strings shared."""
        if isinstance(value, str):
            return self[value]
        if isinstance(value, list):
            return [self.share(item) for item in value]
        return {key: self.share(item) for key, item in value.items()} if isinstance(value, dict) else value


class Losses:
    """Counts what a file holds that dialogs of our form do not, to be said in one line."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.fields: set[str] = set()

    def tell(self, where: Path | str) -> None:
        parts = [f"{what}: {n}" for what, n in self.counts.items() if n]
        if self.fields:
            parts.append(f"names of fields that are ignored: {', '.join(sorted(self.fields))}")
        if parts:
            logger.warning("%s: %s", where, "; ".join(parts))


def part_of_name(name: str) -> str | None:
    """Return our name of a part of a data set; None for one that is unknown."""
    return next((ours for ours, names in PART_NAMES.items() if name.lower() in names), None)


def name_parts(parts: Mapping[str, Part | None], where: Path | str) -> dict[str, Part]:
    """Return the parts of a data set by our names, in our order; one that is None counts as missing.

    Unknown ones are named in a warning. Raises UserError where none is known, or two stand for the same part.
    """
    found: dict[str, tuple[str, Part]] = {}
    for name, part in parts.items():
        ours = part_of_name(name)
        if ours is None or part is None:
            continue
        if ours in found:
            raise UserError(f'{where}: "{found[ours][0]}" and "{name}" are both names of the {ours} part; join them, '
                            "or leave one out.")  # fmt: skip
        found[ours] = (name, part)
    known = ", ".join(name for names in PART_NAMES.values() for name in names)
    if not found:
        raise UserError(f"{where}: it holds {_quoted(parts) or 'nothing'}, but no part of a known name ({known}); see "
                        "example_entry.py for the format.")  # fmt: skip
    if unknown := [name for name in parts if part_of_name(name) is None]:
        logger.warning("%s: ignored, as no such parts are known: %s (known: %s)", where, _quoted(unknown), known)
    return {ours: found[ours][1] for ours in PART_NAMES if ours in found}


def key_meant(unknown: str, missing: Collection[str]) -> str | None:
    """Return the one of the `missing` keys that an unknown one seems to stand for; None where it is like none."""
    plain = unknown.lower().strip(" _-")
    for key in missing:
        if plain == key or plain in _SYNONYMS.get(key, ()):
            return key
    return next(iter(get_close_matches(plain, missing, n=1, cutoff=_SIMILARITY)), None)


class KeyCheck:
    """The unknown keys of one data set: refused where they look like a missing one, otherwise counted and told."""

    def __init__(self, where: Path | str):
        self.where = where
        self.counts: Counter[str] = Counter()

    def check(self, entry: Mapping[str, Any], known: frozenset[str], place: str) -> None:
        """Count the keys of an entry that are not among the `known`; null counts as missing on either side."""
        if entry.keys() <= known:
            return
        missing = sorted(key for key in known if entry.get(key) is None)
        for key, value in entry.items():
            if key in known or value is None:
                continue
            self.counts[key] += 1
            # A number, say, is no misnamed list of sentences.
            if isinstance(value, list | str | dict) and (meant := key_meant(key, missing)):
                raise UserError(f'{place}: the key "{key}" is unknown; did you mean "{meant}"? Rename or remove it.')

    def tell(self) -> None:
        """Name the unknown keys, if any, in one warning."""
        if self.counts:
            named = ", ".join(f'"{key}" ({n} times)' for key, n in self.counts.items())
            logger.warning("%s: ignored, as no such keys are known: %s", self.where, named)


def check_dialog(dialog: Any, where: str, keys: KeyCheck) -> None:
    """Raise UserError, naming the place, where a parsed dialog is not of the schema; fill in a missing personality."""
    if not isinstance(dialog, dict):
        raise UserError(f"{where} must be an object, not {kind_of(dialog)}.")
    keys.check(dialog, DIALOG_KEYS, where)
    if dialog.get("personality") is None:
        dialog["personality"] = []
    check_strings(dialog["personality"], f'{where}, key "personality"')
    utterances = dialog.get("utterances")
    if not isinstance(utterances, list):
        raise UserError(f'{where}, key "utterances" must be a list, not {kind_of(utterances)}.')
    if not utterances:
        raise UserError(f'{where} has no turns: its "utterances" are empty; fill or remove it.')
    for number, utterance in enumerate(utterances):
        place = f"{where}, utterance {number}"
        if not isinstance(utterance, dict):
            raise UserError(f"{place} must be an object, not {kind_of(utterance)}.")
        keys.check(utterance, UTTERANCE_KEYS, place)
        for key in ("history", "candidates"):
            check_strings(utterance.get(key), f'{place}, key "{key}"')
        if not utterance["candidates"]:
            raise UserError(f'{place}, key "candidates" is empty; it needs at least the gold reply.')


def check_strings(value: Any, where: str) -> None:
    """Raise UserError where a value is no list of strings."""
    if not isinstance(value, list):
        raise UserError(f"{where} must be a list of strings, not {kind_of(value)}.")
    for item in value:
        if not isinstance(item, str):
            raise UserError(f"{where} must hold strings only, not {kind_of(item)}.")


def one_by_one(objects: Any) -> Any:
    """Return a list of objects, also where older versions of `datasets` have written one object of lists."""
    if not isinstance(objects, dict) or not all(isinstance(values, list) for values in objects.values()):
        return objects
    return [dict(zip(objects, values, strict=True)) for values in zip(*objects.values(), strict=True)]


def kind_of(value: Any) -> str:
    """Return what kind of JSON value this is, in words."""
    names = {type(None): "missing or null", dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    if type(value) in names:
        return names[type(value)]
    return "a number" if isinstance(value, int | float) else type(value).__name__  # a table may hold bytes or times


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
