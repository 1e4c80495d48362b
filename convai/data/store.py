"""The tokenized data set: a folder of files that are memory-mapped, with each unique utterance once.

    store.json                       the format, every file's size and checksum, and a notice on lost text
    tokens-000000.bin, ...           shards of the utterances: their token ids and text classes (see tokenizing)
    train.dialog.bin, ...            the arrays of the splits: which utterances make up which example (see indexing)

Whether a file is there and as long as it should be is checked at each opening; its checksum when it was written and
whenever it was changed since, as its time says: so a store opens in milliseconds at any size. How a store is made: see
build.
"""

import json
import logging
import os
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convai.data.distractors import Decode, Draw, draw_at_random, drawing
from convai.data.held_out import SPLITS
from convai.data.indexing import DTYPES, Arrays, index_path
from convai.data.tokenizing import shard_path
from convai.io.files import write_text

FORMAT_VERSION = 3
_MANIFEST = "store.json"
_BLOCK_BYTES = 2**20

# Data without candidates get so many drawn ones in validation: as many as PersonaChat offers beside the gold.
N_VALIDATION_DISTRACTORS = 19

TokenIds = list[int]

logger = logging.getLogger(__name__)


class CorruptStore(Exception):
    """A store that is incomplete, damaged or of another format."""


class Example(NamedTuple):
    """One reply to predict, as token ids: persona sentences, all turns so far, candidate replies (the gold last)."""

    persona: list[TokenIds]
    history: list[TokenIds]
    candidates: list[TokenIds]


class Utterances:
    """The token ids of all utterances, by number."""

    def __init__(self, shards: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]):
        """`shards` are (ends, text_class, tokens) each."""
        self.shards = shards
        self._starts = [0, *accumulate(len(ends) for ends, _, _ in shards)]

    def __len__(self) -> int:
        return self._starts[-1]

    def ids(self, number: int) -> TokenIds:
        """Return the token ids of one utterance."""
        shard = bisect_right(self._starts, number) - 1
        ends, _, tokens = self.shards[shard]
        ids: TokenIds = _slice(tokens, ends, number - self._starts[shard]).tolist()
        return ids

    def text_class(self, number: int) -> int:
        """Return a number that is the same for replies which are the same one by the text rule (see same_reply)."""
        shard = bisect_right(self._starts, number) - 1
        return int(self.shards[shard][1][number - self._starts[shard]])


class Store(NamedTuple):
    """All that a store holds."""

    utterances: Utterances
    splits: dict[str, Arrays]
    notice: str  # what is to be said of text that the vocabulary cannot spell


class DialogSplit(Sequence[Example]):
    """The examples of one split; `split[i]` is an Example with every candidate of the file."""

    _persona: np.ndarray
    _persona_ends: np.ndarray
    _turns: np.ndarray
    _dialog: np.ndarray
    _history_start: np.ndarray
    _history_end: np.ndarray
    _candidates: np.ndarray
    _candidate_ends: np.ndarray

    def __init__(self, store: Store, name: str):
        self.name = name
        self._utterances = store.utterances
        for key, values in store.splits[name].items():
            setattr(self, f"_{key}", values)
        self._draw: Draw = draw_at_random

    def __len__(self) -> int:
        return len(self._dialog)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override] # one at a time, no slices
        return self.example(index)

    @property
    def n_dialogs(self) -> int:
        return len(self._persona_ends)

    def example(self, index: int, num_candidates: int | None = None, n_drawn: int = 0) -> Example:
        """Return example `index` with its last `num_candidates` candidates (None: all of them).

        Where the data offer only the gold reply, up to `n_drawn` distractors are drawn, from the gold replies of other
        dialogs unless `draw_by` says otherwise: the same ones every time, all different, never the gold.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        candidates: Sequence[int] | np.ndarray = _slice(self._candidates, self._candidate_ends, index)
        if len(candidates) == 1 and n_drawn:
            candidates = [*map(self.gold, self.draw_distractors(index, n_drawn)), *candidates]
        if num_candidates is not None:
            candidates = candidates[-num_candidates:]
        history = self._turns[self._history_start[index] : self._history_end[index]]
        return Example(
            self.persona(self._dialog[index]),
            [self.utterance(u) for u in history],
            [self.utterance(u) for u in candidates],
        )

    def persona(self, dialog: int) -> list[TokenIds]:
        """Return the persona sentences of a dialog."""
        return [self.utterance(u) for u in _slice(self._persona, self._persona_ends, dialog)]

    def utterance(self, number: int) -> TokenIds:
        """Return the token ids of one utterance."""
        return self._utterances.ids(number)

    def draw_distractors(self, index: int, n: int) -> list[int]:
        """Return `n` examples whose gold replies are to distract in this one; fewer where need be. See distractors."""
        return self._draw(self, index, n)

    def draw_by(self, kind: str, decode: Decode) -> int:
        """From now on draw distractors of this kind; return for how many examples they are drawn."""
        n_alone = int(np.count_nonzero(np.diff(self._candidate_ends, prepend=0) == 1))
        if n_alone:
            self._draw = drawing(kind, self, decode)
        return n_alone

    def golds(self) -> np.ndarray:
        """Return the utterance number of each example's gold reply, (E,)."""
        golds: np.ndarray = self._candidates[self._candidate_ends - 1]
        return golds

    def gold(self, index: int) -> int:
        """Return the utterance number of an example's gold reply."""
        return int(self._candidates[self._candidate_ends[index] - 1])

    def examples_beside(self, index: int) -> range:
        """Return the examples of an example's dialog, itself among them."""
        first, last = np.searchsorted(self._dialog, self._dialog[index] + np.array([0, 1]))
        return range(int(first), int(last))

    def identity(self, number: int) -> set[Any]:
        """Return what two utterances share where they count as the same reply: their tokens, or the text's class."""
        return {tuple(self.utterance(number)), self._utterances.text_class(number)}


def _slice(values: np.ndarray, ends: np.ndarray, index: int) -> np.ndarray:
    return values[ends[index - 1] if index else 0 : ends[index]]


def write_manifest(folder: Path, shards: Sequence[Any], checksums: dict[str, int], dtype: type, notice: str) -> None:
    """Describe what lies in a store's folder, which makes it one.

    `shards` are tokenizing.Shard, `checksums` those of all files by name. Raises OSError.
    """
    files = {name: [(folder / name).stat().st_size, checksum] for name, checksum in sorted(checksums.items())}
    content = {
        "format_version": FORMAT_VERSION,
        "token_bits": 8 * np.dtype(dtype).itemsize,
        "shards": [[shard.n_utterances, shard.n_tokens] for shard in shards],
        "files": files,
        "notice": notice,
    }
    write_text(folder / _MANIFEST, json.dumps(content | {"checksum": _checksum(content)}, indent=0) + "\n")


def open_store(folder: Path) -> Store:
    """Memory-map a store; CorruptStore where it is incomplete, altered or of another version."""
    manifest = _read_manifest(folder)
    _check_files(folder, manifest["files"])
    dtype = np.uint16 if manifest["token_bits"] == 16 else np.uint32
    shards = []
    for number, (n_utterances, n_tokens) in enumerate(manifest["shards"]):
        content = _mapped(shard_path(folder, number))
        parts = np.split(content, [8 * n_utterances, 16 * n_utterances])
        if len(parts[2]) != n_tokens * np.dtype(dtype).itemsize:
            raise CorruptStore("its parts do not fit together")
        shards.append((parts[0].view(np.int64), parts[1].view(np.uint64), parts[2].view(dtype)))
    splits = {
        split: {name: _mapped(index_path(folder, split, name)).view(dtype) for name, dtype in DTYPES.items()}
        for split in SPLITS
    }
    return Store(Utterances(shards), splits, manifest["notice"])


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        checksum = manifest.pop("checksum")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptStore(f"unreadable: {error}") from error
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CorruptStore("it is of another format")
    if checksum != _checksum(manifest):
        raise CorruptStore(f"the checksum of {_MANIFEST} differs")
    return dict(manifest)


def _checksum(content: dict[str, Any]) -> int:
    """CRC-32, as of the other files: it guards against damage, not malice."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _check_files(folder: Path, files: dict[str, list[int]]) -> None:
    """Raise CorruptStore where a file is missing or not what was written.

    Checksums are computed of files that are not older than store.json, which is written last: such a file was changed
    or copied. Where all are right, store.json is made the latest again.
    """
    changed = []
    try:
        written = (folder / _MANIFEST).stat().st_mtime_ns
        for name, (size, checksum) in files.items():
            found = (folder / name).stat()
            if found.st_size != size:
                raise CorruptStore(f"{name} has {found.st_size} bytes instead of {size}")
            if found.st_mtime_ns >= written:
                changed.append((name, checksum))
        for name, checksum in changed:
            if checksum_of(folder / name) != checksum:
                raise CorruptStore(f"the checksum of {name} differs")
    except OSError as error:
        raise CorruptStore(f"unreadable: {error}") from error
    if changed:
        try:
            os.utime(folder / _MANIFEST)
        except OSError:  # of another user, or on a medium that is only read: the next opening checks again
            return


def checksum_of(path: Path) -> int:
    """Return the CRC-32 of a file. Raises OSError."""
    total = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            total = zlib.crc32(block, total)
    return total


def _mapped(path: Path) -> np.ndarray:
    """Return the bytes of a file, memory-mapped."""
    import torch

    try:
        size = path.stat().st_size
        if not size:
            return np.empty(0, dtype=np.uint8)
        # NumPy's own maps would each keep the file open, and a process may have only so many open.
        content: np.ndarray = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
        return content
    except (OSError, RuntimeError) as error:
        raise CorruptStore(f"unreadable: {error}") from error
