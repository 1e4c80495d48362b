"""The run folder: what a training run leaves behind, so that it can be used, understood, and gone on with.

    RUN/                            the best checkpoint: weights, config.json, vocabulary, a sample of personas
    RUN/arguments.json              the options
    RUN/metrics.jsonl               every validation, a JSON object a line
    RUN/README.md                   the model card
    RUN/checkpoints/update-N/       the last checkpoints: the same files, and training_state.pt to go on from;
                                    with --lora_rank the adapter only, and the name of the model that it is for

A new run never takes the place of what a folder holds already. Light, so that new_model.py starts fast, too.
"""

import logging
import os
import re
import socket
from datetime import datetime
from pathlib import Path

from convai.errors import UserError, argument
from convai.io.files import TEMPORARY_FILES, remove
from convai.training.validations import METRICS_FILE, read_validations

logger = logging.getLogger(__name__)

STATE_FILE = "training_state.pt"
PERSONAS_FILE = "personas.json"
ARGUMENTS_FILE = "arguments.json"
WEIGHTS_FILES = ["model.safetensors", "pytorch_model.bin"]


def default_run_folder(model: str) -> Path:
    """Return runs/<date>_<time>_<host>_<model>."""
    name = re.sub(r"[^\w.-]+", "_", Path(model).name) or "model"
    return Path("runs") / f"{datetime.now():%b%d_%H-%M-%S}_{socket.gethostname()}_{name}"


def checkpoint_folder(run: Path, update: int) -> Path:
    return run / "checkpoints" / f"update-{update:08d}"


def list_checkpoints(run: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, the newest last."""
    return sorted(path for path in run.glob("checkpoints/update-*") if re.fullmatch(r"update-\d+", path.name))


def what_is_left(run: Path) -> str:
    """Return a sentence on the newest checkpoint of a run that ended early."""
    if checkpoints := list_checkpoints(run):
        return f"the checkpoint {checkpoints[-1]} is intact: go on with {argument('resume')} {run}."
    return "there is no earlier checkpoint."


def what_would_be_lost(folder: Path) -> str:
    """Return the name of what a new run or model in `folder` would take the place of; "" where there is nothing."""
    names = [METRICS_FILE, "checkpoints", *WEIGHTS_FILES]
    return next((name for name in names if (folder / name).exists()), "")


def has_only_begun(run: Path) -> bool:
    """Whether a run has made no checkpoint yet, so that nothing of its training is lost when it begins again."""
    if list_checkpoints(run) or any((run / name).exists() for name in WEIGHTS_FILES):
        return False
    try:
        return all(record["updates"] == 0 for record in read_validations(run))
    except ValueError:
        return False


def check_is_free(folder: Path, may_be_set_aside: bool = False) -> None:
    """Raise UserError where a new run in `folder` would take the place of something that may not be set aside."""
    found = what_would_be_lost(folder)
    here = Path.cwd()
    can_be_renamed = folder.resolve() not in (here, *here.parents)
    if not found or (may_be_set_aside and can_be_renamed):
        return
    ways = [] if found in WEIGHTS_FILES else [f"go on with it by {argument('resume')} {folder}"]
    ways += ["give another folder"]
    if can_be_renamed:
        ways += [f"or {argument('set_aside')}, which renames this one to {free_name(folder)}"]
    elif may_be_set_aside:
        ways += [f"as {argument('set_aside')} cannot rename the current folder or one around it"]
    raise UserError(f"{argument('output_dir')} {folder} holds a run or a model already ({found}): {', '.join(ways)}.")


def free_name(folder: Path) -> Path:
    """Return the first of NAME.1, NAME.2, ... that is not there."""
    number = 1
    while os.path.lexists(name := folder.with_name(f"{folder.name}.{number}")):
        number += 1
    return name


def set_aside(folder: Path) -> None:
    """Rename what is in the way of a new run, and say so. Raises OSError."""
    new_name = free_name(folder)
    folder.rename(new_name)
    logger.info("what was in %s is set aside in %s", folder, new_name)


def what_a_kill_left(run: Path) -> list[Path]:
    """Return what a run that was killed was just writing; no other process writes in its folder."""
    names = [TEMPORARY_FILES, "model.safetensors.tmp", "checkpoints/update-*.tmp"]  # some of older versions
    return [path for name in names for path in run.glob(name)]


def begin_again(run: Path) -> None:
    """Remove what a run that `has_only_begun` left half-written. Raises OSError."""
    for temporary in what_a_kill_left(run):
        remove(temporary)
    (run / METRICS_FILE).unlink(missing_ok=True)


def make_numbered(folder: Path) -> Path:
    """Make a folder that no other process has: `folder` itself, or NAME_2, NAME_3, ... Raises OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    number, made = 1, folder
    while True:
        try:
            made.mkdir()
            return made
        except FileExistsError:
            number += 1
            made = folder.with_name(f"{folder.name}_{number}")
