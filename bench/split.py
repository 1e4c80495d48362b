"""A training and evaluation split of public dialogs whose personas training does not know.

    python -m bench.split --valid VALID.json --train OURS.txt OTHERS.txt --output FOLDER --plain

In public data many personas of the evaluation dialogs stand among the training dialogs, too, whole or in part, which
flatters every figure measured there. Here a training dialog that shares a persona sentence with an evaluation dialog is
left out. Two files are written in PersonaChat's form, as train.py's --dataset_path takes them:

    final.json     what is kept, and the evaluation dialogs as they are
    tuning.json    to choose settings on: some of the kept dialogs of the first source held out, and the others without
                   those that share a persona sentence with these

Personas are compared, conversations are not: both sides of one may stand on both sides of a split.
"""

import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, NamedTuple

from bench.plain import as_convai2, long_forms
from convai.data.conversation import Dialog
from convai.data.formats import find_source, load_for_evaluation
from convai.errors import UserError, argument, report_user_errors
from convai.io.files import write_json
from convai.options import option, parser_of, path, positive_int


@dataclass(frozen=True)
class SplitOptions:
    """Options of `python -m bench.split`."""

    description: ClassVar[str] = "Make a training and evaluation split of dialogs without personas in common."
    valid: str = option("", "dialogs to evaluate on, in any form that train.py reads", metavar="DATA")
    train: list[str] = option([], "dialogs to train on: one source or several", nargs="+", metavar="DATA")
    output: str = option("", "folder for final.json and tuning.json", kind=path, metavar="FOLDER")
    holdout: int = option(50, "dialogs of the first source that are held out in tuning.json", kind=positive_int)
    plain: bool = option(False, "rewrite the training dialogs as ConvAI2 writes English: lower case, tokens apart")
    seed: int = option(42, "random seed for the choice of the dialogs held out", kind=int)

    def __post_init__(self) -> None:
        for name in ("valid", "train", "output"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is missing")


class Example(NamedTuple):
    """A dialog, and by what its persona is known."""

    dialog: Dialog
    keys: frozenset[str]


class Split(NamedTuple):
    """What was read, and what became of it; `read` and `kept` hold a list for each training source."""

    read: list[list[Example]]
    kept: list[list[Example]]
    valid: list[Example]
    tuning: list[Example]
    held_out: list[Example]

    def files(self) -> dict[str, dict[str, list[Dialog]]]:
        """Return the content of the files by their names."""
        parts = {"final.json": (flat(self.kept), self.valid), "tuning.json": (self.tuning, self.held_out)}
        return {
            name: {"train": [one.dialog for one in train], "valid": [one.dialog for one in valid]}
            for name, (train, valid) in parts.items()
        }


@report_user_errors
def main(arguments: Sequence[str] | None = None) -> None:
    options = parser_of(SplitOptions, prog="python -m bench.split").parse_args(arguments)
    split = make_split(options)
    try:
        Path(options.output).mkdir(parents=True, exist_ok=True)
        for name, parts in split.files().items():
            write_json(Path(options.output) / name, parts, indent=None)
    except OSError as error:
        raise UserError(f"--output {options.output} cannot be written ({error.strerror}).") from error
    print("\n".join([*source_table(options, split), "", *overlap_table(split), "", *tuning_lines(options, split)]))


def make_split(options: SplitOptions) -> Split:
    """Read all sources and part their dialogs; raises UserError where nothing would be left."""
    valid = [example_of(dialog) for dialog in read_part(options.valid, "valid")]
    read = [[example_of(dialog, options.plain) for dialog in read_part(source, "train")] for source in options.train]
    kept = [unrelated(examples, valid) for examples in read]
    if len(kept[0]) < options.holdout:
        raise UserError(f"--holdout {options.holdout}: of {options.train[0]} {len(kept[0])} dialogs share no persona "
                        "sentence with those to evaluate on; hold out fewer.")  # fmt: skip
    chosen = set(random.Random(options.seed).sample(range(len(kept[0])), options.holdout))
    held_out = [kept[0][i] for i in sorted(chosen)]
    rest = [example for i, example in enumerate(kept[0]) if i not in chosen]
    tuning = unrelated([*rest, *flat(kept[1:])], held_out)
    if not tuning:
        raise UserError(f"--holdout {options.holdout}: no training dialog is left that shares no persona sentence with "
                        "those held out; hold out fewer, or add training dialogs.")  # fmt: skip
    return Split(read, kept, valid, tuning, held_out)


def read_part(source: str, part: str) -> list[Dialog]:
    """Return the dialogs to evaluate on, or those to train on: a source's part of that name, or all where it has none.

    UserError, by the option's name, where there are none.
    """
    try:
        if part == "valid":
            return load_for_evaluation(source)[1]
        parts = find_source(source).splits()
    except UserError as error:
        raise UserError(str(error).replace(argument("dataset_path"), argument(part))) from error
    dialogs = parts.get("train", parts.get(""))
    if dialogs is None:
        raise UserError(f"--train {source}: it has {' and '.join(parts)}, but no train part; give another source.")
    if not dialogs:
        raise UserError(f"--train {source}: there are no dialogs to train on; give another source.")
    return dialogs


def example_of(dialog: Dialog, is_rewritten: bool = False) -> Example:
    """Return a dialog with the keys of its persona: as it was and, where it is rewritten, as it is now."""

    def texts(originals: list[str]) -> list[str]:
        return list(map(as_convai2, originals)) if is_rewritten else originals

    persona = texts(dialog["personality"])
    utterances = [{key: texts(turn[key]) for key in ("candidates", "history")} for turn in dialog["utterances"]]
    keys = keys_of(dialog["personality"]) | keys_of(persona)
    return Example({"personality": persona, "utterances": utterances}, keys)


@cache
def sentence_keys(sentence: str) -> frozenset[str]:
    """Return by what a persona sentence is known: its letters and digits, as they are and with contractions in full.

    ConvAI2 contracts at random, and others who use its personas do not: "i'm a nurse" is known from "I am a nurse."
    """
    texts = (sentence.lower(), long_forms(as_convai2(sentence)))
    return frozenset("".join(filter(str.isalnum, text)) for text in texts) - {""}


def keys_of(persona: Iterable[str]) -> frozenset[str]:
    return frozenset().union(*map(sentence_keys, persona))


def all_keys(examples: Iterable[Example]) -> frozenset[str]:
    return frozenset().union(*(example.keys for example in examples))


def unrelated(examples: Iterable[Example], others: Iterable[Example]) -> list[Example]:
    """Return the examples that share no persona sentence with any of the others."""
    known = all_keys(others)
    return [example for example in examples if not example.keys & known]


def flat(lists: Iterable[list[Example]]) -> list[Example]:
    return [example for one in lists for example in one]


def n_replies(examples: Iterable[Example]) -> int:
    return sum(len(example.dialog["utterances"]) for example in examples)


def n_sentences_known(valid: Iterable[Example], train: Iterable[Example]) -> tuple[int, int]:
    """Return how many different persona sentences of `valid` stand in those of `train`, and how many there are."""
    known = all_keys(train)
    sentences = {sentence for example in valid for sentence in example.dialog["personality"]}
    return sum(bool(sentence_keys(sentence) & known) for sentence in sentences), len(sentences)


def n_personas_known(valid: Iterable[Example], train: Sequence[Example]) -> tuple[int, int]:
    """Return how many different personas of `valid` stand whole in that of one dialog of `train`, and how many are."""
    personas = {tuple(example.dialog["personality"]) for example in valid} - {()}
    n_known = sum(
        any(all(sentence_keys(sentence) & example.keys for sentence in persona) for example in train)
        for persona in personas
    )
    return n_known, len(personas)


def source_table(options: SplitOptions, split: Split) -> list[str]:
    """Return what was read of each training source, and what is kept of it, as lines."""
    names = [Path(source).name or source for source in options.train]
    width = max(map(len, ["training source", *names]))
    titles = ("dialogs", "replies", "dropped", "kept", "replies kept")
    lines = [f"{'training source':{width}}" + "".join(f"{title:>14}" for title in titles)]
    for name, read, kept in zip(names, split.read, split.kept, strict=True):
        numbers = (len(read), n_replies(read), len(read) - len(kept), len(kept), n_replies(kept))
        lines.append(f"{name:{width}}" + "".join(f"{number:>14,}" for number in numbers))
    return lines


def overlap_table(split: Split) -> list[str]:
    """Return what of the evaluation personas is known from training, before and after, as lines."""
    read, kept = flat(split.read), flat(split.kept)
    lines = [f"evaluation: {len(split.valid):,} dialogs, {n_replies(split.valid):,} replies"]
    for what, count in (("whole personas", n_personas_known), ("persona sentences", n_sentences_known)):
        (before, n_all), (after, _) = count(split.valid, read), count(split.valid, kept)
        lines.append(f"  {what} in training: {before:,} of {n_all:,} before, {after:,} in final.json")
    return lines


def tuning_lines(options: SplitOptions, split: Split) -> list[str]:
    n_dropped = len(flat(split.kept)) - len(split.held_out) - len(split.tuning)
    shared, n_all = n_sentences_known(split.held_out, split.tuning)
    of_evaluation, _ = n_sentences_known(split.valid, [*split.tuning, *split.held_out])
    return [
        f"tuning.json: {len(split.held_out):,} dialogs of {Path(options.train[0]).name} held out, "
        f"{n_replies(split.held_out):,} replies; for them {n_dropped:,} more dropped",
        f"  training: {len(split.tuning):,} dialogs, {n_replies(split.tuning):,} replies",
        f"  persona sentences held out that are in training: {shared:,} of {n_all:,}; "
        f"of the evaluation dialogs in either part: {of_evaluation:,}",
    ]


if __name__ == "__main__":
    sys.exit(main())
