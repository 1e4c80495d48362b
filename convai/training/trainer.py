"""One update of the weights from several micro-batches, over all ranks; and the losses that it descends.

The loss of an update is lm_coef times the mean cross-entropy over all gold target tokens of the update, plus mc_coef
times the mean over its examples' candidates (Wolf et al., 2019, section 3.2; there each micro-batch was averaged by
itself). So an update can be split by batch size, accumulation and ranks in any way, with the same result.

Shapes: B examples, C candidates, N gold target tokens.
"""

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from ignite.engine import Engine
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from convai.data.batches import TreeBatch
from convai.training.checkpoint import TrainingParts
from convai.training.distributed import sum_over_ranks
from convai.training.updates import Update


@dataclass(frozen=True)
class UpdateResult:
    """What became of an update; losses are means over the update's tokens and examples, on all ranks alike."""

    loss: float
    lm_loss: float
    mc_loss: float
    grad_norm: float  # before clipping
    n_examples: int
    n_cut: int  # examples of which something was left out to fit the model
    is_interrupted: bool  # a signal has come, on any rank, so that all stop after the same update
    was_skipped: bool  # for an overflow of scaled fp16 gradients; the weights stay


def result_of(engine: Engine) -> UpdateResult:
    """Return what became of an engine's latest update; by Ignite's own annotation an output is a number."""
    return cast(UpdateResult, engine.state.output)


class Trainer:
    """Makes updates of the model's weights, in the steps that accumulation, ranks and precision need."""

    def __init__(
        self,
        parts: TrainingParts,
        *,
        lm_coef: float,
        mc_coef: float,
        max_norm: float,
        seed: int,
        device: torch.device,
        has_signal: Callable[[], bool] = lambda: False,
    ):
        """`max_norm` clips the gradient of a whole update; `has_signal` says whether this process was told to stop."""
        self.parts = parts
        self.lm_coef = lm_coef
        self.mc_coef = mc_coef
        self.max_norm = max_norm
        self.seed = seed
        self.device = device
        self.has_signal = has_signal
        self.synchronized = synchronized(parts.model, device)

    def step(self, update: Update, number: int, has_share: bool = True) -> UpdateResult:
        """Make update `number` (from 1 on); a rank whose share of it is empty takes part with weight zero."""
        parts, weight = self.parts, float(has_share)
        parts.model.train()
        # Dropout is drawn from the update's own seed, so that a resumed run draws what an uninterrupted one would.
        torch.manual_seed(seed_of_update(self.seed, number))
        counts = torch.tensor([weight * update.n_targets, weight * update.n_examples], device=self.device)
        counts = sum_over_ranks(counts)
        losses = torch.zeros(2, device=self.device)
        for n, batch in enumerate(update.micro_batches, start=1):
            # Gradients cross the ranks once per update, with those of the last micro-batch.
            is_last = n == len(update.micro_batches)
            model = self.synchronized
            with model.no_sync() if isinstance(model, DistributedDataParallel) and not is_last else nullcontext():
                losses += weight * self._add_gradients(batch.to(self.device), counts, weight)
        step = parts.precision.step(parts.optimizer, self.max_norm)
        if not step.was_skipped:
            parts.scheduler.step()
        n_cut = weight * sum(batch.n_cut for batch in update.micro_batches)
        own = torch.tensor([n_cut, float(self.has_signal())], device=self.device)
        sums = sum_over_ranks(torch.cat([losses, own]))
        # The one place where an update waits for the device.
        lm_loss, mc_loss, n_cut, n_signals, n_examples, norm = torch.stack([*sums, counts[1], step.grad_norm]).tolist()
        return UpdateResult(
            loss=self.lm_coef * lm_loss + self.mc_coef * mc_loss,
            lm_loss=lm_loss,
            mc_loss=mc_loss,
            grad_norm=norm,
            n_examples=int(n_examples),
            n_cut=int(n_cut),
            is_interrupted=n_signals > 0,
            was_skipped=step.was_skipped,
        )

    def _add_gradients(self, batch: TreeBatch, counts: Tensor, weight: float) -> Tensor:
        """Add a micro-batch's gradients, times `weight`; return its summands (2,) of the means over `counts` (2,)."""
        parts = self.parts
        with parts.precision.autocast():
            token_losses, candidate_losses, _ = tree_losses(self.synchronized, batch)
        # Each micro-batch adds its share of the update's means, so how an update is split makes no difference.
        means = torch.stack([token_losses.sum(), candidate_losses.sum()]) / counts
        loss = weight * (self.lm_coef * means[0] + self.mc_coef * means[1])
        # The ranks' gradients are averaged, where what is wanted is their sum.
        parts.precision.backward(loss * idist.get_world_size(), parts.optimizer)
        return means.detach()


def tree_losses(model: nn.Module, batch: TreeBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss of each gold target token (N,) and of each example's candidates (B,), and their scores (B, C)."""
    output = model(**batch.model_inputs())
    token_losses = F.cross_entropy(output.lm_logits.float(), batch.lm_targets, reduction="none")
    scores = output.mc_logits.float()
    return token_losses, F.cross_entropy(scores, gold_columns(scores), reduction="none"), scores


def gold_columns(mc_logits: Tensor) -> Tensor:
    """Return the gold's column (B,) in candidate scores (B, C): always the last."""
    return torch.full((len(mc_logits),), mc_logits.shape[1] - 1, device=mc_logits.device)


def synchronized(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model, with several ranks as one that averages its gradients over them."""
    if idist.get_world_size() == 1:
        return model
    return DistributedDataParallel(
        model, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
    )


def seed_of_update(seed: int, number: int) -> int:
    """Return a seed that differs between updates and ranks."""
    return random.Random(f"{seed} {number} {idist.get_rank()}").getrandbits(62)
