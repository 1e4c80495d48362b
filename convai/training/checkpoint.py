"""Writes what a training run leaves behind in its folder (see run_folder.py): options, personas, checkpoints.

A checkpoint gets its name when all of it is on the disk: whenever a run is killed, what is there can be read.
"""

import logging
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from convai.data.mixture import AnySplit
from convai.data.store import TokenIds
from convai.errors import UserError, argument
from convai.io.files import atomic_write, remove, write_json
from convai.model.heads import DoubleHeads
from convai.model.loading import save_checkpoint, save_model
from convai.model.tokenization import DialogTokenizer
from convai.options import TrainingOptions
from convai.training.precision import Precision
from convai.training.run_folder import (
    ARGUMENTS_FILE,
    PERSONAS_FILE,
    STATE_FILE,
    begin_again,
    check_is_free,
    checkpoint_folder,
    default_run_folder,
    list_checkpoints,
    make_numbered,
    set_aside,
    what_a_kill_left,
    what_is_left,
    what_would_be_lost,
)
from convai.training.updates import RunSize

logger = logging.getLogger(__name__)

N_STORED_PERSONAS = 100


def create_run_folder(args: TrainingOptions, tokenizer: DialogTokenizer, train: AnySplit, begins_again: bool) -> Path:
    """Make the folder of this run, named by time, host and model unless `--output_dir` names it.

    It holds readable arguments, the vocabulary, and a sample of personas, so that the chat needs no data set. What is
    there already is set aside where `--set_aside` says so; with `begins_again` it is this run itself, which had no
    checkpoint yet. Raises UserError where the folder is taken or cannot be written.
    """
    run = Path(args.output_dir or default_run_folder(args.model_checkpoint))
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
            f"the run folder {run} cannot be written ({error.strerror}); give another {argument('output_dir')}."
        ) from error
    logger.info("run folder: %s", run)
    return run


def sample_personas(split: AnySplit) -> list[list[TokenIds]]:
    """Return the personas of some dialogs, the same ones each time; dialogs without one are left out."""
    dialogs = random.Random(0).sample(range(split.n_dialogs), min(N_STORED_PERSONAS, split.n_dialogs))
    return [persona for persona in map(split.persona, dialogs) if persona]


class TrainingParts(NamedTuple):
    """What a checkpoint holds the state of. Random numbers are not among it: each update has a seed of its own."""

    model: DoubleHeads
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
        parts = self.parts
        with self.explained_failure(folder), atomic_write(folder, durable=True) as temporary:
            save_checkpoint(parts.model, temporary, parts.precision.weights(parts.model))
            parts.tokenizer.save(temporary)
            shutil.copy(self.run / PERSONAS_FILE, temporary)
            state = {name: getattr(parts, name).state_dict() for name in ("optimizer", "scheduler", "precision")}
            with open(temporary / STATE_FILE, "wb") as file:
                torch.save(state | {"update": update, "facts": self.size.described()}, file)
        remove_oldest(self.run, self.n_saved)

    def save_best(self) -> None:
        """Write the weights to the run folder itself; UserError where that fails."""
        with self.explained_failure(self.run / "model.safetensors"):
            save_model(self.parts.model, self.run, self.parts.precision.weights(self.parts.model))

    @contextmanager
    def explained_failure(self, path: Path) -> Iterator[None]:
        """Make room for what is written to `path`, and turn a failure into a UserError."""
        for temporary in what_a_kill_left(self.run):
            remove(temporary)
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{path} cannot be written ({_reason(error)}); {what_is_left(self.run)}") from error


def remove_oldest(run: Path, n_saved: int) -> None:
    """Remove all checkpoints but the last `n_saved`, and what earlier removals left behind.

    Where that fails, as on Windows while files are mapped, a warning says so, and the next call tries again.
    """
    for half_removed in run.glob("checkpoints/update-*.old"):
        remove(half_removed)
    for old in list_checkpoints(run)[:-n_saved]:
        removed = old.with_name(f"{old.name}.old")
        try:
            old.rename(removed)  # no half-removed checkpoint under its name
            shutil.rmtree(removed)
        except OSError as error:
            logger.warning("the old checkpoint %s cannot be removed (%s)", old, _reason(error))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
