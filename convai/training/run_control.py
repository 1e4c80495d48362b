"""When a training run saves, validates and stops, and how it ends: by itself, on a signal, or on a failure."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from ignite.engine import Engine, Events
from torch.utils.data import DataLoader

from convai.errors import UserError, argument
from convai.options import TrainingOptions
from convai.training.checkpoint import Checkpoints
from convai.training.distributed import is_first_rank
from convai.training.interruption import Interruption
from convai.training.model_card import write_model_card
from convai.training.run_folder import what_is_left
from convai.training.trainer import result_of
from convai.training.updates import TreeDataset, UpdateSampler
from convai.training.validations import ValidationHistory, shown, with_sources_apart

logger = logging.getLogger(__name__)


class RunControl:
    """Runs a trainer up to its last update, with all that has to happen in between.

    A checkpoint is written every `--save_every` updates and after each epoch, before the validation, which may take
    long; then the best weights are kept. A signal on any rank stops all of them after the same update.
    """

    def __init__(
        self,
        args: TrainingOptions,
        trainer: Engine,
        evaluator: Engine,
        valid_loader: DataLoader,
        checkpoints: Checkpoints,
        interruption: Interruption,
        n_updates: int,
    ):
        """`trainer` may have been put to the update of a checkpoint already; `n_updates` is its last."""
        self.args = args
        self.trainer = trainer
        self.evaluator = evaluator
        self.valid_loader = valid_loader
        self.checkpoints = checkpoints
        self.interruption = interruption
        self.n_updates = n_updates
        self.history = ValidationHistory(args.best_metric, checkpoints.run, self.update)
        if self.update and is_first_rank():
            self.history.rewrite()
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._after_update)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._validate)

    @property
    def update(self) -> int:
        """The number of updates made so far."""
        return self.trainer.state.iteration

    def run(self, train_loader: DataLoader) -> None:
        """Train to the end; leaves with the signal's status where one came, UserError where memory or disk gave out."""
        sampler = cast(UpdateSampler, train_loader.batch_sampler)

        @self.trainer.on(Events.EPOCH_STARTED)
        def shuffle(engine: Engine) -> None:
            # Of a resumed run's first epoch some updates are done already.
            sampler.set_epoch(engine.state.epoch, n_done=self.update % len(sampler))

        with explained_failures(self.checkpoints.run), self.interruption.watch():
            if self._is_validation_due(len(sampler)):
                self._validate(self.trainer)
            if self.update < self.n_updates and not self._has_lost_patience:
                self.trainer.run(train_loader, max_epochs=math.ceil(self.n_updates / len(sampler)))
        self._report_end()

    def _after_update(self, engine: Engine) -> None:
        output = result_of(engine)
        if not math.isfinite(output.loss) or not (math.isfinite(output.grad_norm) or output.was_skipped):
            raise UserError(f"update {self.update}: the loss is {output.loss} and its gradient's norm "
                            f"{output.grad_norm}; try a lower {argument('lr')}, {argument('warmup')} 500, or "
                            f"{argument('bf16')} instead of fp16; "
                            f"{what_is_left(self.checkpoints.run)}")  # fmt: skip
        epoch_length = cast(int, engine.state.epoch_length)  # known while it runs
        ends_epoch = self.update % epoch_length == 0 or self.update == self.n_updates
        is_due = self.args.save_every and self.update % self.args.save_every == 0
        if is_first_rank() and (ends_epoch or is_due or output.is_interrupted):
            self.checkpoints.save(self.update)
        if output.is_interrupted:
            engine.terminate()
        elif self.update == self.n_updates:
            engine.terminate_epoch()  # the last by max_epochs, so the run ends as if it had been a full one

    def _validate(self, engine: Engine) -> None:
        with self.interruption.at_once():
            metrics = self.evaluator.run(self.valid_loader if len(self.valid_loader) else [None]).metrics
        n_examples = len(cast(TreeDataset, self.valid_loader.dataset))
        metrics = {"hits@1": None} | with_sources_apart(metrics)  # not measured where it would say nothing
        logger.info(
            "after %d updates: hits@1 %s, perplexity %.3f (per token, %d validation examples)",
            self.update, shown(metrics["hits@1"]), metrics["perplexity"], n_examples,
        )  # fmt: skip
        for name, own in metrics.get("sources", {}).items():
            logger.info("of %s: hits@1 %s, perplexity %.3f", name, shown(own["hits@1"]), own["perplexity"])
        if is_first_rank() and self.update > 0 and self.history.is_best(metrics):
            self.checkpoints.save_best()
        self.history.append(self.update, engine.state.epoch, metrics, to_file=is_first_rank())
        if is_first_rank() and self.update > 0:
            write_model_card(self.checkpoints.run, self.checkpoints.size.described())
        if self._has_lost_patience:
            better = self.history.deciding_metric
            logger.info("%d validations without a better %s: stopping", self.args.patience, better)
            engine.terminate()

    def _is_validation_due(self, epoch_length: int) -> bool:
        """Whether to validate before training: as asked for, or because the run to go on with ended just before it."""
        if self.update == 0:
            return self.args.eval_before_start
        ends_epoch = self.update % epoch_length == 0 or self.update == self.n_updates
        return ends_epoch and not self.history.has(self.update)

    @property
    def _has_lost_patience(self) -> bool:
        return bool(self.args.patience) and self.history.n_since_best >= self.args.patience

    def _report_end(self) -> None:
        run = self.checkpoints.run
        if self.trainer.state.output is None or not result_of(self.trainer).is_interrupted:
            logger.info("done: best checkpoint in %s, last in %s", run, run / "checkpoints")
            return
        if is_first_rank():
            logger.warning("interrupted after update %d; go on with: python train.py --resume %s", self.update, run)
        self.interruption.leave()


@contextmanager
def explained_failures(run: Path) -> Iterator[None]:
    """Say in one line what to do when memory or disk give out, and on which rank anything else went wrong."""
    try:
        yield
    except UserError:
        raise
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise UserError(f"out of memory; lower {argument('train_batch_size')} and raise "
                            f"{argument('gradient_accumulation_steps')} by as much (the result is the same), or give "
                            f"{argument('gradient_checkpointing')}, {argument('bf16')}, a lower "
                            f"{argument('valid_batch_size')} or {argument('num_candidates')}; "
                            f"{what_is_left(run)}") from error  # fmt: skip
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise UserError(f"{argument('compile')} does not work here ({str(error).splitlines()[0]}); leave it "
                            "out.") from error  # fmt: skip
        logger.error("%s: %s", type(error).__name__, error)
        raise
    except OSError as error:
        raise UserError(f"{error.filename or run} cannot be written ({error.strerror}); {what_is_left(run)}") from error
