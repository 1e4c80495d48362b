"""What a data set holds, counted: sizes, lengths, what is there twice, what is empty, what its parts have in common.

Dialogs are gone through one by one. What is kept of them are counts, and hashes of 64 bits of what is to be compared.
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from convai.data.conversation import Dialog
from convai.data.formats import PartDialog
from convai.data.lengths import Lengths, Place
from convai.data.measures import Measure
from convai.data.schema import PART_NAMES

MEASURED = ("persona sentences", "turns", "replies", "inputs")
COMPARED = ("dialogs", "replies", "personas", "persona sentences")
CAN_BE_EMPTY = ("persona sentences", "turns", "replies", "distractors")
_NO_LETTER = re.compile(r"[\W_]+")


class Empty:
    """How many texts of a kind are empty, or have nothing that the vocabulary knows, and where the first is."""

    def __init__(self) -> None:
        self.n = 0
        self.first: Place | None = None

    def add(self, place: Place) -> None:
        self.n += 1
        self.first = self.first or place


class PartInspection:
    """What one part of a data set holds, of the dialogs that were added."""

    def __init__(self, measure: Measure):
        self.measure = measure
        self.n_dialogs = self.n_replies = 0
        self.n_without_persona = 0
        self.n_openings = 0  # replies to nothing
        self.n_cut = 0  # inputs that are longer than the model's positions
        self.candidates: Counter[int] = Counter()  # replies by how many candidates they have
        self.lengths = {what: Lengths() for what in MEASURED}
        self.empty = {what: Empty() for what in CAN_BE_EMPTY}
        self._hashes = {what: array("q") for what in COMPARED}
        self._n_tokens = self._n_lost = 0.0

    def add(self, dialog: Dialog) -> None:
        number = self.n_dialogs
        self.n_dialogs += 1
        persona = dialog["personality"]
        self._add_persona(persona, number)
        said: list[str] = []
        spoken: list[str] = []
        for index, utterance in enumerate(dialog["utterances"]):
            place = Place(number, index)
            history = utterance["history"]
            *distractors, gold = utterance["candidates"]
            # Usually each history goes on with the one before.
            new = history[len(spoken) :] if history[: len(spoken)] == spoken else history
            spoken = [*history, gold]
            said += [*new, gold]
            for turn in new:
                self._add_text("turns", turn, place)
            self._add_text("replies", gold, place)
            self._add_example(persona, history, [*distractors, gold], place)
        self._hashes["dialogs"].append(hash(tuple(said)))

    def n_different(self, what: str) -> int:
        """Return how many of the COMPARED are there, each counted once."""
        return len(np.unique(self._hashes[what]))

    def n_repeating(self, what: str) -> int:
        """Return how many there are of those that are there more than once."""
        counts = np.unique(self._hashes[what], return_counts=True)[1]
        return int(counts[counts > 1].sum())

    def n_known(self, what: str, other: "PartInspection") -> int:
        """Return how many of the different ones are in the other part, too."""
        return len(np.intersect1d(self._hashes[what], other._hashes[what]))

    def n_dialogs_of_known_personas(self, other: "PartInspection") -> int:
        return int(np.isin(self._hashes["personas"], other._hashes["personas"]).sum())

    @property
    def n_personas(self) -> int:
        """How many dialogs have one."""
        return len(self._hashes["personas"])

    @property
    def lost_share(self) -> float:
        """The share, 0 to 1, of the text (distractors apart) that has no token."""
        return self._n_lost / max(1.0, self._n_tokens)

    def _add_persona(self, sentences: Sequence[str], number: int) -> None:
        keys = sorted(hash(_letters(sentence)) for sentence in sentences)
        self._hashes["persona sentences"].extend(keys)
        if keys:
            self._hashes["personas"].append(hash(tuple(keys)))  # the order of sentences carries no meaning
        else:
            self.n_without_persona += 1
        for sentence in sentences:
            self._add_text("persona sentences", sentence, Place(number))

    def _add_text(self, what: str, text: str, place: Place) -> None:
        tokens, lost_share = self.measure.of(text)
        self.lengths[what].add(len(tokens), place, text)
        if not tokens:
            self.empty[what].add(place)
        self._n_tokens += len(tokens)
        self._n_lost += lost_share * len(tokens)

    def _add_example(
        self, persona: Sequence[str], history: Sequence[str], candidates: Sequence[str], place: Place
    ) -> None:
        self.n_replies += 1
        self.n_openings += not history
        self.candidates[len(candidates)] += 1
        for text in candidates[:-1]:
            if not text.strip():
                self.empty["distractors"].add(place)
        length = self.measure.of_input(persona, history, candidates)
        self.lengths["inputs"].add(length, place)
        self.n_cut += self.measure.max_positions is not None and length > self.measure.max_positions
        self._hashes["replies"].append(hash(candidates[-1]))

    def facts(self) -> dict[str, Any]:
        """Return all of it as JSON."""
        return {
            "dialogs": self.n_dialogs,
            "replies": self.n_replies,
            "dialogs_without_persona": self.n_without_persona,
            "replies_to_nothing": self.n_openings,
            "candidates_per_reply": {str(n): self.candidates[n] for n in sorted(self.candidates)},
            "different": {_key(what): self.n_different(what) for what in COMPARED},
            "repeating": {_key(what): self.n_repeating(what) for what in COMPARED},
            "empty": {_key(what): {"n": empty.n, "first": empty.first and empty.first._asdict()}
                      for what, empty in self.empty.items()},
            "unknown_share": self.lost_share if self.measure.unit == "tokens" else None,
            "inputs_cut": self.n_cut if self.measure.max_positions else None,
            "lengths": {_key(what): lengths.facts() for what, lengths in self.lengths.items()},
        }  # fmt: skip


class Overlap(NamedTuple):
    """What a later part of a data set has in common with an earlier one: (how many, of how many)."""

    later: str
    earlier: str
    shared: dict[str, tuple[int, int]]


class Inspection:
    """What a data set holds: its parts by name, what they have in common, and its first dialog."""

    def __init__(self, measure: Measure):
        self.measure = measure
        self.parts: dict[str, PartInspection] = {}
        self.first: Dialog | None = None

    def add(self, stream: Iterable[PartDialog]) -> "Inspection":
        """Go through dialogs, as Source.stream yields them, with progress on a terminal; return self."""
        for name, dialog in tqdm(stream, desc="reading", unit=" dialogs", disable=None, leave=False):
            if name not in self.parts:
                self.parts[name] = PartInspection(self.measure)
            if dialog is not None:
                self.first = self.first or dialog
                self.parts[name].add(dialog)
        self.parts = {name: self.parts[name] for name in ("", *PART_NAMES) if name in self.parts}
        return self

    def overlaps(self) -> list[Overlap]:
        """Return what each pair of parts has in common; personas and sentences by their letters and digits."""
        found = []
        for (earlier, known), (later, part) in combinations(self.parts.items(), 2):
            shared = {what: (part.n_known(what, known), part.n_different(what)) for what in COMPARED}
            of_personas = (part.n_dialogs_of_known_personas(known), part.n_personas)
            found.append(Overlap(later, earlier, {"dialogs": shared.pop("dialogs"),
                                                  "dialogs whose persona is known": of_personas} | shared))  # fmt: skip
        return found

    def facts(self) -> dict[str, Any]:
        """Return all of it as JSON."""
        shared = [
            {"part": later, "with": earlier} | {_key(what): dict(zip(("n", "of"), pair, strict=True))
                                                for what, pair in pairs.items()}
            for later, earlier, pairs in self.overlaps()
        ]  # fmt: skip
        parts = {name: part.facts() for name, part in self.parts.items()}
        return {
            "unit": self.measure.unit,
            "max_positions": self.measure.max_positions,
            "parts": parts,
            "shared": shared,
        }


def _letters(text: str) -> str:
    """Return what a persona sentence is known by: "I'm a nurse." and "i 'm a nurse ." are one."""
    return _NO_LETTER.sub("", text.lower())


def _key(what: str) -> str:
    return what.replace(" ", "_")
