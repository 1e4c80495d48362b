"""The choice of a reply's next token: what may be said, what is likely enough, and the draw.

In plain torch, as transformers' processors take 0.6 s to import; the tests compare the two, token by token.

Shapes: R replies, V vocabulary.
"""

import math
import random
from collections.abc import Sequence

import numpy as np
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
    return _nucleus(filtered, top_p) if 0 < top_p < 1 else filtered


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Return logits (..., V) with -inf outside the nucleus; of equal ones at its edge some may stay, as torch sorts."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        # numpy sorts numbers 30 times as fast as torch does numbers and places, which are needed for ties alone. Of a
        # reply's 11 ms a token in int8, 2.5 are saved.
        ascending = torch.from_numpy(np.sort(logits.detach().numpy()))
        n_out = _is_out(ascending, top_p).sum(-1, keepdim=True)
        lowest, below = ascending.gather(-1, n_out), ascending.gather(-1, (n_out - 1).clamp(min=0))
        if not ((below == lowest) & (n_out > 0)).any():
            return logits.masked_fill(logits < lowest, -math.inf)
    ascending, order = logits.sort()
    is_out = _is_out(ascending, top_p)
    return logits.masked_fill(is_out.scatter(-1, order, is_out), -math.inf)


def _is_out(ascending: Tensor, top_p: float) -> Tensor:
    """Return which of logits (..., V) in ascending order are outside the nucleus: all up to some place."""
    is_out = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    is_out[..., -1] = False
    return is_out


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
