"""The run folder: what a training run leaves behind, so that it can be used, understood, and gone on with.

    RUN/                            the best checkpoint: weights, config.json, vocabulary, a sample of personas
    RUN/arguments.json              the options
    RUN/metrics.jsonl               every validation, a JSON object a line
    RUN/README.md                   the model card
    RUN/checkpoints/update-N/       the last checkpoints: the same files, and training_state.pt to go on from

A checkpoint is written aside, forced to disk and renamed, so whenever a run is killed, what is there can be read.
"""

import json
import logging
import math
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

from errors import UserError
from model import DoubleHeadsModel, save_model
from precision import Precision
from store import DialogSplit, TokenIds
from tokenization import DialogTokenizer

logger = logging.getLogger(__name__)

N_STORED_PERSONAS = 100
STATE_FILE = "training_state.pt"
METRICS_FILE = "metrics.jsonl"
PERSONAS_FILE = "personas.json"
IS_BETTER = {"hits@1": lambda new, old: new > old, "perplexity": lambda new, old: new < old}


def create_run_folder(args: Namespace, tokenizer: DialogTokenizer, train: DialogSplit) -> Path:
    """Make the folder of this run, named by time, host and model unless `--output_dir` names it.

    It holds readable arguments, the vocabulary, and a sample of personas, so that the chat needs no data set. What an
    earlier run left there to go on from is removed. Raises UserError where the folder cannot be written.
    """
    model_name = re.sub(r"[^\w.-]+", "_", Path(args.model_checkpoint).name) or "model"
    name = f"{datetime.now():%b%d_%H-%M-%S}_{socket.gethostname()}_{model_name}"
    run = Path(args.output_dir or Path("runs") / name)
    personas = [[tokenizer.decode(sentence) for sentence in persona] for persona in sample_personas(train)]
    try:
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        (run / METRICS_FILE).unlink(missing_ok=True)
        tokenizer.save(run)
        write_json(run / "arguments.json", vars(args))
        write_json(run / PERSONAS_FILE, personas)
    except OSError as error:
        raise UserError(
            f"the run folder {run} cannot be written ({error.strerror}); give another --output_dir."
        ) from error
    logger.info("run folder: %s", run)
    return run


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

    def __init__(self, run: Path, parts: TrainingParts, n_saved: int, facts: dict):
        """`facts` are stored beside the state, for a later run to compare with its own (see resume.check_facts)."""
        self.run = run
        self.parts = parts
        self.n_saved = n_saved
        self.facts = facts

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
                torch.save(state | {"update": update, "facts": self.facts}, file)
            for path in [*aside.iterdir(), aside]:
                force_to_disk(path)
            aside.rename(folder)
            force_to_disk(folder.parent)
        for old in list_checkpoints(self.run)[: -self.n_saved]:
            doomed = old.with_name(f"{old.name}.old")  # no half-removed checkpoint under its name
            old.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

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
            aside.is_file() and aside.unlink()
            raise UserError(f"{aside} cannot be written ({_reason(error)}); {what_is_left(self.run)}") from error


def what_is_left(run: Path) -> str:
    """Return a sentence on the newest checkpoint of a run that ended early."""
    if checkpoints := list_checkpoints(run):
        return f"the checkpoint {checkpoints[-1]} is intact: go on with --resume {run}."
    return "there is no earlier checkpoint."


def checkpoint_folder(run: Path, update: int) -> Path:
    return run / "checkpoints" / f"update-{update:08d}"


def list_checkpoints(run: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, the newest last."""
    return sorted(path for path in run.glob("checkpoints/update-*") if re.fullmatch(r"update-\d+", path.name))


def force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ValidationHistory:
    """A run's validations, kept in metrics.jsonl: which was the best, and how many have passed since."""

    def __init__(self, best_metric: str, run: Path, update: int = 0):
        """Read what `run` holds up to `update`; what came after it will come again."""
        self.metric = best_metric
        self.path = run / METRICS_FILE
        self.records: list[dict] = []
        if self.path.is_file():
            records = map(json.loads, self.path.read_text(encoding="utf-8-sig").splitlines())
            self.records = [record for record in records if record["updates"] <= update]

    def rewrite(self) -> None:
        """Take what came after `update` out of the file."""
        aside = self.path.with_suffix(".tmp")
        aside.write_text("".join(map(_json_line, self.records)), encoding="utf-8")
        aside.replace(self.path)

    def append(self, updates: int, epoch: int, metrics: dict[str, float], to_file: bool) -> None:
        self.records.append({"updates": updates, "epoch": epoch, **metrics})
        if to_file:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_json_line(self.records[-1]))

    def has(self, update: int) -> bool:
        return any(record["updates"] == update for record in self.records)

    def is_best(self, metrics: dict[str, float]) -> bool:
        """Whether these figures would be better than all so far; those before the first update do not count."""
        return all(IS_BETTER[self.metric](metrics[self.metric], old[self.metric]) for old in self._learned)

    @property
    def n_since_best(self) -> int:
        """How many validations in a row have brought nothing better."""
        best, n = math.nan, 0
        for record in self._learned:
            n = 0 if math.isnan(best) or IS_BETTER[self.metric](record[self.metric], best) else n + 1
            best = best if n else record[self.metric]
        return n

    @property
    def _learned(self) -> list[dict]:
        return [record for record in self.records if record["updates"] > 0]


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _json_line(record: dict) -> str:
    return json.dumps(record) + "\n"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
