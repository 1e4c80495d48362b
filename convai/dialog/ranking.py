"""Candidate replies ranked: one score each, all candidates of a context in one tree.

    head         the ranking head's score of the whole reply
    likelihood   log p(reply | context) per token, the reply's end counted
    pmi          that less the same without a context: how much more likely the context makes the reply
    head+pmi     the two, each standardized among the example's distinct candidates, and added

Whether a reply is likely at all says nothing about its context; so pmi prefers what fits here to what fits everywhere.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from convai.data.batches import TreeBatch, collate_trees
from convai.data.inputs import CandidateTree, InputBuilder
from convai.data.store import TokenIds
from convai.errors import NoFigure
from convai.model.heads import DoubleHeads
from convai.options import RANKINGS

TREES_ON_CPU = 4  # per forward pass: a sixth faster than 16, with 20 candidates and a full-size GPT
MAX_LOGITS = 2**27  # of a forward pass: half a gigabyte in fp32, 890 tokens' of a vocabulary of 150,000
SOFTMAX_ROWS = 64  # whose probabilities are worked out at once
BRANCHES_ALONE = 20  # replies without a context in one tree, whose attention grows with the square of its length
MAX_REMEMBERED = 100_000

Reply = tuple[int, ...]  # token ids, to look up


def check_ranking(model: DoubleHeads, by: str = "head") -> None:
    """Raise NoFigure where scores would be those of a ranking head that has never been trained: they mean nothing.

    Raises ValueError where `by` is none of RANKINGS.
    """
    if by not in RANKINGS:
        raise ValueError(f"candidates are ranked by {', '.join(RANKINGS)}, not by {by!r}")
    if "head" in by and not model.config.ranking_is_trained:
        raise NoFigure("the model's ranking head has never been trained, so its scores would be random: there is "
                       "no hits@1; give a model that was trained with candidates, or rank by likelihood or "
                       "pmi.")  # fmt: skip


class Scores(NamedTuple):
    """What a model makes of a tree's C candidates; lists of length C."""

    head: list[float]
    likelihood: list[float]  # log-probability per token; empty where only the head was asked for
    pmi: list[float] | None = None

    def less(self, without_context: Sequence[float]) -> "Scores":
        """Return the scores with pmi, given the likelihoods of the same candidates without a context."""
        pairs = zip(self.likelihood, without_context, strict=True)
        return self._replace(pmi=[given - without for given, without in pairs])

    def by(self, name: str) -> list[float]:
        """Return the scores by one of RANKINGS."""
        if name != "head+pmi":
            values: list[float] = getattr(self, name)
            return values
        return [head + pmi for head, pmi in zip(standardized(self.head), standardized(self.pmi or []), strict=True)]


class LikelihoodAlone:
    """The log-probability per token of replies without a context, each computed once, as distractors recur.

    It is one model's, whose weights must stay as they are. The `size` replies asked for last are remembered.
    """

    def __init__(self, size: int = MAX_REMEMBERED):
        self.size = size
        self._known: dict[Reply, float] = {}  # what was asked for last is last

    def of(self, model: DoubleHeads, inputs: InputBuilder, replies: Iterable[Reply]) -> dict[Reply, float]:
        """Return that of each reply: behind an empty persona and an empty history, as the layout writes them."""
        wanted = list(dict.fromkeys(replies))
        new = [reply for reply in wanted if reply not in self._known]
        trees = [
            inputs.tree([], [], list(map(list, new[start : start + BRANCHES_ALONE])), predicts_all=True)
            for start in range(0, len(new), BRANCHES_ALONE)
        ]
        computed = [value for scores in _read(model, trees, of_tokens=True) for value in scores.likelihood]
        found = dict(zip(new, computed, strict=True))
        found |= {reply: self._known.pop(reply) for reply in wanted if reply not in found}
        self._known |= found
        while len(self._known) > self.size:
            del self._known[next(iter(self._known))]
        return found


def score_candidates(
    model: DoubleHeads,
    inputs: InputBuilder,
    questions: Sequence[tuple[Sequence[TokenIds], Sequence[TokenIds], Sequence[TokenIds]]],
    ways: Sequence[str],
    alone: LikelihoodAlone | None = None,
) -> dict[str, list[list[float]]]:
    """Return the scores of each question's candidates, in their order, by each of several RANKINGS, from one pass.

    A question is persona, history and candidates. Candidates of equal tokens get the same score to the last bit.
    `alone` remembers for pmi what does not depend on the question. Raises NoFigure as check_ranking does.
    """
    for by in ways:
        check_ranking(model, by)
    of_tokens = any(by != "head" for by in ways)
    candidates = [[tuple(ids) for ids in offered] for _, _, offered in questions]
    # Equal candidates share a branch of the tree.
    branches = [list(dict.fromkeys(offered)) for offered in candidates]
    trees = [
        inputs.tree(persona, history, list(map(list, own)), predicts_all=of_tokens)
        for (persona, history, _), own in zip(questions, branches, strict=True)
    ]
    scores = _read(model, trees, of_tokens)
    if any("pmi" in by for by in ways):
        without = (alone or LikelihoodAlone()).of(model, inputs, (ids for own in branches for ids in own))
        scores = [one.less([without[ids] for ids in own]) for one, own in zip(scores, branches, strict=True)]
    scored = {}
    for by in ways:
        score_of = [dict(zip(own, one.by(by), strict=True)) for own, one in zip(branches, scores, strict=True)]
        scored[by] = [[known[ids] for ids in offered] for known, offered in zip(score_of, candidates, strict=True)]
    return scored


def standardized(scores: Sequence[float]) -> list[float]:
    """Return z-scores: less the mean, in units of the standard deviation of just these; zeros where all are equal."""
    if min(scores, default=0.0) == max(scores, default=0.0):  # else rounding would make a deviation of nothing
        return [0.0] * len(scores)
    mean = math.fsum(scores) / len(scores)
    deviation = math.sqrt(math.fsum((score - mean) ** 2 for score in scores) / len(scores))
    return [(score - mean) / deviation for score in scores]


@torch.inference_mode()
def _read(model: DoubleHeads, trees: Sequence[CandidateTree], of_tokens: bool) -> list[Scores]:
    """Return the scores of each tree's candidates, of their tokens too where these are its targets."""
    max_rows = max(1, MAX_LOGITS // model.config.vocab_size)
    found = []
    for part in _batches(model, trees, max_rows if of_tokens else None):
        log_probs, head = _scores_of(model, collate_trees(part).to(model.device), max_rows if of_tokens else 0)
        values = iter(log_probs)
        for tree, row in zip(part, head, strict=True):
            likelihood = [_mean([next(values) for _ in range(n)]) for n in tree.lengths] if of_tokens else []
            found.append(Scores(row[-len(tree.mc_indices) :], likelihood))
    return found


def _scores_of(model: DoubleHeads, batch: TreeBatch, max_rows: int) -> tuple[list[float], list[list[float]]]:
    """Return the log-probabilities of the N target tokens, and the head's scores of each tree's candidates, the last at
    the end of its row.

    A tree of more than `max_rows` targets is read several times, as its logits together might not fit the memory; 0:
    the head's scores are all that is asked for.
    """
    rows, targets = (
        indices.split(max_rows) if max_rows else (indices[:0],) for indices in (batch.lm_indices, batch.lm_targets)
    )
    log_probs: list[float] = []
    for own_rows, own_targets in zip(rows, targets, strict=True):
        output = model(**batch.model_inputs() | {"lm_indices": own_rows})
        log_probs += _log_probs(output.lm_logits, own_targets) if max_rows else []
    return log_probs, output.mc_logits.tolist()


def _log_probs(logits: Tensor, targets: Tensor) -> list[float]:
    """Return the log-probability of each target token (N,) by its row of logits (N, V)."""
    pieces = zip(logits.split(SOFTMAX_ROWS), targets.split(SOFTMAX_ROWS), strict=True)
    losses = [F.cross_entropy(rows.float(), wanted, reduction="none") for rows, wanted in pieces]
    return (-torch.cat(losses)).tolist()


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _batches(
    model: DoubleHeads, trees: Sequence[CandidateTree], max_rows: int | None
) -> Iterator[Sequence[CandidateTree]]:
    """Yield the trees in batches: a few on a CPU, whose caches more of them leave; as many as there are elsewhere.

    A batch of several trees has at most `max_rows` targets.
    """
    size = TREES_ON_CPU if model.device.type == "cpu" else len(trees)
    batch: list[CandidateTree] = []
    n_rows = 0
    for tree in trees:
        if len(batch) == size or (batch and max_rows and n_rows + len(tree.lm_indices) > max_rows):
            yield batch
            batch, n_rows = [], 0
        batch.append(tree)
        n_rows += len(tree.lm_indices)
    if batch:
        yield batch
