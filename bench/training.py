"""Training: whole updates of the weights, by train.py's own engine and by a plain loop over padded sequences."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench import reference
from bench.measure import compare, large_product, ratio
from bench.setting import DTYPES, Setting, longest_sequence
from convai.data.inputs import CandidateTree
from convai.data.store import Example
from convai.model.double_heads import DoubleHeadsModel
from convai.options import TrainingOptions
from convai.training.trainer import Trainer, tree_losses
from convai.training.updates import TreeDataset, collate_update
from train import prepare_parts

N_CANDIDATES = 4


def train(setting: Setting) -> list[dict[str, Any]]:
    """Measure updates of `--examples` examples each."""
    setting.require_training_precision()
    dataset = setting.dataset("train", N_CANDIDATES)
    indices = setting.draw(len(dataset), setting.options.examples or 16)
    examples = [dataset.example(index) for index in indices]
    length = longest_sequence(dataset)
    model, theirs = setting.load_ours(), setting.load_reference()
    difference = setting.check_same(
        "losses", losses_of_ours(setting, model, dataset, indices), losses_of_reference(setting, theirs, examples)
    )
    ways = {"ours": our_updates(setting, model, dataset, indices)}
    plain = partial(plain_updates, setting, theirs, examples, length)
    ways["reference"] = plain("fp32")
    if setting.options.dtype != "fp32":
        ways[f"reference_{setting.options.dtype}"] = plain(setting.options.dtype)
    size = 128 if setting.options.small else 2048
    ways["peak"] = large_product(setting.device, DTYPES[setting.options.dtype], size)
    measured = compare(ways, setting.options.repeats)
    peak = measured.pop("peak")
    trees = [dataset[index] for index in indices]
    flops = sum(training_flops(model, len(tree.input_ids), len(tree.lm_rows)) for tree in trees) / len(trees)
    return [
        {
            "name": "train",
            **{name: round(way.rate, 3) for name, way in measured.items()},
            "unit": "examples/s",
            "ratio": round(ratio(measured["ours"], measured["reference"]), 2),
            **{f"ratio_to_{name}": round(ratio(measured["ours"], way), 2) for name, way in list(measured.items())[2:]},
            "peak_mb": round(measured["ours"].peak_mb or 0),
            "reference_peak_mb": round(measured["reference"].peak_mb or 0),
            "flops_utilisation": round(flops * ratio(measured["ours"], peak), 3),
            "peak_gflops": round(peak.rate / 1e9),
            "padding_flops": round(padding_flops(model, trees, setting.options.batch_size) / (flops * len(trees)), 4),
            "examples": len(indices),
            "difference": difference,
        }
    ]


def our_updates(setting: Setting, model: DoubleHeadsModel, dataset: TreeDataset, indices: list[int]) -> Callable:
    """Return a function that makes one update as train.py does, from building the trees on."""
    args = TrainingOptions(train_batch_size=setting.options.batch_size, bf16=setting.options.dtype == "bf16")
    parts = prepare_parts(args, model, dataset.inputs.tokenizer, 1000, setting.device)
    trainer = Trainer(parts, lm_coef=args.lm_coef, mc_coef=args.mc_coef, max_norm=args.max_norm, seed=args.seed,
                      device=setting.device)  # fmt: skip

    def work() -> int:
        trees = [dataset[index] for index in indices]
        trainer.step(collate_update(trees, args.train_batch_size), 1)
        return len(indices)

    return work


def plain_updates(
    setting: Setting, model: nn.Module, examples: list[Example], length: int, dtype: str
) -> Callable[[], int]:
    """Return a function that makes one update from padded sequences, accumulated over batches of examples."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=6.25e-5, eps=1e-6, weight_decay=0.0)
    size = setting.options.batch_size

    def work() -> int:
        model.train()
        for start in range(0, len(examples), size):
            with setting.autocast(dtype):
                loss = sum(plain_losses(setting, model, examples[start : start + size], length))
            (loss * size / len(examples)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return len(examples)

    return work


def plain_losses(setting: Setting, model: nn.Module, examples: list[Example], length: int = 0) -> tuple[Tensor, Tensor]:
    """Return the language-model and the candidate loss of a batch."""
    batch = reference.pad_candidates(examples, setting.tokenizer, length)
    batch = {name: tensor.to(setting.device) for name, tensor in batch.items()}
    logits = reference.score_candidates(model, batch)
    lm_loss, mc_loss = (reference.joint_loss(*logits, batch["labels"], *weights) for weights in ((1, 0), (0, 1)))
    return lm_loss, mc_loss


@torch.no_grad()
def losses_of_ours(setting: Setting, model: DoubleHeadsModel, dataset: TreeDataset, indices: list[int]) -> list[float]:
    """Return both losses over the first few examples, without dropout."""
    model.eval()
    batch = collate_update([dataset[index] for index in indices[:4]], 4).micro_batches[0]
    with setting.autocast(setting.options.dtype):
        token_losses, candidate_losses, _ = tree_losses(model, batch.to(setting.device))
    return [token_losses.mean().item(), candidate_losses.mean().item()]


@torch.no_grad()
def losses_of_reference(setting: Setting, model: nn.Module, examples: list[Example]) -> list[float]:
    return [loss.item() for loss in plain_losses(setting, model.eval(), examples[:4])]


def training_flops(model: DoubleHeadsModel, n_tokens: int, n_lm_rows: int) -> float:
    """Return the floating-point operations that a tree's update needs, forward and backward.

    6 per weight of the blocks and token; the attention's two products over all pairs of positions; the head's rows.
    """
    n_weights = sum(weight.numel() for weight in model.transformer.h.parameters())
    head = 6 * n_lm_rows * model.config.n_embd * model.config.vocab_size
    return 6 * n_weights * n_tokens + attention_flops(model, n_tokens) + head


def attention_flops(model: DoubleHeadsModel, length: int) -> float:
    """Return the operations, forward and backward, of attention's two products over a sequence."""
    return 12 * model.config.n_layer * length**2 * model.config.n_embd


def padding_flops(model: DoubleHeadsModel, trees: list[CandidateTree], batch_size: int) -> float:
    """Return the operations that an update spends on padding: in attention only."""
    grids = [batch.branch_ids.shape for batch in collate_update(trees, batch_size).micro_batches]
    computed = sum(n_rows * attention_flops(model, length) for n_rows, length in grids)
    return computed - sum(attention_flops(model, len(tree.input_ids)) for tree in trees)
