"""Dialogs on their way from a reader to the store: blocks of them on disk, each with its own utterances once.

A block holds so many dialogs of one part that its utterances and numbers fit memory; where one ends depends on the
dialogs alone. Its arrays, for D dialogs and E examples (replies to predict), speak of its own utterances by number:

    texts (bytes), text_ends (U,)             the block's utterances, UTF-8, in the order in which they first occur
    order (U,)                                their numbers in the order of their hashes
    starts_conversation (D,)                  whether a dialog is not of the same conversation as the one before it
    persona, persona_ends; turns, turn_ends   utterances of persona and turns, dialog after dialog
    dialog, history_start, history_end (E,)   an example's dialog; its history is turns[start:end]
    candidates, candidate_ends                utterances of an example's candidates, the gold last

The hashes lie beside it, sorted, so that equal utterances of different blocks are found by merging parts of them (see
numbering). A block that is there is whole: a reading that was interrupted passes over the dialogs of finished blocks.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convai.data.conversation import Dialog
from convai.io.files import atomic_write, read_json_object, write_json

# A block is full with so many utterances, characters of them, or numbers in its arrays.
MAX_UTTERANCES = 2**18
MAX_CHARACTERS = 2**25
MAX_NUMBERS = 2**22
HASH_BYTES = 16
# Where a file has a test part, it is for evaluation only.
UNUSED_PART = "test"
_ARRAYS = ("starts_conversation", "persona", "persona_ends", "turns", "turn_ends", "dialog", "history_start",
           "history_end", "candidates", "candidate_ends")  # fmt: skip
_READ = "read.json"


class BlockFile(NamedTuple):
    """A finished block; the names of its files say all that is needed to find it again."""

    folder: Path
    number: int
    part: str
    n_dialogs: int

    @property
    def path(self) -> Path:
        return self.folder / f"block-{self.number:06}-{self.part or 'whole'}-{self.n_dialogs}.npz"

    def beside(self, name: str) -> Path:
        """Return the path of what else there is of this block."""
        return self.folder / f"{name}-{self.number:06}"

    def load(self, *names: str) -> dict[str, np.ndarray]:
        with np.load(self.path) as arrays:
            return {name: arrays[name] for name in names or arrays.files}


def blocks_in(folder: Path) -> list[BlockFile]:
    """Return the finished blocks in the order of reading."""
    blocks = []
    for path in folder.glob("block-*-*-*.npz"):
        _, number, part, n_dialogs = path.stem.split("-")
        blocks.append(BlockFile(folder, int(number), "" if part == "whole" else part, int(n_dialogs)))
    return sorted(blocks, key=lambda block: block.number)


class _Numbers(dict[str, int]):
    """Numbers utterances as they first come."""

    n_characters = 0

    def __missing__(self, text: str) -> int:
        self.n_characters += len(text)
        number = self[text] = len(self)
        return number


class Block:
    """The dialogs of one block while it grows."""

    def __init__(self, part: str):
        self.part = part
        self.n_dialogs = 0
        self._numbers = _Numbers()
        self._arrays = {name: array("i") for name in _ARRAYS}

    def add(self, dialog: Dialog, starts_conversation: bool) -> None:
        """Take a dialog in."""
        arrays, number = self._arrays, self._numbers.__getitem__
        arrays["starts_conversation"].append(starts_conversation)
        arrays["persona"].extend(map(number, dialog["personality"]))
        arrays["persona_ends"].append(len(arrays["persona"]))
        start = len(arrays["turns"])
        said: list[str] = []
        for utterance in dialog["utterances"]:
            history = utterance["history"]
            if history[: len(said)] != said:  # usually each history continues the one before and shares its turns
                start, said = len(arrays["turns"]), []
            arrays["turns"].extend(map(number, history[len(said) :]))
            said = history
            arrays["dialog"].append(self.n_dialogs)
            arrays["history_start"].append(start)
            arrays["history_end"].append(start + len(history))
            arrays["candidates"].extend(map(number, utterance["candidates"]))
            arrays["candidate_ends"].append(len(arrays["candidates"]))
        arrays["turn_ends"].append(len(arrays["turns"]))
        self.n_dialogs += 1

    @property
    def is_full(self) -> bool:
        n_numbers = len(self._arrays["candidates"]) + len(self._arrays["turns"]) + len(self._arrays["persona"])
        return (
            len(self._numbers) >= MAX_UTTERANCES
            or self._numbers.n_characters >= MAX_CHARACTERS
            or n_numbers >= MAX_NUMBERS
        )

    def write(self, folder: Path, number: int, durable: bool) -> None:
        """Write the block as the one of this number. Raises OSError."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in self._numbers]
        self._numbers.clear()
        digests = b"".join(hashlib.blake2b(text, digest_size=HASH_BYTES).digest() for text in encoded)
        hashes = np.frombuffer(digests, dtype="<u8").reshape(-1, 2)
        order = np.lexsort((hashes[:, 1], hashes[:, 0])).astype(np.int32)
        text_ends = np.cumsum(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)))
        arrays = {name: np.asarray(values, dtype=np.int32) for name, values in self._arrays.items()}
        block = BlockFile(folder, number, self.part, self.n_dialogs)
        hashes[order].tofile(block.beside("hashes"))
        with atomic_write(block.path, durable=durable) as temporary, open(temporary, "wb") as file:
            texts = np.frombuffer(b"".join(encoded), dtype=np.uint8)
            np.savez(file, **(arrays | {"texts": texts, "text_ends": text_ends, "order": order}))  # type: ignore[arg-type] # its option


def spool(
    dialogs: Iterator[tuple[str, Dialog | None]], folder: Path, durable: bool, on_dialog: Callable[[], object]
) -> list[str]:
    """Write what a reader yields as blocks into `folder`, from where an earlier call was interrupted; return its parts.

    `dialogs` are (part, dialog); (part, None) says that there is such a part, which may be empty. Raises OSError.
    """
    if (folder / _READ).exists():
        return list(read_json_object(folder / _READ)["parts"])
    finished = blocks_in(folder)
    n_to_pass = sum(block.n_dialogs for block in finished)
    n_blocks = len(finished)
    parts: list[str] = []
    block = Block("")
    conversation: object = None
    for part, dialog in dialogs:
        if part not in parts:
            parts.append(part)
        if dialog is None or part == UNUSED_PART:
            continue
        on_dialog()
        before, conversation = conversation, (part, getattr(dialog, "conversation", None))
        if n_to_pass:
            n_to_pass -= 1
            continue
        if block.n_dialogs and part != block.part:
            block.write(folder, n_blocks, durable)
            n_blocks += 1
            block = Block(part)
        block.part = part
        block.add(dialog, conversation != before or conversation[1] is None)
        if block.is_full:  # at once: the next dialog may need the memory
            block.write(folder, n_blocks, durable)
            n_blocks += 1
            block = Block(part)
    if block.n_dialogs:
        block.write(folder, n_blocks, durable)
    write_json(folder / _READ, {"parts": parts})
    return parts
