"""The tokenized data set: each unique utterance once, in flat arrays that are memory-mapped from one file.

The file is a safetensors file, so it holds no code and opens in milliseconds. Arrays, for U utterances and, in each
split S, D dialogs and E examples (replies to predict):

    tokens (n_tokens,), utterance_ends (U,)   the token ids of all utterances, one after the other
    text_class (U,)                           equal numbers: one reply by ParlAI's text rule (same_reply)
    notice (n,)                               UTF-8: what is to be said of text that the vocabulary cannot spell
    S.persona (n,), S.persona_ends (D,)       utterance numbers of the persona sentences, dialog after dialog
    S.turns (n,)                              utterance numbers of what was said, dialog after dialog
    S.dialog (E,)                             the dialog that an example belongs to
    S.history_start, S.history_end (E,)       an example's history is turns[start:end]
    S.candidates (n,), S.candidate_ends (E,)  utterance numbers of its candidate replies, the gold last; none of the
                                              others is the gold once more, as text or as tokens
"""

import logging
import os
import zlib
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from convai.data.distractors import Decode, Draw, draw_at_random, drawing
from convai.data.formats import SPLITS, Dialog
from convai.data.lost_text import LostText
from convai.data.same_reply import normalize_answer
from convai.io.files import atomic_write
from convai.model.tokenization import DialogTokenizer

FORMAT_VERSION = 2
_SPLIT_ARRAYS = ("persona", "persona_ends", "turns", "dialog", "history_start", "history_end", "candidates",
                 "candidate_ends")  # fmt: skip

# Data without candidates get so many drawn ones in validation: as many as PersonaChat offers beside the gold.
N_VALIDATION_DISTRACTORS = 19

TokenIds = list[int]

logger = logging.getLogger(__name__)


class CorruptStore(Exception):
    """A store file that is truncated, damaged or of another format."""


class Example(NamedTuple):
    """One reply to predict, as token ids: persona sentences, all turns so far, candidate replies (the gold last)."""

    persona: list[TokenIds]
    history: list[TokenIds]
    candidates: list[TokenIds]


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

    def __init__(self, arrays: dict[str, np.ndarray], name: str):
        self.name = name
        self._tokens, self._utterance_ends = arrays["tokens"], arrays["utterance_ends"]
        self._text_class = arrays["text_class"]
        self._draw: Draw = draw_at_random
        for key in _SPLIT_ARRAYS:
            setattr(self, f"_{key}", arrays[f"{name}.{key}"])

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
        ids: TokenIds = _slice(self._tokens, self._utterance_ends, number).tolist()
        return ids

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
        return {tuple(self.utterance(number)), int(self._text_class[number])}


def _slice(values: np.ndarray, ends: np.ndarray, index: int) -> np.ndarray:
    return values[ends[index - 1] if index else 0 : ends[index]]


def open_or_build(
    path: Path | None, tokenizer: DialogTokenizer, load_dialogs: Callable[[], dict[str, list[Dialog]]]
) -> dict[str, DialogSplit]:
    """Return the splits from the store at `path`, building it from `load_dialogs()` where there is none that is sound.

    A damaged file is rebuilt with a warning. Where the folder cannot be written the data stay in memory.
    """
    arrays = None
    if path is not None and os.path.exists(path):
        try:
            arrays = read_store(path)
        except CorruptStore as error:
            logger.warning("the token cache %s is damaged (%s); building it again", path, error)
    if arrays is None:
        arrays = build_arrays(load_dialogs(), tokenizer)
        if path is not None:
            try:
                write_store(path, arrays)
                arrays = read_store(path)
            except (OSError, CorruptStore) as error:
                logger.warning("the token cache %s cannot be used (%s); the data stay in memory this time", path, error)
    if len(arrays["notice"]):  # as true of the data that come from a cache
        logger.warning("%s", arrays["notice"].tobytes().decode())
    return {name: DialogSplit(arrays, name) for name in SPLITS}


def build_arrays(splits: dict[str, list[Dialog]], tokenizer: DialogTokenizer) -> dict[str, np.ndarray]:
    """Tokenize the dialogs of all splits, each unique utterance once, into the arrays described above."""
    numbers: dict[str, int] = {}
    arrays = {}
    for name, dialogs in splits.items():
        for key, values in _index_split(dialogs, numbers).items():
            arrays[f"{name}.{key}"] = np.asarray(values, dtype=np.int32)
    # Ids fit 16 bits for GPT (40,483) and GPT-2 (50,262); larger vocabularies take 32.
    tokens = array("H" if len(tokenizer) <= 2**16 else "I")
    ends, lost = array("q"), LostText(tokenizer)
    text_class, token_class = _Classes(), _Classes()
    for text in tqdm(numbers, desc="tokenizing", unit=" utterances", disable=None, leave=False):
        ids = tokenizer.encode(text)
        tokens.extend(ids)
        ends.append(len(tokens))
        text_class.add(" ".join(normalize_answer(text)))
        token_class.add(tuple(ids))
        lost.add(text, ids)
    arrays["tokens"], arrays["utterance_ends"] = np.asarray(tokens), np.asarray(ends)
    arrays["text_class"] = text_class.numbers()
    arrays["notice"] = np.frombuffer(lost.sentence().encode(), dtype=np.uint8)
    for name in splits:
        _drop_twins(arrays, name, text_class.numbers(), token_class.numbers())
    return arrays


class _Classes:
    """Numbers items one after the other, equal ones with the same number."""

    def __init__(self) -> None:
        self._number_of: dict[Any, int] = {}
        self._numbers = array("i")

    def add(self, item: Any) -> None:
        self._numbers.append(self._number_of.setdefault(item, len(self._number_of)))

    def numbers(self) -> np.ndarray:
        return np.array(self._numbers, dtype=np.int32)


def _drop_twins(arrays: dict[str, np.ndarray], split: str, *classes: np.ndarray) -> None:
    """Leave out the candidates of each example that are in a class with its gold; `classes` (U,) number utterances."""
    candidates, ends = arrays[f"{split}.candidates"], arrays[f"{split}.candidate_ends"]
    n_candidates = np.diff(ends, prepend=0)
    gold = np.repeat(candidates[ends - 1], n_candidates)  # each candidate's
    is_kept = np.ones(len(candidates), dtype=bool)
    for numbers in classes:
        is_kept &= numbers[candidates] != numbers[gold]
    is_kept[ends - 1] = True
    arrays[f"{split}.candidates"] = candidates[is_kept]
    arrays[f"{split}.candidate_ends"] = np.cumsum(is_kept, dtype=np.int32)[ends - 1]


def _index_split(dialogs: list[Dialog], numbers: dict[str, int]) -> dict[str, "array[int]"]:
    """Turn one split's strings into utterance numbers, giving new strings the next number in `numbers`."""

    def number(texts: list[str]) -> list[int]:
        return [numbers.setdefault(text, len(numbers)) for text in texts]

    arrays = {key: array("i") for key in _SPLIT_ARRAYS}
    for d, dialog in enumerate(dialogs):
        arrays["persona"].extend(number(dialog["personality"]))
        arrays["persona_ends"].append(len(arrays["persona"]))
        start = len(arrays["turns"])
        said: list[int] = []
        for utterance in dialog["utterances"]:
            history = number(utterance["history"])
            if history[: len(said)] != said:  # usually each history continues the one before and shares its turns
                start, said = len(arrays["turns"]), []
            arrays["turns"].extend(history[len(said) :])
            said = history
            arrays["dialog"].append(d)
            arrays["history_start"].append(start)
            arrays["history_end"].append(start + len(history))
            arrays["candidates"].extend(number(utterance["candidates"]))
            arrays["candidate_ends"].append(len(arrays["candidates"]))
    return arrays


def write_store(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays to `path` in one step: a reader sees the whole file or none. Raises OSError."""
    from safetensors.numpy import save

    path.parent.mkdir(parents=True, exist_ok=True)
    content = save(arrays, metadata={"format_version": str(FORMAT_VERSION), "checksum": _checksum(arrays)})
    with atomic_write(path, durable=True) as temporary:
        temporary.write_bytes(content)


def read_store(path: Path) -> dict[str, np.ndarray]:
    """Memory-map the arrays of a store file; CorruptStore where it is truncated, altered or of another version."""
    from safetensors import SafetensorError, safe_open

    try:
        # Opened for torch because safetensors maps files into memory for it, but copies them for NumPy.
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format_version") != str(FORMAT_VERSION):
                raise CorruptStore("it is of another format")
            arrays = {key: file.get_tensor(key).numpy() for key in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise CorruptStore(f"unreadable: {error}") from error
    if metadata.get("checksum") != _checksum(arrays):
        raise CorruptStore("its checksum differs")
    return arrays


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    """CRC-32 over all arrays by name: it guards against damage, not malice, and runs at gigabytes a second."""
    total = 0
    for key in sorted(arrays):
        total = zlib.crc32(f"{key} {arrays[key].dtype}".encode(), total)
        total = zlib.crc32(np.ascontiguousarray(arrays[key]).view(np.uint8).data, total)
    return f"{total:08x}"
