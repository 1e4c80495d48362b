"""Writes what a training run leaves behind in its folder (see run_folder.py): options, personas, checkpoints.

A checkpoint is written aside, forced to disk and renamed, so whenever a run is killed, what is there can be read.
"""

import logging
import os
import random
import re
import shutil
import socket
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from convai.data.store import DialogSplit, TokenIds
from convai.errors import UserError
from convai.model.double_heads import DoubleHeadsModel, save_model
from convai.model.tokenization import DialogTokenizer
from convai.training.precision import Precision
from convai.training.run_folder import (
    ARGUMENTS_FILE,
    PERSONAS_FILE,
    STATE_FILE,
    begin_again,
    check_is_free,
    checkpoint_folder,
    list_checkpoints,
    make_numbered,
    set_aside,
    what_is_left,
    what_would_be_lost,
    write_json,
)
from convai.training.updates import RunSize

logger = logging.getLogger(__name__)

N_STORED_PERSONAS = 100


def create_run_folder(args: Namespace, tokenizer: DialogTokenizer, train: DialogSplit, begins_again: bool) -> Path:
    """Make the folder of this run, named by time, host and model unless `--output_dir` names it.

    It holds readable arguments, the vocabulary, and a sample of personas, so that the chat needs no data set. What is
    there already is set aside where `--set_aside` says so; with `begins_again` it is this run itself, which had no
    checkpoint yet. Raises UserError where the folder is taken or cannot be written.
    """
    run = Path(args.output_dir or Path("runs") / default_name(args))
    personas = [[tokenizer.decode(sentence) for sentence in persona] for persona in sample_personas(train)]
    try:
        if not args.output_dir:
            run = make_numbered(run)
        elif begins_again:
            begin_again(run)
        else:
            check_is_free(run, args.set_aside)  # once more: since it was first checked another run may have started
            if what_would_be_lost(run):
                set_aside(run)
        tokenizer.save(run)
        write_json(run / ARGUMENTS_FILE, vars(args))
        write_json(run / PERSONAS_FILE, personas)
    except OSError as error:
        raise UserError(
            f"the run folder {run} cannot be written ({error.strerror}); give another --output_dir."
        ) from error
    logger.info("run folder: %s", run)
    return run


def default_name(args: Namespace) -> str:
    """Return "<date>_<time>_<host>_<model>"."""
    model_name = re.sub(r"[^\w.-]+", "_", Path(args.model_checkpoint).name) or "model"
    return f"{datetime.now():%b%d_%H-%M-%S}_{socket.gethostname()}_{model_name}"


def sample_personas(split: DialogSplit) -> list[list[TokenIds]]:
    """Return the personas of some dialogs, the same ones each time; dialogs without one are left out."""
    dialogs = random.Random(0).sample(range(split.n_dialogs), min(N_STORED_PERSONAS, split.n_dialogs))
    return [persona for persona in map(split.persona, dialogs) if persona]


class TrainingParts(NamedTuple):
    """What a checkpoint holds the state of. Random numbers are not among it: each update has a seed of its own."""

    model: DoubleHeadsModel
    tokenizer: DialogTokenizer
    optimizer: Optimizer
    scheduler: LRScheduler
    precision: Precision


class Checkpoints:
    """Writes a run's checkpoints: the last `n_saved` ones, and the best weights in the run folder itself."""

    def __init__(self, run: Path, parts: TrainingParts, n_saved: int, size: RunSize):
        """`size` is stored beside the state, for a later run to compare with its own (see resume.check_size)."""
        self.run = run
        self.parts = parts
        self.n_saved = n_saved
        self.size = size

    def save(self, update: int) -> None:
        """Write RUN/checkpoints/update-N, unless it is there, and remove the oldest; UserError where that fails."""
        folder = checkpoint_folder(self.run, update)
        if folder.exists():
            return
        parts, aside = self.parts, folder.with_name(f"{folder.name}.tmp")
        with self.explained_failure(aside):
            shutil.rmtree(aside, ignore_errors=True)
            save_model(parts.model, aside, parts.precision.weights(parts.model))
            parts.tokenizer.save(aside)
            shutil.copy(self.run / PERSONAS_FILE, aside)
            state = {name: getattr(parts, name).state_dict() for name in ("optimizer", "scheduler", "precision")}
            with open(aside / STATE_FILE, "wb") as file:
                torch.save(state | {"update": update, "facts": self.size.described()}, file)
            for path in [*aside.iterdir(), aside]:
                force_to_disk(path)
            aside.rename(folder)
            force_to_disk(folder.parent)
        remove_oldest(self.run, self.n_saved)

    def save_best(self) -> None:
        """Write the weights to the run folder itself; UserError where that fails."""
        with self.explained_failure(self.run / "model.safetensors.tmp"):
            save_model(self.parts.model, self.run, self.parts.precision.weights(self.parts.model))

    @contextmanager
    def explained_failure(self, aside: Path) -> Iterator[None]:
        """Turn a failure to write into a UserError, and remove what was being written."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            if aside.is_file():
                aside.unlink()
            raise UserError(f"{aside} cannot be written ({_reason(error)}); {what_is_left(self.run)}") from error


def remove_oldest(run: Path, n_saved: int) -> None:
    """Remove all checkpoints but the last `n_saved`, and what earlier removals left behind.

    Where that fails, as on Windows while files are mapped, a warning says so, and the next call tries again.
    """
    doomed = [folder.with_name(f"{folder.name}.old") for folder in list_checkpoints(run)[:-n_saved]]
    for left in run.glob("checkpoints/update-*.old"):
        shutil.rmtree(left, ignore_errors=True)
    for folder in doomed:
        try:
            folder.with_suffix("").rename(folder)  # no half-removed checkpoint under its name
            shutil.rmtree(folder)
        except OSError as error:
            logger.warning("the old checkpoint %s cannot be removed (%s)", folder.with_suffix(""), _reason(error))


def force_to_disk(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk. Raises OSError.

    Windows writes out only what is open for writing, and opens no folders; there their lists are not waited for.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except PermissionError:
        if path.is_dir():
            return
        raise
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
