"""What a training run shows while it goes: progress, TensorBoard scalars, sample dialogs."""

import logging
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from ignite.handlers.tensorboard_logger import TensorboardLogger

from convai.data.batches import collate_trees
from convai.dialog.decoding import DecodingSettings, generate_replies
from convai.errors import rank_label
from convai.model.heads import DoubleHeads
from convai.training.checkpoint import TrainingParts
from convai.training.distributed import is_first_rank
from convai.training.trainer import UpdateResult, result_of
from convai.training.updates import TreeDataset

logger = logging.getLogger(__name__)

N_SAMPLE_DIALOGS = 4
SECONDS_BETWEEN_LINES = 30  # of progress, where there is no terminal to draw a bar on


def set_up_logging() -> None:
    """Send messages to stderr, of all ranks but the first only warnings, and silence what libraries report."""
    label = rank_label()
    level = logging.WARNING if label else logging.INFO
    logging.basicConfig(level=level, format=f"{label}%(levelname)s: %(message)s", stream=sys.stderr)
    # Ignite reports every exception that passes through it; ours are reported once, at the end.
    logging.getLogger("ignite").setLevel(logging.CRITICAL)
    for chatty in ("httpx", "huggingface_hub", "tensorboardX", "transformers"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def attach_progress(trainer: Engine, evaluator: Engine, n_updates: int) -> None:
    """Show loss, rate and time left, as bars on a terminal and as lines elsewhere; report examples that were cut."""
    if not is_first_rank():
        count_cut_examples(evaluator, "validation")
        return
    RunningFigures().attach(trainer)
    if sys.stderr.isatty():
        ProgressBar(desc="training", persist=True, ncols=100).attach(trainer, ["loss", "examples/s"])
        ProgressBar(desc="validation", ncols=100).attach(evaluator)
    else:
        log_progress(trainer, n_updates)
    for engine, name in ((trainer, "training"), (evaluator, "validation")):
        count_cut_examples(engine, name)
    count_skipped_updates(trainer)


class RunningFigures:
    """Sets the metrics `loss` and `examples/s` (waiting for data included): exponential averages over updates.

    Ignite's RunningAverage would wait for the other ranks, whose losses are in the update's output already.
    """

    def attach(self, trainer: Engine) -> None:
        trainer.add_event_handler(Events.EPOCH_STARTED, self._start)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._measure)

    def _start(self, engine: Engine) -> None:
        self._last = time.perf_counter()

    def _measure(self, engine: Engine) -> None:
        now = time.perf_counter()
        output, metrics = result_of(engine), engine.state.metrics
        rate = output.n_examples / (now - self._last)
        for name, value in (("loss", output.loss), ("examples/s", rate)):
            metrics[name] = 0.95 * metrics.get(name, value) + 0.05 * value
        self._last = now


def log_progress(trainer: Engine, n_updates: int) -> None:
    """Log a line of progress every half minute."""
    last = time.perf_counter()

    @trainer.on(Events.ITERATION_COMPLETED)
    def log(engine: Engine) -> None:
        nonlocal last
        if time.perf_counter() - last < SECONDS_BETWEEN_LINES:
            return
        last = time.perf_counter()
        state = engine.state
        seconds_left = (n_updates - state.iteration) * result_of(engine).n_examples / state.metrics["examples/s"]
        logger.info(
            "update %d of %d: loss %.3f, %.1f examples/s, %s left without validation",
            state.iteration, n_updates, state.metrics["loss"], state.metrics["examples/s"],
            timedelta(seconds=round(seconds_left)),
        )  # fmt: skip


def count_cut_examples(engine: Engine, name: str) -> None:
    """Report once an epoch how many examples lost something to the model's position limit."""
    n_cut = 0

    @engine.on(Events.ITERATION_COMPLETED)
    def add(engine: Engine) -> None:
        nonlocal n_cut
        output: Any = engine.state.output  # an UpdateResult or BatchScores
        n_cut += output.n_cut

    @engine.on(Events.EPOCH_COMPLETED)
    def report(engine: Engine) -> None:
        nonlocal n_cut
        if n_cut:
            logger.warning("%s: %d examples were cut to fit the model's positions", name, n_cut)
        n_cut = 0


def count_skipped_updates(trainer: Engine) -> None:
    """Warn of updates that were skipped for an overflow of fp16 gradients; a few are normal."""
    n_skipped = 0

    @trainer.on(Events.ITERATION_COMPLETED)
    def count(engine: Engine) -> None:
        nonlocal n_skipped
        if result_of(engine).was_skipped:
            n_skipped += 1
            logger.warning(
                "update %d: the gradients overflowed in fp16; weights and learning rate stay, the loss scale falls "
                "(%d updates so far)", engine.state.iteration, n_skipped,
            )  # fmt: skip


@contextmanager
def attach_tensorboard(
    trainer: Engine, evaluator: Engine, parts: TrainingParts, valid: TreeDataset, run: Path
) -> Iterator[None]:
    """Write losses, gradient norm, learning rate, speed, validation figures and sample dialogs to event files in `run`.

    A resumed run takes the place of what an interrupted one wrote after its checkpoint.
    """
    if not is_first_rank():
        yield
        return
    n_done = trainer.state.iteration
    board = TensorboardLogger(log_dir=run, purge_step=n_done + 1 if n_done else None)
    with board:
        attach_scalars(board, trainer, evaluator, parts.optimizer)
        attach_sample_dialogs(board, trainer, evaluator, parts, valid)
        yield


def attach_scalars(
    board: TensorboardLogger, trainer: Engine, evaluator: Engine, optimizer: torch.optim.Optimizer
) -> None:
    every_update = Events.ITERATION_COMPLETED

    def scalars(result: UpdateResult) -> dict[str, float]:
        return {name: getattr(result, name) for name in ("loss", "lm_loss", "mc_loss", "grad_norm")}

    board.attach_output_handler(trainer, every_update, tag="training", output_transform=scalars)
    board.attach_output_handler(trainer, every_update, tag="training", metric_names=["examples/s"])
    board.attach_opt_params_handler(trainer, every_update, optimizer=optimizer, tag="training")
    board.attach_output_handler(evaluator, Events.COMPLETED, tag="validation", metric_names="all",
                                global_step_transform=lambda *_: trainer.state.iteration)  # fmt: skip


def attach_sample_dialogs(
    board: TensorboardLogger, trainer: Engine, evaluator: Engine, parts: TrainingParts, valid: TreeDataset
) -> None:
    """After each validation show a few of its dialogs in TensorBoard, with what the model chose and what it says."""
    indices = random.Random(0).sample(range(len(valid)), min(N_SAMPLE_DIALOGS, len(valid)))

    @evaluator.on(Events.COMPLETED)
    def show(engine: Engine) -> None:
        for number, index in enumerate(indices):
            with parts.precision.autocast():
                text = describe_example(parts.model, valid, index)
            board.writer.add_text(f"validation/dialog_{number}", text, trainer.state.iteration)


@torch.inference_mode()
def describe_example(model: DoubleHeads, valid: TreeDataset, index: int) -> str:
    """Return one example in Markdown: persona, history, gold reply, the model's choice and its own greedy reply."""
    tokenizer, example = valid.inputs.tokenizer, valid.example(index)
    batch = collate_trees([valid[index]]).to(model.device)
    chosen = model.eval()(**batch.model_inputs()).mc_logits.argmax().item()
    settings = DecodingSettings(no_sample=True)
    prompt = valid.inputs.prompt(example.persona, example.history, settings.max_length)
    reply = generate_replies(model, tokenizer, [prompt], settings)[0]
    lines = [f"*{tokenizer.decode(sentence)}*" for sentence in example.persona]
    lines += [f"- {tokenizer.decode(turn)}" for turn in example.history]
    lines += [f"**gold:** {tokenizer.decode(example.candidates[-1])}"]
    lines += [f"**chosen of {len(example.candidates)}:** {tokenizer.decode(example.candidates[chosen])}"]
    lines += [f"**generated:** {tokenizer.decode(reply)}"]
    return "\n\n".join(lines)
