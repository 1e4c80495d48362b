"""From a reader's dialogs to a store, in bounded memory and in steps that an interrupted build goes on from.

    1. spool      dialogs become blocks on disk (spool); meanwhile the reader holds one dialog at a time
    2. numbers    utterances that are in several blocks get one number each (numbering)
    3. tokens     several processes tokenize each utterance once, piece by piece, into shards (tokenizing)
    4. index      the blocks' arrays become those of the splits, now that it is known what is held out (indexing)

All of it lies in a folder beside the store to be, named *.building, until the store is moved into its place at once.
What is there of a build that was killed is used: finished blocks (their dialogs are read once more, and passed over),
the numbers, finished shards. The store is a function of dialogs and tokenizer: neither processes nor interruptions nor
the format of the data change a byte of it.
"""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from convai.data.conversation import Dialog
from convai.data.held_out import SPLITS, Data, Plan, lone_part, tell
from convai.data.indexing import DTYPES, Classes, IndexWriter, chosen_dialogs, index_block, index_path
from convai.data.lost_text import LostText
from convai.data.numbering import number_utterances
from convai.data.spool import BlockFile, blocks_in, spool
from convai.data.store import CorruptStore, DialogSplit, Store, open_store, write_manifest
from convai.data.tokenizing import shard_path, token_dtype, tokenize_pieces
from convai.errors import UserError, disk_reason
from convai.io.files import TEMPORARY_FILES, force_to_disk, remove
from convai.model.tokenization import DialogTokenizer

# The parts in the order in which their utterances are numbered.
_PARTS = ("train", "", "valid")

_WAIT_S = 0.2  # between two looks whether another process is done

logger = logging.getLogger(__name__)


def open_or_build(
    path: Path | None, tokenizer: DialogTokenizer, data: Data, n_processes: int | None = None
) -> dict[str, DialogSplit]:
    """Return the splits from the store at `path`, building it where there is none that is sound.

    A damaged store is rebuilt with a warning. Where the folder cannot be written, or without a path, the store lies in
    a temporary one, which is gone with this process. Raises UserError for data that cannot be read.
    """
    store = None
    if path is not None and os.path.lexists(path):
        try:
            store = open_store(path)
        except CorruptStore as error:
            logger.warning("the token cache %s is damaged (%s); building it again", path, error)
    if store is None and path is not None:
        try:
            store = build_at(path, tokenizer, data, n_processes)
        except (OSError, CorruptStore) as error:
            logger.warning("the token cache %s cannot be used (%s); the data lie in temporary files this time", path,
                           disk_reason(error))  # fmt: skip
    store = store or build_temporary(tokenizer, data, n_processes)
    if store.notice:  # as true of the data that come from a cache
        logger.warning("%s", store.notice)
    return {name: DialogSplit(store, name) for name in SPLITS}


def build_at(path: Path, tokenizer: DialogTokenizer, data: Data, n_processes: int | None = None) -> Store:
    """Build the store at `path`, in place of what is there, and open it. Raises OSError and CorruptStore."""
    work = path.with_name(f"{path.name}.building")
    with _locked(work):
        try:
            # Another process may have built it while this one waited.
            store = _sound(path)
            if store is None:
                built = build(work, tokenizer, data, n_processes=n_processes, durable=True)
                remove(path)
                os.replace(built, path)
                force_to_disk(path.parent)
                store = open_store(path)
        except KeyboardInterrupt:
            logger.warning("what is done of the token cache lies in %s; the next start goes on from there", work)
            raise
        except Exception:
            shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)
    return store


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Keep other processes from building in the same folder at the same time; it is there, then. Raises OSError."""
    from filelock import FileLock, Timeout

    lock = FileLock(work / "lock")
    is_told = False
    while not lock.is_locked:
        work.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except FileNotFoundError:  # the other process is done, and has just removed the folder
            continue
        except Timeout:
            if not is_told:
                logger.info("waiting for another process, which builds the token cache in %s", work)
            is_told = True
            time.sleep(_WAIT_S)
    try:
        yield
    finally:
        lock.release()


def _sound(path: Path) -> Store | None:
    try:
        return open_store(path)
    except CorruptStore:
        return None


def build_temporary(tokenizer: DialogTokenizer, data: Data, n_processes: int | None = None) -> Store:
    """Build a store in a temporary folder and map it; UserError where there is no room."""
    try:
        # Mapped files stay readable when they are removed; where a system does not allow that, they stay.
        with tempfile.TemporaryDirectory(prefix="convai-", ignore_cleanup_errors=True) as folder:
            return open_store(build(Path(folder), tokenizer, data, n_processes=n_processes, durable=False))
    except OSError as error:
        raise UserError(f"{data.where}: the data cannot be prepared in {tempfile.gettempdir()} ({disk_reason(error)}); "
                        "make room there, or set TMPDIR to a folder with more.") from error  # fmt: skip


def build_arrays(splits: Mapping[str, Sequence[Dialog]], tokenizer: DialogTokenizer) -> Store:
    """Return the store of dialogs that are there as lists, by split."""

    def dialogs() -> Iterator[tuple[str, Dialog | None]]:
        for name, part in splits.items():
            yield name, None
            yield from ((name, dialog) for dialog in part)

    plan = Plan({name: name for name in splits}, None)
    return build_temporary(tokenizer, Data("dialogs", dialogs, lambda n_dialogs, n_conversations: plan))


def build(work: Path, tokenizer: DialogTokenizer, data: Data, *, n_processes: int | None, durable: bool) -> Path:
    """Build a store in the folder `work`, going on from what is there; return its folder in it. Raises OSError."""
    with _Bar("reading", "B", data.progress()[1], scale=True) as bar:

        def on_dialog() -> None:
            bar.n_dialogs += 1
            if bar.is_due():
                bar.show(data.progress()[0], f"{bar.n_dialogs:,} dialogs")

        parts = spool(data.dialogs(), work, durable, on_dialog)
    blocks = sorted(blocks_in(work), key=lambda block: (_PARTS.index(block.part), block.number))
    plan = _plan(data, parts, blocks)
    sizes = number_utterances(work, blocks, durable)
    store = work / "store"
    store.mkdir(exist_ok=True)
    with _Bar("tokenizing", " utterances", sum(sizes)) as bar:
        shards = tokenize_pieces(work, store, tokenizer, sizes, n_processes=n_processes, durable=durable,
                                 on_progress=bar.advance)  # fmt: skip
    checksums = {shard_path(store, n).name: shard.checksum for n, shard in enumerate(shards)}
    checksums |= _write_index(store, blocks, plan, Classes(work, sizes), data.where, parts)
    for stray in store.glob(TEMPORARY_FILES):  # of a process that was killed
        remove(stray)
    lost = LostText(tokenizer)
    for shard in shards:
        lost.join(shard.lost)
    if durable:
        for name in checksums:
            force_to_disk(store / name)
    write_manifest(store, shards, checksums, token_dtype(tokenizer), lost.sentence())
    if durable:
        for path in (store / "store.json", store):
            force_to_disk(path)
    return store


def _plan(data: Data, parts: Sequence[str], blocks: Iterable[BlockFile]) -> Plan:
    """Have the data say what becomes of the parts; UserError where that is nothing."""
    n_dialogs = dict.fromkeys(parts, 0)
    n_conversations = 0
    for block in blocks:
        n_dialogs[block.part] += block.n_dialogs
        if set(parts) != {"test"} and block.part == lone_part(parts):
            n_conversations += int(block.load("starts_conversation")["starts_conversation"].sum())
    return data.plan(n_dialogs, n_conversations)


def _write_index(
    store: Path, blocks: Sequence[BlockFile], plan: Plan, classes: Classes, where: str, parts: Sequence[str]
) -> dict[str, int]:
    """Write the arrays of all splits; return the checksums of their files by name."""
    writers = {split: IndexWriter(store, split) for split in SPLITS}
    held_out = None if plan.held_out is None else np.frombuffer(plan.held_out, dtype=bool)
    n_held_out = n_dialogs = n_conversations = 0
    for block in tqdm(blocks, desc="indexing", unit=" blocks", disable=None, leave=False):
        arrays, starts_conversation = index_block(block, classes)
        if held_out is None:
            for split, part in plan.part_of.items():
                if part == block.part:
                    writers[split].add(arrays)
            continue
        conversations = np.cumsum(starts_conversation) + (n_conversations - 1)
        is_held_out = held_out[conversations]
        for split, is_chosen in (("train", ~is_held_out), ("valid", is_held_out)):
            writers[split].add(chosen_dialogs(arrays, is_chosen))
        n_held_out += int(is_held_out.sum())
        n_dialogs += len(conversations)
        n_conversations += int(starts_conversation.sum())
    if n_held_out:
        tell(where, parts, n_held_out, n_dialogs)
    for writer in writers.values():
        writer.close()
    return {index_path(store, split, name).name: writers[split].checksums[name] for split in SPLITS for name in DTYPES}


class _Bar:
    """A progress bar with rate and time left, where a person sees it."""

    def __init__(self, title: str, unit: str, total: int, scale: bool = False):
        self.n_dialogs = 0
        self._bar = tqdm(desc=title, unit=unit, unit_scale=scale, total=total or None, disable=None, leave=False)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *details: object) -> None:
        self._bar.close()

    def is_due(self) -> bool:
        return self.n_dialogs % 256 == 0 and not self._bar.disable

    def show(self, n: int, more: str) -> None:
        self._bar.set_postfix_str(more, refresh=False)
        self._bar.update(n - self._bar.n)

    def advance(self, n: int) -> None:
        self._bar.update(n)
