"""The run folder: what a training run leaves behind, so that it can be used, compared and understood later."""

import json
import logging
import random
import re
import socket
from argparse import Namespace
from datetime import datetime
from pathlib import Path

from ignite.engine import Engine, Events

from errors import UserError
from model import DoubleHeadsModel, save_model
from store import DialogSplit, TokenIds
from tokenization import DialogTokenizer

logger = logging.getLogger(__name__)

N_STORED_PERSONAS = 100


def create_run_folder(args: Namespace, tokenizer: DialogTokenizer, train: DialogSplit) -> Path:
    """Make the folder of this run, named by time, host and model unless `--output_dir` names it.

    It holds readable arguments, the vocabulary, and a sample of personas, so that the chat needs no data set. Raises
    UserError where it cannot be written.
    """
    model_name = re.sub(r"[^\w.-]+", "_", Path(args.model_checkpoint).name) or "model"
    name = f"{datetime.now():%b%d_%H-%M-%S}_{socket.gethostname()}_{model_name}"
    run = Path(args.output_dir or Path("runs") / name)
    personas = [[tokenizer.decode(sentence) for sentence in persona] for persona in sample_personas(train)]
    try:
        tokenizer.save(run)
        write_json(run / "arguments.json", vars(args))
        write_json(run / "personas.json", personas)
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


def attach_checkpoints(
    trainer: Engine, evaluator: Engine, model: DoubleHeadsModel, tokenizer: DialogTokenizer, run: Path
) -> None:
    """After each validation record it in metrics.jsonl and save RUN/last and, where hits@1 is the best so far, RUN."""
    best = -1.0

    @evaluator.on(Events.COMPLETED)
    def save(engine: Engine) -> None:
        nonlocal best
        metrics = {"updates": trainer.state.iteration, "epoch": trainer.state.epoch, **engine.state.metrics}
        with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        if trainer.state.iteration == 0:
            return  # --eval_before_start: nothing has been learned yet
        tokenizer.save(run / "last")
        save_model(model, run / "last")
        if metrics["hits@1"] > best:
            best = metrics["hits@1"]
            save_model(model, run)


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
