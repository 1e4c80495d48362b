"""Which dialogs are held out for validation, of data that have no valid part."""

import logging
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from convai.data.conversation import Dialog
from convai.errors import UserError

SPLITS = ("train", "valid")
HELD_OUT_SHARE = 0.05
# The data's own seed: which dialogs are held out must not change with --seed, or runs could not be compared.
DATA_SEED = 42

logger = logging.getLogger(__name__)


class Plan(NamedTuple):
    """Which parts of the data become which splits."""

    part_of: dict[str, str]  # by split; of a lone part both are made
    held_out: bytearray | None  # for each conversation of the lone part whether it goes to valid


class Data(NamedTuple):
    """What a store is made of."""

    where: str  # for messages
    dialogs: Callable[[], Iterator[tuple[str, Dialog | None]]]  # by part, read anew by each call; see spool
    plan: Callable[[Mapping[str, int], int], Plan]  # from dialogs by part, and conversations of the lone part
    progress: Callable[[], tuple[int, int]] = lambda: (0, 0)  # bytes or rows read, and all of them; 0 is unknown


def plan_splits(where: str, parts: Collection[str], n_dialogs: int, n_conversations: int, split_needed: bool) -> Plan:
    """Return how the parts make up train and valid; UserError where they cannot.

    The numbers are those of `lone_part(parts)`. Where no split is needed, a lone dialog is all in train.
    """
    if all(name in parts for name in SPLITS):
        return Plan({name: name for name in SPLITS}, None)
    if set(parts) == {"test"}:
        raise UserError(f"{where}: it has a test part only, which is for evaluation; name it train to learn from it.")
    whole = lone_part(parts)
    if not n_dialogs:
        raise UserError(f"{where}: the train split is empty; it needs at least two dialogs.")
    if n_conversations == 1 and not split_needed:
        return Plan(dict.fromkeys(SPLITS, whole), bytearray(1))
    if n_conversations < 2:
        raise UserError(f"{where}: a lone dialog cannot be split; give at least two, or TRAIN,VALID.")
    return Plan(dict.fromkeys(SPLITS, whole), draw(n_conversations))


def lone_part(parts: Collection[str]) -> str:
    """Return the part that dialogs are held out of."""
    return next(name for name in ("train", "", "valid") if name in parts)


def draw(n_conversations: int) -> bytearray:
    """Return a 1 for each conversation that is held out, 0 for the others."""
    n_held_out = max(1, round(HELD_OUT_SHARE * n_conversations))
    held_out = bytearray(n_conversations)
    if n_conversations < 1000:
        for number in random.Random(DATA_SEED).sample(range(n_conversations), n_held_out):
            held_out[number] = 1
        return held_out
    # What `sample` draws of so many, without its set of numbers, which would take much memory of very many.
    drawn = random.Random(DATA_SEED)
    for _ in range(n_held_out):
        number = drawn.randrange(n_conversations)
        while held_out[number]:
            number = drawn.randrange(n_conversations)
        held_out[number] = 1
    return held_out


def tell(where: str, parts: Collection[str], n_held_out: int, n_dialogs: int) -> None:
    """Say how many dialogs are held out."""
    missing = "train" if lone_part(parts) == "valid" else "valid"
    unused = "; its test split is not used" if "test" in parts else ""
    logger.info("%s has no %s split: %d of its %d dialogs are held out for valid%s", where, missing, n_held_out,
                n_dialogs, unused)  # fmt: skip


def with_held_out(where: str, splits: Mapping[str, list[Dialog]], split_needed: bool) -> dict[str, list[Dialog]]:
    """Return train and valid of dialogs in lists; UserError where they cannot be had."""
    whole: list[Dialog] = [] if all(name in splits for name in SPLITS) else splits.get(_lone_or_test(splits), [])
    groups = held_out_together(whole)
    plan = plan_splits(where, splits.keys(), len(whole), len(groups), split_needed)
    if plan.held_out is None:
        return {name: splits[name] for name in SPLITS}
    chosen = {i for is_out, group in zip(plan.held_out, groups, strict=True) if is_out for i in group}
    if chosen:
        tell(where, splits.keys(), len(chosen), len(whole))
    return {
        "train": [dialog for i, dialog in enumerate(whole) if i not in chosen],
        "valid": [dialog for i, dialog in enumerate(whole) if i in chosen],
    }


def _lone_or_test(parts: Collection[str]) -> str:
    return "test" if set(parts) == {"test"} else lone_part(parts)


def held_out_together(dialogs: Sequence[Dialog]) -> list[list[int]]:
    """Return the numbers of the dialogs, those of one conversation together, in their order."""
    groups: dict[Any, list[int]] = {}
    for number, dialog in enumerate(dialogs):
        groups.setdefault(getattr(dialog, "conversation", number), []).append(number)
    return list(groups.values())
