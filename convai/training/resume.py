"""Going on with a run: which checkpoint, whether the options are still the same, and reading the state back."""

import logging
import os
import pickle
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from convai.errors import UserError, argument
from convai.io.files import read_json_object
from convai.io.pretrained import ADAPTER_FILE, HEADS_FILE
from convai.options import OptionsParser, TrainingOptions
from convai.training.checkpoint import TrainingParts
from convai.training.run_folder import (
    ARGUMENTS_FILE,
    STATE_FILE,
    has_only_begun,
    list_checkpoints,
)
from convai.training.updates import RunSize

logger = logging.getLogger(__name__)

# Options that may be others when a run goes on: they do not change what is computed. How an update is split into
# batches does not either; its size is compared as a whole (check_size). What decides which weights are kept is not
# among them: by another metric an earlier validation may be the best, whose weights are gone.
FREE_OPTIONS = {
    "compile", "dataset_cache", "device", "eval_before_start", "gradient_accumulation_steps",
    "gradient_checkpointing", "local_rank", "n_saved", "num_workers", "output_dir", "patience", "resume", "save_every",
    "set_aside", "train_batch_size", "valid_batch_size",
}  # fmt: skip


def resolve_options(parser: OptionsParser[TrainingOptions], argv: list[str] | None = None) -> TrainingOptions:
    """Parse the options; those not given are, with `--resume RUN`, the run's own instead of the defaults.

    Raises UserError where one that is given differs from the run's and would change what is computed.
    """
    args = parser.parse_args(argv)
    if not args.resume and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        args = replace(args, resume="auto")  # the launcher has started all ranks again after one of them died
    if args.resume in ("", "auto"):
        return args
    run = run_of(Path(args.resume))
    stored = read_json_object(run / ARGUMENTS_FILE)
    machine = {"resume", "local_rank", "output_dir", "set_aside"}
    parser.set_defaults(**{name: value for name, value in stored.items() if name not in machine})
    args = parser.parse_args(argv)
    if changed := differences(args, stored):
        raise UserError(f"{argument('resume')} {args.resume}: it was trained with {', '.join(changed)}; leave these "
                        "options out to go on with the run, or, to train on with others from its weights, give "
                        f"{argument('model')} {run} {argument('output_dir')} OTHER instead of "
                        f"{argument('resume')}.")  # fmt: skip
    return args


def differences(args: TrainingOptions, stored: dict) -> list[str]:
    """Return "--option old, not new" for each option that would change what is computed."""
    before = vars(TrainingOptions()) | stored  # what a run of an older version lacks was as it is by default
    changed = (name for name in vars(args).keys() - FREE_OPTIONS if getattr(args, name) != before.get(name))
    return [f"--{name} {before.get(name)!r}, not {getattr(args, name)!r}" for name in sorted(changed)]


def run_of(folder: Path) -> Path:
    """Return the run folder of a run or of one of its checkpoints; UserError where it is neither."""
    run = folder.parents[1] if (folder / STATE_FILE).is_file() else folder
    if not (run / ARGUMENTS_FILE).is_file():
        raise UserError(f"{argument('resume')} {folder} is not the folder of a run: it has no arguments.json; give "
                        "one that train.py made, or auto.")  # fmt: skip
    return run


def find_checkpoint(args: TrainingOptions) -> Path | None:
    """Return the checkpoint to go on from; None for a new run. Raises UserError where `--resume` names none."""
    if not args.resume:
        return None
    if args.resume == "auto":
        for run in runs_like(args):
            if checkpoint := newest_readable(run):
                return checkpoint
        logger.info("no earlier run with these options has a checkpoint; starting a new one")
        return None
    folder = Path(args.resume)
    if (folder / STATE_FILE).is_file():  # a checkpoint rather than a run
        check_readable(folder)
        return folder
    if checkpoint := newest_readable(folder):
        return checkpoint
    raise UserError(f"{argument('resume')} {folder}: there is no readable checkpoint in {folder / 'checkpoints'}; "
                    "start the run anew.")  # fmt: skip


def runs_like(args: TrainingOptions) -> list[Path]:
    """Return the runs with the same options, the one with the newest checkpoint first."""
    folders = [Path(args.output_dir)] if args.output_dir else list(Path("runs").glob("*"))
    runs = [run for run in folders if (run / ARGUMENTS_FILE).is_file() and list_checkpoints(run)]
    same = [run for run in runs if not differences(args, read_json_object(run / ARGUMENTS_FILE))]
    return sorted(same, key=lambda run: -list_checkpoints(run)[-1].stat().st_mtime)


def begins_again(args: TrainingOptions) -> bool:
    """Whether `--resume auto` starts the run in `--output_dir` anew: it ended before its first checkpoint."""
    run = Path(args.output_dir)
    if args.resume != "auto" or not args.output_dir or not (run / ARGUMENTS_FILE).is_file():
        return False
    return has_only_begun(run) and not differences(args, read_json_object(run / ARGUMENTS_FILE))


def newest_readable(run: Path) -> Path | None:
    """Return a run's newest checkpoint that can be read; a damaged one is passed over with a warning."""
    for folder in reversed(list_checkpoints(run)):
        try:
            check_readable(folder)
            return folder
        except DamagedCheckpoint as error:
            logger.warning("%s; trying the one before it", str(error).rstrip("."))
    return None


class DamagedCheckpoint(UserError):
    """A checkpoint of which not everything can be read."""


def check_readable(folder: Path) -> None:
    """Raise DamagedCheckpoint where weights or state are incomplete, UserError where the state could run code."""
    weights = [folder / ADAPTER_FILE, folder / HEADS_FILE]
    if not weights[0].exists():
        weights = [folder / "model.safetensors", *(path for path in weights[1:] if path.exists())]
    for path in weights:
        try:
            with safe_open(path, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise DamagedCheckpoint(f"{path} is damaged ({error}).") from error
    read_state(folder)


def read_state(folder: Path) -> dict:
    """Return the training state of a checkpoint; errors as for check_readable."""
    path = folder / STATE_FILE
    try:
        # Tensors and plain values only, mapped rather than read: no code of a pickle is ever run.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than a training state, which could run code; it is not opened.") from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise DamagedCheckpoint(f"{path} is damaged ({str(error).splitlines()[0]}).") from error
    if not isinstance(state, dict) or not {"optimizer", "scheduler", "precision", "update", "facts"} <= state.keys():
        raise DamagedCheckpoint(f"{path} is not the training state of a run.")
    return state


def check_size(checkpoint: Path, stored: dict, size: RunSize) -> None:
    """Raise UserError where the run to go on with had other data, or updates of another size, than this one."""
    now = size.described()
    if changed := [f"{name} {stored.get(name)}, not {now[name]}" for name in now if stored.get(name) != now[name]]:
        raise UserError(f"{checkpoint} is of a run with {', '.join(changed)}: give the same data, and batch size x "
                        "accumulation x processes as before.")  # fmt: skip


def restore(state: dict, parts: TrainingParts) -> None:
    """Put a state that was read back into optimizer, schedule and loss scaler; the weights are loaded already."""
    parts.optimizer.load_state_dict(state["optimizer"])
    parts.scheduler.load_state_dict(state["scheduler"])
    parts.precision.load_state_dict(state["precision"])
