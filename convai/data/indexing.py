"""The arrays of a store that say which utterances each dialog and each example is made of, block after block.

For D dialogs and E examples (replies to predict) of a split S:

    S.persona (n,), S.persona_ends (D,)       utterance numbers of the persona sentences, dialog after dialog
    S.turns (n,)                              utterance numbers of what was said, dialog after dialog
    S.dialog (E,)                             the dialog that an example belongs to
    S.history_start, S.history_end (E,)       an example's history is turns[start:end]
    S.candidates (n,), S.candidate_ends (E,)  utterance numbers of its candidate replies, the gold last; none of the
                                              others is the gold once more, as text or as tokens
"""

import zlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np

from convai.data.numbering import numbers_of
from convai.data.spool import BlockFile
from convai.data.tokenizing import classes_path

# Utterance and dialog numbers take 32 bits; places in arrays, of which there are many more, 64.
DTYPES = {"persona": np.int32, "persona_ends": np.int64, "turns": np.int32, "dialog": np.int32,
          "history_start": np.int64, "history_end": np.int64, "candidates": np.int32,
          "candidate_ends": np.int64}  # fmt: skip
_OFFSET_OF = {"persona_ends": "persona", "history_start": "turns", "history_end": "turns",
              "candidate_ends": "candidates"}  # fmt: skip

Arrays = dict[str, np.ndarray]


def index_path(store: Path, split: str, name: str) -> Path:
    return store / f"{split}.{name}.bin"


class IndexWriter:
    """Appends the arrays of one split, block after block, to their files."""

    def __init__(self, store: Path, split: str):
        """Raises OSError."""
        self.lengths = dict.fromkeys(DTYPES, 0)
        self.checksums = dict.fromkeys(DTYPES, 0)
        self._n_dialogs = 0
        self._files: dict[str, IO[bytes]] = {
            name: open(index_path(store, split, name), "wb")  # noqa: SIM115 (`close` closes them)
            for name in DTYPES
        }

    def add(self, arrays: Arrays) -> None:
        """Append a block's arrays, whose numbers of dialogs and places are its own. Raises OSError."""
        before = self.lengths.copy()
        for name, dtype in DTYPES.items():
            values = arrays[name].astype(dtype)
            if name in _OFFSET_OF:
                values += before[_OFFSET_OF[name]]
            elif name == "dialog":
                values += self._n_dialogs
            content = values.tobytes()
            self._files[name].write(content)
            self.checksums[name] = zlib.crc32(content, self.checksums[name])
            self.lengths[name] += len(values)
        self._n_dialogs += len(arrays["persona_ends"])

    def close(self) -> None:
        """Finish the files. Raises OSError."""
        for file in self._files.values():
            file.close()


class Classes:
    """The classes by which an utterance may be the gold reply once more, from the files of the pieces."""

    def __init__(self, folder: Path, sizes: Sequence[int]):
        self._folder = folder
        self._starts = [0, *accumulate(sizes)]

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """Return (text_class, token_class) of utterances (n, 2), given by ascending numbers."""
        found = np.empty((len(numbers), 2), dtype=np.uint64)
        done = 0
        while done < len(numbers):
            piece = bisect_right(self._starts, int(numbers[done])) - 1
            end = int(np.searchsorted(numbers, self._starts[piece + 1]))
            classes = np.fromfile(classes_path(self._folder, piece), dtype=np.uint64).reshape(-1, 2)
            found[done:end] = classes[numbers[done:end] - self._starts[piece]]
            done = end
        return found


def index_block(block: BlockFile, classes: Classes) -> tuple[Arrays, np.ndarray]:
    """Return a block's arrays with the numbers of all blocks, and for each dialog whether it starts a conversation."""
    arrays = {name: values for name, values in block.load().items() if name not in ("texts", "text_ends", "order")}
    numbers = numbers_of(block)
    _drop_twins(arrays, numbers, classes)
    for name in ("persona", "turns", "candidates"):
        arrays[name] = numbers[arrays[name]]
    return arrays, arrays.pop("starts_conversation").astype(bool)


def _drop_twins(arrays: Arrays, numbers: np.ndarray, classes: Classes) -> None:
    """Leave out the candidates of each example that are in a class with its gold."""
    candidates, ends = arrays["candidates"], arrays["candidate_ends"]
    n_candidates = np.diff(ends, prepend=0)
    if not (n_candidates > 1).any():
        return
    # Few of the utterances that are candidates in one block are in many: the classes of each are looked up once.
    own = np.unique(candidates)
    by_number = own[np.argsort(numbers[own], kind="stable")]
    of_own = np.empty((len(numbers), 2), dtype=np.uint64)
    of_own[by_number] = classes.of(numbers[by_number])
    gold = np.repeat(candidates[ends - 1], n_candidates)  # each candidate's
    is_kept = (of_own[candidates] != of_own[gold]).all(axis=1)
    is_kept[ends - 1] = True
    arrays["candidates"] = candidates[is_kept]
    arrays["candidate_ends"] = np.cumsum(is_kept, dtype=np.int32)[ends - 1]


def chosen_dialogs(arrays: Arrays, is_chosen: np.ndarray) -> Arrays:
    """Return the arrays of some of a block's dialogs, given a boolean for each of them (D,)."""
    if is_chosen.all():
        return arrays
    is_of_example = is_chosen[arrays["dialog"]]
    chosen: dict[str, Any] = {"dialog": (np.cumsum(is_chosen) - 1)[arrays["dialog"][is_of_example]]}
    for values, ends, is_kept in (
        ("persona", "persona_ends", is_chosen),
        ("candidates", "candidate_ends", is_of_example),
        ("turns", "turn_ends", is_chosen),
    ):
        lengths = np.diff(arrays[ends], prepend=0)
        chosen[values] = arrays[values][np.repeat(is_kept, lengths)]
        chosen[ends] = np.cumsum(lengths[is_kept])
    # What the turns before an example's dialog have moved by.
    n_turns = np.diff(arrays["turn_ends"], prepend=0)
    shift = np.cumsum(np.where(is_chosen, 0, n_turns))[arrays["dialog"][is_of_example]]
    for name in ("history_start", "history_end"):
        chosen[name] = arrays[name][is_of_example] - shift
    return chosen
