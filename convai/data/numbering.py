"""Numbers for the utterances of all blocks, equal ones with the same number: found on disk, in bounded memory.

An utterance is known by its hash of 128 bits. The hashes of each block lie sorted in a file; those of one range are
taken from all blocks and sorted together, which shows which are equal; then the next range. Numbers follow the order in
which utterances first occur, block after block. So they depend on the dialogs alone, and what is said together lies
together. The utterances themselves are written in that order, once each, as pieces to be tokenized.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from convai.data.spool import HASH_BYTES, BlockFile
from convai.errors import UserError
from convai.io.files import atomic_write, read_json_object, write_json

MAX_SORTED = 2**20  # hashes that are sorted together, about
# A piece is full with so many utterances or bytes; of small data there are some pieces nevertheless, to be shared out.
MIN_PIECE, MAX_PIECE, N_PIECES = 2**12, 2**17, 16
MAX_PIECE_BYTES = 2**23
_NUMBERED = "numbered.json"


def number_utterances(folder: Path, blocks: Sequence[BlockFile], durable: bool) -> list[int]:
    """Write each block's numbers, in the order of its hashes, and pieces of utterances; return the pieces' sizes.

    Raises OSError.
    """
    if (folder / _NUMBERED).exists():
        return list(read_json_object(folder / _NUMBERED)["pieces"])
    ranges = _Ranges(blocks)
    n_utterances = _mark_first_ones(blocks, ranges)
    pieces = Pieces(folder, min(max(-(-n_utterances // N_PIECES), MIN_PIECE), MAX_PIECE), durable)
    _number_first_ones(blocks, pieces)
    _spread_numbers(blocks, ranges)
    write_json(folder / _NUMBERED, {"pieces": pieces.sizes})
    return pieces.sizes


def numbers_of(block: BlockFile) -> np.ndarray:
    """Return the number of each of a block's utterances."""
    order = block.load("order")["order"]
    numbers = np.empty(len(order), dtype=np.int32)
    numbers[order] = np.fromfile(block.beside("numbers"), dtype=np.int32)
    return numbers


class Pieces:
    """Writes utterances one after the other in pieces."""

    def __init__(self, folder: Path, size: int, durable: bool):
        self.sizes: list[int] = []
        self._folder, self._size, self._durable = folder, size, durable
        self._texts: list[bytes] = []
        self._n_bytes = 0

    def add(self, text: bytes) -> None:
        """Take an utterance in. Raises OSError."""
        self._texts.append(text)
        self._n_bytes += len(text)
        if len(self._texts) >= self._size or self._n_bytes >= MAX_PIECE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what has come together. Raises OSError."""
        if not self._texts:
            return
        ends = np.cumsum(np.fromiter(map(len, self._texts), dtype=np.int64, count=len(self._texts)))
        path = piece_path(self._folder, len(self.sizes))
        with atomic_write(path, durable=self._durable) as temporary, open(temporary, "wb") as file:
            np.savez(file, texts=np.frombuffer(b"".join(self._texts), dtype=np.uint8), text_ends=ends)
        self.sizes.append(len(self._texts))
        self._texts, self._n_bytes = [], 0


def piece_path(folder: Path, number: int) -> Path:
    return folder / f"piece-{number:06}.npz"


def texts_of(arrays: dict[str, np.ndarray]) -> Iterator[bytes]:
    """Yield the utterances of a block or a piece."""
    texts, start = arrays["texts"].tobytes(), 0
    for end in arrays["text_ends"].tolist():
        yield texts[start:end]
        start = end


class _Ranges:
    """Which part of each block's sorted hashes lies in each of the ranges that hashes are divided into."""

    def __init__(self, blocks: Sequence[BlockFile]):
        n_hashes = sum(block.beside("hashes").stat().st_size for block in blocks) // HASH_BYTES
        n_bits = max(0, (n_hashes // MAX_SORTED).bit_length())
        self.n_ranges = 2**n_bits
        edges = np.arange(1, self.n_ranges, dtype=np.uint64) << np.uint64(64 - n_bits)
        self._bounds = []  # of each block, n_ranges + 1
        for block in blocks:
            high = np.fromfile(block.beside("hashes"), dtype="<u8")[::2]
            self._bounds.append(np.concatenate(([0], np.searchsorted(high, edges), [len(high)])))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield (start, end) in every block, for one range after the other."""
        for n in range(self.n_ranges):
            yield [(int(bounds[n]), int(bounds[n + 1])) for bounds in self._bounds]


def _sorted_together(blocks: Sequence[BlockFile], spans: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the order that sorts the hashes in these spans (n,), and where in it another hash begins (n,)."""
    hashes = np.concatenate([
        _read(block.beside("hashes"), "<u8", 2 * start, 2 * end)
        for block, (start, end) in zip(blocks, spans, strict=True)
    ]).reshape(-1, 2)  # fmt: skip
    # Stable: of equal ones that of the earliest block comes first.
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    hashes = hashes[order]
    is_other = np.ones(len(order), dtype=bool)
    is_other[1:] = (hashes[1:] != hashes[:-1]).any(axis=1)
    return order, is_other


def _mark_first_ones(blocks: Sequence[BlockFile], ranges: _Ranges) -> int:
    """Write for each block which of its utterances are in no block before it; return how many these are together."""
    n_first = 0
    for block in blocks:
        block.beside("first").write_bytes(b"")
    for spans in ranges:
        order, is_other = _sorted_together(blocks, spans)
        is_first = np.zeros(len(order), dtype=bool)
        is_first[order[is_other]] = True
        n_first += int(is_other.sum())
        _write_spans(blocks, "first", spans, is_first)
    return n_first


def _number_first_ones(blocks: Sequence[BlockFile], pieces: Pieces) -> None:
    """Number the utterances that are in no block before theirs, and write them in that order."""
    n_before = 0
    for block in blocks:
        arrays = block.load("order", "texts", "text_ends")
        order = arrays["order"]
        is_first = np.empty(len(order), dtype=bool)
        is_first[order] = np.fromfile(block.beside("first"), dtype=bool)
        numbers = np.cumsum(is_first, dtype=np.int64) + (n_before - 1)
        if n_before + len(order) > np.iinfo(np.int32).max:
            raise UserError("the data have more than 2,147,483,647 different utterances; part them.")
        numbers.astype(np.int32)[order].tofile(block.beside("numbers"))  # right for the first ones
        for is_new, text in zip(is_first.tolist(), texts_of(arrays), strict=True):
            if is_new:
                pieces.add(text)
        n_before += int(is_first.sum())
    pieces.flush()


def _spread_numbers(blocks: Sequence[BlockFile], ranges: _Ranges) -> None:
    """Give the number of each first utterance to those that are equal to it."""
    for spans in ranges:
        order, is_other = _sorted_together(blocks, spans)
        numbers = np.concatenate([
            _read(block.beside("numbers"), np.int32, start, end)
            for block, (start, end) in zip(blocks, spans, strict=True)
        ])  # fmt: skip
        numbers[order] = numbers[order[is_other]][np.cumsum(is_other) - 1]
        _write_spans(blocks, "numbers", spans, numbers)


def _read(path: Path, dtype: str | type, start: int, end: int) -> np.ndarray:
    return np.fromfile(path, dtype=dtype, count=end - start, offset=start * np.dtype(dtype).itemsize)


def _write_spans(blocks: Sequence[BlockFile], name: str, spans: list[tuple[int, int]], values: np.ndarray) -> None:
    """Write each block's share of `values` to its span in its file of that name."""
    written = 0
    for block, (start, end) in zip(blocks, spans, strict=True):
        with open(block.beside(name), "r+b") as file:
            file.seek(start * values.itemsize)
            file.write(values[written : written + end - start].tobytes())
        written += end - start
