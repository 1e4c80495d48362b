"""The choice of a reply's next token: what may be said, what is likely enough, and the draw.

In plain torch, as transformers' processors take 0.6 s to import; the tests compare the two, token by token.

Shapes: R replies, V vocabulary.
"""

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

from convai.options import DecodingSettings


def filter_logits(logits: Tensor, *, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Return a copy of logits (..., V) with -inf outside the `top_k` likeliest and the nucleus of `top_p`.

    The nucleus is the smallest set of likeliest tokens whose probability reaches `top_p`; 0 sets no limit.
    """
    filtered = logits.clone()
    if top_k:
        lowest = filtered.topk(min(top_k, filtered.shape[-1])).values[..., -1:]
        filtered = filtered.masked_fill(filtered < lowest, -math.inf)
    if 0 < top_p < 1:
        ascending, order = filtered.sort()
        is_out = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        is_out[..., -1] = False
        filtered = filtered.masked_fill(is_out.scatter(-1, order, is_out), -math.inf)
    return filtered


def block_ngrams(scores: Tensor, reply: Sequence[int], n: int) -> None:
    """Set the scores (V,), in place, of tokens that would end an n-gram which the reply has already to -inf.

    The prompt's own must stay sayable, or no persona could be quoted. Where nothing would be left, nothing is blocked.
    """
    start = len(reply) - n + 1
    if start < 0:
        return
    said = list(reply)
    blocked = [said[i + n - 1] for i in range(start) if said[i : i + n - 1] == said[start:]]
    if blocked:
        left = scores.clone()
        left[blocked] = -math.inf
        if not left.isneginf().all():
            scores.copy_(left)


def choose_tokens(
    scores: Tensor, settings: DecodingSettings, generators: Sequence[random.Random] | None = None
) -> list[int]:
    """Return the next token of each of R replies by its scores (R, V), -inf for what may not be said.

    Each is drawn by its own generator, without which all are drawn by torch's.
    """
    if not settings.samples:
        return scores.argmax(-1).tolist()
    scores = filter_logits(scores / float(settings.temperature), top_k=settings.top_k, top_p=settings.top_p)
    probabilities = scores.softmax(-1)
    if generators is None:
        return probabilities.multinomial(1).squeeze(1).tolist()
    return draw(probabilities, generators)


def draw(probabilities: Tensor, generators: Sequence[random.Random]) -> list[int]:
    """Return a token for each row of probabilities (R, V), which depends on that row and its generator alone."""
    cumulative = probabilities.cumsum(-1)
    # Above 0 and at most 1, so a token of no probability is never the first to reach it.
    draws = torch.tensor([[1 - generator.random()] for generator in generators], device=probabilities.device)
    return (cumulative < draws * cumulative[:, -1:]).sum(-1).tolist()
