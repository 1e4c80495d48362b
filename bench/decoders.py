"""Candidates of a decoder of transformers as a tree, against each of them as a padded sequence of its own.

    python -m bench.decoders MODEL --data personachat.json --dtype bf16

MODEL is a folder or hub name of any decoder that train.py takes; weights are random, as speed does not depend on them.
Both sides score every candidate of the same examples with the ranking head, in turns, after their scores were compared;
the sequences go through transformers' own attention, in one batch for each example.
"""

import json
import shlex
import sys
from dataclasses import MISSING, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bench.measure import compare, ratio
from bench.options import BenchOptions
from bench.setting import Setting
from convai.data.batches import collate_trees
from convai.data.inputs import CandidateTree
from convai.dialog.ranking import TREES_ON_CPU
from convai.errors import UserError, report_user_errors
from convai.model.backbone import CANDIDATE_TREES
from convai.model.decoder import DecoderModel
from convai.options import option, parser_of, positive_int


@dataclass(frozen=True)
class DecoderBenchOptions:
    """Options of `python -m bench.decoders`."""

    description: ClassVar[str] = "Candidates of a decoder as a tree, against each as a padded sequence of its own."

    model: str = option(MISSING, "folder or hub name of a decoder", metavar="MODEL")
    data: str = option("example", "dialogs, in any form that train.py reads", names=["--data", "--dataset_path"])
    examples: int = option(16, "examples that each side scores in a turn", kind=positive_int)
    repeats: int = option(3, "turns that each side is timed", kind=positive_int)
    dtype: str = option("fp32", "numbers that both compute with", choices=["fp32", "bf16"])


def padded(tree: CandidateTree) -> tuple[Tensor, Tensor]:
    """Return ids and mask (C, T) of a tree's candidates, each behind the context, padded at the right."""
    n_context = tree.branch_ids.count(0)
    rows = [
        tree.input_ids[:n_context] + tree.input_ids[end + 1 - length : end + 1]
        for end, length in zip(tree.mc_indices, tree.lengths, strict=True)
    ]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def score_trees(model: DecoderModel, trees: list[CandidateTree]) -> list[list[float]]:
    """Return each tree's scores, as the evaluation computes them."""
    size = TREES_ON_CPU if model.device.type == "cpu" else len(trees)
    scores: list[list[float]] = []
    for start in range(0, len(trees), size):
        batch = collate_trees(trees[start : start + size]).to(model.device)
        scores += model(**batch.model_inputs() | {"lm_indices": batch.lm_indices[:0]}).mc_logits.tolist()
    return scores


def score_sequences(model: DecoderModel, trees: list[CandidateTree]) -> list[list[float]]:
    """Return the same, from every candidate's own sequence."""
    model.causal_lm.set_attn_implementation("sdpa")
    scores = []
    for tree in trees:
        ids, mask = (tensor.to(model.device) for tensor in padded(tree))
        hidden = model.causal_lm.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        last = hidden[torch.arange(len(ids)), mask.sum(1) - 1]
        scores.append(model.multiple_choice_head(last).tolist())
    model.causal_lm.set_attn_implementation(CANDIDATE_TREES)
    return scores


@torch.inference_mode()
def measure(options: DecoderBenchOptions) -> dict[str, Any]:
    """Return the report of one measurement."""
    names = {"tokenizer": options.model, "data": options.data, "repeats": options.repeats, "dtype": options.dtype}
    setting = Setting(BenchOptions(names=["decoders"], **names))
    model = setting.load_ours(options.dtype)
    if not isinstance(model, DecoderModel):
        raise UserError(f"{options.model} is a GPT or GPT-2; `python -m bench hits` measures these.")
    torch.manual_seed(setting.options.seed)
    model.multiple_choice_head.draw(std=1.0)  # so that candidates differ by more than rounding
    dataset = setting.dataset("valid")
    trees = [dataset[index] for index in setting.draw(len(dataset), options.examples)]
    trees.sort(key=lambda tree: -len(tree.input_ids))
    checked = [score_trees(model, trees[:2]), score_sequences(model, trees[:2])]
    ours, theirs = ([score for row in rows for score in row] for rows in checked)
    difference = setting.check_same("candidate scores", ours, theirs)
    measured = compare(
        {"tree": lambda: len(score_trees(model, trees)), "padded": lambda: len(score_sequences(model, trees))},
        options.repeats,
    )
    n_tokens = {"tree": sum(len(tree.input_ids) for tree in trees), "padded": sum(padded(t)[0].numel() for t in trees)}
    return {
        "name": "decoders",
        "ratio": round(ratio(measured["tree"], measured["padded"]), 2),
        **{f"{way} examples/s": round(measurement.rate, 3) for way, measurement in measured.items()},
        **{f"{way} tokens an example": round(n / len(trees)) for way, n in n_tokens.items()},
        "difference": difference,
        **setting.describe(),
        "command": shlex.join(["python", "-m", "bench.decoders", *sys.argv[1:]]),
    }


@report_user_errors
def main(arguments: list[str] | None = None) -> None:
    import transformers

    options = parser_of(DecoderBenchOptions, prog="python -m bench.decoders").parse_args(arguments)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(json.dumps(measure(options)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
