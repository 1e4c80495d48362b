"""What an example costs in training as candidates and history grow: forward and backward pass, without the update."""

from typing import Any

import torch

from bench.measure import compare
from bench.scoring import summary
from bench.setting import MAX_HISTORY, Setting, longest_sequence
from bench.training import N_CANDIDATES, losses_of_ours, losses_of_reference, plain_losses
from convai.training.trainer import tree_losses
from convai.training.updates import collate_update

CANDIDATES = (2, 4, 8, 20)
HISTORIES = (1, 2, 4, 8)


def cost(setting: Setting) -> list[dict[str, Any]]:
    """Measure every number of candidates at the usual history, and every history at the usual number of candidates."""
    points = [("candidates", n, n, MAX_HISTORY) for n in CANDIDATES]
    points += [("history", n, N_CANDIDATES, n) for n in HISTORIES]
    setting.require_training_precision()
    return [
        {"name": f"cost-{what}-{n}", **cost_of(setting, num_candidates, max_history)}
        for what, n, num_candidates, max_history in points
    ]


def cost_of(setting: Setting, num_candidates: int, max_history: int) -> dict[str, Any]:
    """Measure `--examples` examples, of the reference `--reference_examples`."""
    dataset = setting.dataset("train", num_candidates, max_history)
    indices = setting.draw(len(dataset), setting.options.examples or 8)
    examples = [dataset.example(index) for index in indices[: setting.options.reference_examples or 1]]
    length = longest_sequence(dataset)
    model, theirs = setting.load_ours(), setting.load_reference()
    checked = indices[: len(examples)]
    difference = setting.check_same(
        "losses", losses_of_ours(setting, model, dataset, checked), losses_of_reference(setting, theirs, examples)
    )
    micro_batches = collate_update([dataset[index] for index in indices], setting.options.batch_size).micro_batches

    def ours() -> int:
        model.train().zero_grad()
        for batch in micro_batches:
            with setting.autocast(setting.options.dtype):
                token_losses, candidate_losses, _ = tree_losses(model, batch.to(setting.device))
            (token_losses.mean() + candidate_losses.mean()).backward()
        return len(indices)

    def plainly() -> int:
        theirs.train().zero_grad()
        for example in examples:
            with setting.autocast(setting.options.dtype):
                loss = torch.stack(plain_losses(setting, theirs, [example], length)).sum()
            loss.backward()
        return len(examples)

    measured = compare({"ours": ours, "reference": plainly}, setting.options.repeats)
    lengths = [len(dataset[index].input_ids) for index in indices]
    return {
        **summary(measured),
        "num_candidates": num_candidates,
        "max_history": max_history,
        "tokens_of_tree": round(sum(lengths) / len(lengths), 1),
        "padded_tokens": num_candidates * length,
        "examples": len(indices),
        "reference_examples": len(examples),
        "difference": difference,
    }
