"""What is computed in another way than torch's own, as that is slow on CPUs: each with its reason and its gain.

The gains are those of whole updates of full-size GPT; `python -m bench.kernels` measures them (see docs/decisions.md).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QUERIES_PER_BLOCK = 64  # of candidates, in attention


class Dropout(nn.Dropout):
    """Dropout whose random bits cost less on CPUs: 16 of them for each element, out of torch's own generator.

    torch's bernoulli_ draws a random number of its own for each. Without this a bf16 update takes 15 % longer,
    one in fp32 1 %.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p in (0, 1) or x.device.type != "cpu" or torch.compiler.is_compiling():
            dropped: Tensor = super().forward(x)
            return dropped
        n_dropped = round(self.p * 2**16)  # of 2 ** 16 equally likely values: 0.1 becomes 0.10001
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        is_kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= n_dropped - 2**15
        kept: Tensor = x * is_kept * (2**16 / (2**16 - n_dropped))
        return kept


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor,
    dropout: Dropout,
    scale: float | None = None,
    softcap: float | None = None,
    is_fused: bool = True,
) -> Tensor:
    """Return scaled-dot-product attention (B, heads, Q, D / heads); `visible` (B, 1, Q, K) is True for what is seen.

    `scale` is by default 1 / sqrt(D / heads); scores are kept within +-`softcap` (Gemma Team, 2024, arXiv 2408.00118).
    With `is_fused` torch's own kernel computes all of it where it can; its backward pass is slow on CPUs.
    """
    is_plain = not dropout.training or dropout.p == 0 or query.device.type != "cpu" or torch.compiler.is_compiling()
    if is_plain and softcap is None and is_fused:
        p = dropout.p if dropout.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible, dropout_p=p, scale=scale)
    # With dropout torch computes it like this on CPUs, too, but with the slower random bits.
    scores = query @ key.transpose(-2, -1)
    scores = scores / math.sqrt(query.shape[-1]) if scale is None else scores * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights: Tensor = dropout(scores.masked_fill(~visible, -math.inf).softmax(-1))
    return weights @ value


class QueryBlock(NamedTuple):
    """Queries `start` to `end` of a grid, which see no keys but the shared first ones and those from `first_key` on."""

    start: int
    first_key: int
    end: int


def query_blocks(branch_ids: Tensor) -> list[QueryBlock]:
    """Return the context's queries as one block, and those of the candidates in blocks of about QUERIES_PER_BLOCK.

    The blocks hold all positions of branch_ids (B, T), in order (see transformer.tree_mask); the end of the first is
    how many keys all others share. Most pairs of candidate positions belong to different candidates: blocks leave
    nearly all of these out. Without them 20 candidates take longer in bf16: 10 % in an update, 13 % to score (6 %
    in fp32); with 4 candidates it makes no difference.
    """
    length = branch_ids.shape[1]
    n_context = max(1, int((branch_ids == 0).sum(dim=1).max()))
    blocks = [QueryBlock(0, 0, n_context)]
    for start in range(n_context, length, QUERIES_PER_BLOCK):
        # Of the branches that the first row cuts through, the one that began first.
        before = (branch_ids[:, :start] == branch_ids[:, start : start + 1]) & (branch_ids[:, start : start + 1] > 0)
        first_key = start - int(before.sum(dim=1).max())
        blocks.append(QueryBlock(start, max(n_context, first_key), min(length, start + QUERIES_PER_BLOCK)))
    return blocks


def attend_by_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    visible: Tensor,
    blocks: Sequence[QueryBlock],
    dropout: Dropout,
    scale: float | None = None,
    softcap: float | None = None,
    is_fused: bool = True,
) -> Tensor:
    """Return what `attend` does, computed block by block."""
    n_shared = blocks[0].end
    parts = []
    for start, first_key, end in blocks:

        def seen(x: Tensor, dim: int, first_key: int = first_key, end: int = end) -> Tensor:
            own = x.narrow(dim, first_key, end - first_key)
            return torch.cat([x.narrow(dim, 0, n_shared), own], dim) if first_key else own

        block = slice(start, end)
        keys, values, mask = seen(key, 2), seen(value, 2), seen(visible[:, :, block], 3)
        parts.append(attend(query[:, :, block], keys, values, mask, dropout, scale, softcap, is_fused))
    return torch.cat(parts, dim=2)


class _EmbedTokens(torch.autograd.Function):
    """The sum of two look-ups, and the weight itself for the head; it comes in once for either use."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, weight_for_head: Tensor, input_ids: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(torch.cat([input_ids, token_type_ids]))
        x = F.embedding(input_ids, weight) + F.embedding(token_type_ids, weight)
        return x, weight_for_head.view_as(weight_for_head)

    @staticmethod
    def backward(ctx: Any, x_grad: Tensor, head_grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        row_grads = torch.cat([x_grad, x_grad])
        if head_grad.device.type != "cpu":  # index_put sums in the same order each time, which sparse sums do not
            return None, head_grad.index_put((ids,), row_grads, accumulate=True), None, None
        look_ups = torch.sparse_coo_tensor(ids[None], row_grads, head_grad.shape, check_invariants=False)
        return look_ups, head_grad, None, None


def embed_tokens(weight: Tensor, input_ids: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum (P, D) of the embeddings of two sorts of ids (P,), and the weight (V, D) for a head tied to it.

    Left to itself autograd makes a matrix (V, D) of zeros for each look-up and adds it to the head's gradient: with 4
    candidates an update takes 7 % longer, with 20 no longer. Here the look-ups hand over the rows that they touch, and
    autograd adds these to the head's gradient: in place where it holds the only reference to it (as under autocast),
    else in a copy. Who else was handed that gradient is for autograd to know; here nothing is written into it.
    """
    embedded: tuple[Tensor, Tensor] = _EmbedTokens.apply(  # type: ignore[no-untyped-call] # so torch has it
        weight, weight, input_ids, token_type_ids
    )
    return embedded
