"""Utterances into token ids, piece by piece, by several processes: each piece becomes a shard of the store.

A shard is one file of three arrays, for the U utterances and n tokens of its piece:

    ends (U,) int64        the token ids of all utterances lie one after the other; where each one's end
    text_class (U,) uint64 equal numbers: one reply by ParlAI's text rule (see same_reply)
    tokens (n,)            16 bits each where the vocabulary allows that, else 32

`python -m convai.data.tokenizing`, which only this module starts, is one of the processes. It imports a tokenizer and
NumPy, not the script that asks for the data, and ends with the process that started it.
"""

import array
import hashlib
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

import numpy as np

from convai.data.lost_text import LostText
from convai.data.numbering import piece_path, texts_of
from convai.data.same_reply import normalize_answer
from convai.io.files import atomic_write, read_json_object, write_json
from convai.model.tokenization import DialogTokenizer, GptTokenizer

MAX_PROCESSES = 8  # each takes some memory of its own
# From so many utterances on it pays to start other processes.
MIN_FOR_PROCESSES = 30_000
_STEP = 1000  # utterances between two reports

logger = logging.getLogger(__name__)


class Shard(NamedTuple):
    """What is known of a finished shard."""

    n_utterances: int
    n_tokens: int
    checksum: int  # CRC-32 of the file
    lost: dict[str, Any]  # what of the text the vocabulary cannot spell


class WorkerError(Exception):
    """A process that tokenizes has failed; its own words say how."""


def shard_path(store: Path, number: int) -> Path:
    return store / f"tokens-{number:06}.bin"


def classes_path(folder: Path, number: int) -> Path:
    """Return the path of (text_class, token_class) of a piece's utterances (U, 2), which the index is made by."""
    return folder / f"classes-{number:06}.bin"


def token_dtype(tokenizer: DialogTokenizer) -> type:
    """Ids fit 16 bits for GPT (40,483) and GPT-2 (50,262); larger vocabularies take 32."""
    return np.uint16 if len(tokenizer) <= 2**16 else np.uint32


def available_processes() -> int:
    """Return how many processes this one may use well."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_PROCESSES)


def tokenize_pieces(
    folder: Path, store: Path, tokenizer: DialogTokenizer, sizes: Sequence[int], *,
    n_processes: int | None, durable: bool, on_progress: Callable[[int], object],
) -> list[Shard]:  # fmt: skip
    """Make a shard in `store` of each piece in `folder` that has none yet; return all of them.

    `on_progress` is called with numbers of utterances. Raises OSError.
    """
    missing = [n for n in range(len(sizes)) if not _facts_path(folder, n).exists()]
    on_progress(sum(sizes) - sum(sizes[n] for n in missing))
    n_processes = min(n_processes or available_processes(), len(missing))
    if n_processes > 1 and sum(sizes[n] for n in missing) >= MIN_FOR_PROCESSES:
        try:
            _tokenize_in_processes(folder, store, tokenizer, missing, n_processes, durable, on_progress)
        except (WorkerError, BrokenPipeError) as error:
            logger.warning("tokenizing in other processes failed (%s); this one goes on alone", error)
    for number in missing:
        if not _facts_path(folder, number).exists():
            tokenize_piece(folder, store, tokenizer, number, durable, on_progress)
    return [Shard(**read_json_object(_facts_path(folder, n))) for n in range(len(sizes))]


def tokenize_piece(
    folder: Path, store: Path, tokenizer: DialogTokenizer, number: int, durable: bool,
    on_progress: Callable[[int], object],
) -> None:  # fmt: skip
    """Make the shard of one piece. Raises OSError."""
    with np.load(piece_path(folder, number)) as file:
        piece = {name: file[name] for name in file.files}
    n_utterances = len(piece["text_ends"])
    tokens, ends = array.array("H" if token_dtype(tokenizer) is np.uint16 else "I"), array.array("q")
    classes = np.empty((n_utterances, 2), dtype=np.uint64)
    lost, n_reported = LostText(tokenizer), 0
    for n, encoded in enumerate(texts_of(piece)):
        text = encoded.decode("utf-8", "surrogatepass")
        ids = tokenizer.encode(text)
        tokens.extend(ids)
        ends.append(len(tokens))
        classes[n] = text_class(text), hash(tuple(ids)) & 0xFFFF_FFFF_FFFF_FFFF
        lost.add(text, ids)
        if n + 1 - n_reported == _STEP:
            on_progress(_STEP)
            n_reported = n + 1
    content = b"".join([ends.tobytes(), np.ascontiguousarray(classes[:, 0]).tobytes(), tokens.tobytes()])
    with atomic_write(classes_path(folder, number), durable=durable) as temporary:
        classes.tofile(temporary)
    with atomic_write(shard_path(store, number), durable=durable) as temporary:
        temporary.write_bytes(content)
    facts = Shard(n_utterances, len(tokens), zlib.crc32(content), lost.counts())
    write_json(_facts_path(folder, number), facts._asdict(), ensure_ascii=True)
    on_progress(n_utterances - n_reported)


def text_class(text: str) -> int:
    """Return a number that replies share which are the same one by the text rule, and others do not."""
    words = " ".join(normalize_answer(text)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")


def _facts_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:06}.json"


def _tokenize_in_processes(
    folder: Path, store: Path, tokenizer: DialogTokenizer, numbers: Sequence[int], n_processes: int, durable: bool,
    on_progress: Callable[[int], object],
) -> None:  # fmt: skip
    """Have processes tokenize the pieces of these numbers, each the next one when it is done with its last."""
    waiting = iter(numbers)
    reports: SimpleQueue[tuple[subprocess.Popen[bytes], str]] = SimpleQueue()
    with _started(n_processes, [str(folder), str(store), str(int(durable))], pickle.dumps(tokenizer)) as workers:
        for worker in workers:
            Thread(target=_listen, args=(worker, reports), daemon=True).start()
            _send(worker, next(waiting, None))
        n_done = 0
        while n_done < len(numbers):
            worker, line = reports.get()
            report: dict[str, Any] = json.loads(line) if line else {"error": f"it ended with status {worker.wait()}"}
            if "error" in report:
                raise WorkerError(report["error"])
            on_progress(report["n"])
            if report["is_done"]:
                n_done += 1
                _send(worker, next(waiting, None))


@contextmanager
def _started(n: int, arguments: list[str], pickled: bytes) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start `n` processes, which end with the block at the latest."""
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
                                "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
    # -P: there may be another package of this name where the script was started.
    command = [sys.executable, "-P", "-m", "convai.data.tokenizing", *arguments]
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(n):
            workers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment))
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(len(pickled).to_bytes(8, "little") + pickled)
            worker.stdin.flush()
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _listen(worker: subprocess.Popen[bytes], reports: "SimpleQueue[tuple[subprocess.Popen[bytes], str]]") -> None:
    """Put what a process reports into the queue, and "" when it has ended."""
    assert worker.stdout is not None
    for line in worker.stdout:
        reports.put((worker, line.decode()))
    reports.put((worker, ""))


def _send(worker: subprocess.Popen[bytes], number: int | None) -> None:
    assert worker.stdin is not None
    if number is not None:
        worker.stdin.write(f"{number}\n".encode())
        worker.stdin.flush()


def _work(folder: Path, store: Path, durable: bool) -> None:
    """Tokenize the pieces whose numbers come from stdin until it ends; report to stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others

    def report(**content: Any) -> None:
        sys.stdout.write(json.dumps(content) + "\n")
        sys.stdout.flush()

    size = int.from_bytes(sys.stdin.buffer.read(8), "little")
    try:
        tokenizer = pickle.loads(sys.stdin.buffer.read(size))
        if isinstance(tokenizer, GptTokenizer) and "torch" not in sys.modules:
            # spaCy's libraries import PyTorch where they find it: 110 MB and a second, and words are split without it.
            sys.modules["torch"] = None  # type: ignore[assignment]
        for line in sys.stdin.buffer:
            tokenize_piece(folder, store, tokenizer, int(line), durable, lambda n: report(n=n, is_done=False))
            report(n=0, is_done=True)
    except BrokenPipeError:
        os._exit(1)  # who started this is gone
    except Exception as error:
        report(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    _work(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "1")
