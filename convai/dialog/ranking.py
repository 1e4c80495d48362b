"""Candidate replies ranked: one score each, from the ranking head, all candidates of a context in one tree."""

from collections.abc import Sequence

import torch

from convai.data.batches import collate_trees
from convai.data.inputs import CandidateTree, InputBuilder
from convai.data.store import TokenIds
from convai.errors import NoFigure
from convai.model.heads import DoubleHeads

TREES_ON_CPU = 4  # per forward pass: a sixth faster than 16, with 20 candidates and a full-size GPT


def check_ranking(model: DoubleHeads) -> None:
    """Raise NoFigure where the ranking head has never been trained, so that its scores mean nothing."""
    if not model.config.ranking_is_trained:
        raise NoFigure("the model's ranking head has never been trained, so its scores would be random: there is "
                       "no hits@1; give a model that was trained with candidates.")  # fmt: skip


@torch.inference_mode()
def score_candidates(
    model: DoubleHeads,
    inputs: InputBuilder,
    questions: Sequence[tuple[Sequence[TokenIds], Sequence[TokenIds], Sequence[TokenIds]]],
) -> list[list[float]]:
    """Return the scores of each question's candidates, in their order; a question is persona, history and candidates.

    Candidates of equal tokens get the same score to the last bit. Raises NoFigure as check_ranking does.
    """
    check_ranking(model)
    candidates = [[tuple(ids) for ids in offered] for _, _, offered in questions]
    # Equal candidates share a branch of the tree.
    branches = [list(dict.fromkeys(offered)) for offered in candidates]
    trees = [
        inputs.tree(persona, history, list(map(list, own)))
        for (persona, history, _), own in zip(questions, branches, strict=True)
    ]
    scores = [row for batch in _batches(model, trees) for row in _scores_of(model, batch)]
    score_of = [dict(zip(own, row[-len(own) :], strict=True)) for own, row in zip(branches, scores, strict=True)]
    return [[known[ids] for ids in offered] for known, offered in zip(score_of, candidates, strict=True)]


def _scores_of(model: DoubleHeads, trees: Sequence[CandidateTree]) -> list[list[float]]:
    """Return the scores of each tree's candidates, the last at the end of its row."""
    batch = collate_trees(trees).to(model.device)
    scores: list[list[float]] = model(**batch.model_inputs() | {"lm_indices": batch.lm_indices[:0]}).mc_logits.tolist()
    return scores


def _batches(model: DoubleHeads, trees: Sequence[CandidateTree]) -> list[Sequence[CandidateTree]]:
    """Return the trees in batches: a few on a CPU, whose caches more of them leave; all together elsewhere."""
    size = TREES_ON_CPU if model.device.type == "cpu" else len(trees)
    return [trees[start : start + size] for start in range(0, len(trees), size)]
