"""The transformer that GPT and GPT-2 share, on packed tokens under any mask.

The tokens of a batch's sequences stand one after the other; each has a slot in the padded grid that
attention needs, and all else is computed for tokens only. Names of modules are those of the published checkpoints.

Shapes: B sequences, T positions of the longest, P tokens of all, D width, V vocabulary, K positions that can be seen.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convai.model.config import ModelConfig

ROWS_OF_BLOCK = 64  # of candidates, in attention on CPUs
_ACTIVATIONS = {
    "gelu": nn.GELU(),
    "gelu_new": nn.GELU(approximate="tanh"),
    "gelu_pytorch_tanh": nn.GELU(approximate="tanh"),
    "relu": nn.ReLU(),
    "silu": nn.SiLU(),
    "swish": nn.SiLU(),
}


class KeyValueCache(Protocol):
    """The keys and values of earlier positions, of every layer; transformers' DynamicCache is one."""

    def update(self, key: Tensor, value: Tensor, layer: int, /) -> tuple[Tensor, Tensor]:
        """Take in the keys and values of new positions, and return those of all so far."""


class Conv1D(nn.Module):
    """A linear layer whose weight is stored as (inputs, outputs), the published checkpoints' layout."""

    def __init__(self, n_inputs: int, n_outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_inputs, n_outputs))
        self.bias = nn.Parameter(torch.zeros(n_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t(), self.bias)


class Dropout(nn.Dropout):
    """Dropout whose random bits cost less on CPUs: 16 of them for each element, out of torch's own generator."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p in (0, 1) or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        n_dropped = round(self.p * 2**16)  # of 2 ** 16 equally likely values: 0.1 becomes 0.10001
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        is_kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= n_dropped - 2**15
        return x * is_kept * (2**16 / (2**16 - n_dropped))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: Dropout) -> Tensor:
    """Return scaled-dot-product attention (B, heads, T, D / heads) under mask (B, 1, T, K), True for what is seen."""
    if not dropout.training or dropout.p == 0 or query.device.type != "cpu" or torch.compiler.is_compiling():
        p = dropout.p if dropout.training else 0.0
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=p)
    # With dropout torch computes it like this on CPUs, too, but with the slower random bits.
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    weights: Tensor = dropout(scores.masked_fill(~mask, -math.inf).softmax(-1))
    return weights @ value


def attend_by_blocks(query: Tensor, key: Tensor, value: Tensor, mask: "Mask", dropout: Dropout) -> Tensor:
    """Return what `attend` does, computed in the mask's blocks of rows where it has some."""
    if not mask.blocks:
        return attend(query, key, value, mask.visible, dropout)
    n_shared = mask.blocks[0].end
    parts = []
    for start, first_key, end in mask.blocks:

        def seen(x: Tensor, dim: int, first_key: int = first_key, end: int = end) -> Tensor:
            own = x.narrow(dim, first_key, end - first_key)
            return torch.cat([x.narrow(dim, 0, n_shared), own], dim) if first_key else own

        rows = slice(start, end)
        visible = seen(mask.visible[:, :, rows], 3)
        parts.append(attend(query[:, :, rows], seen(key, 2), seen(value, 2), visible, dropout))
    return torch.cat(parts, dim=2)


class Attention(nn.Module):
    """Multi-head scaled-dot-product attention; `forward` stops before the output projection (see Block)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.dropout = Dropout(config.attn_pdrop)
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, slots: Tensor, mask: "Mask", cache: KeyValueCache | None = None) -> Tensor:
        """Return the heads' results (B * T, D) for x (P, D), whose rows stand at `slots` (P,) of the grid (B * T).

        The mask is for K keys: T, or T and what `cache` (see Transformer) holds already.
        """
        batch, _, length, _ = mask.visible.shape
        width = x.shape[1]
        qkv = self.c_attn(x)
        if len(x) < batch * length:
            qkv = qkv.new_zeros(batch * length, 3 * width).index_copy(0, slots, qkv)
        qkv = qkv.view(batch, length, 3, self.n_head, width // self.n_head)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, D / heads)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        heads = attend_by_blocks(query, key, value, mask, self.dropout)
        return heads.transpose(1, 2).reshape(batch * length, width)


class MLP(nn.Module):
    """The position-wise feed-forward layer, four times as wide inside unless the config says otherwise."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        n_inner = config.n_inner or 4 * config.n_embd
        self.c_fc = Conv1D(config.n_embd, n_inner)
        self.act = _ACTIVATIONS[config.activation]
        self.c_proj = Conv1D(n_inner, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.c_proj(self.act(self.c_fc(x)))
        return projected


class Block(nn.Module):
    """One transformer layer: GPT normalises after each residual sum, GPT-2 before each sub-layer."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.norm_first = config.family == "gpt2"
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)
        self.dropout = Dropout(config.resid_pdrop)

    def forward(
        self, x: Tensor, slots: Tensor, mask: "Mask", rows: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Map x (P, D) to (P, D), or, given `rows` (R,) into P, to just those (R, D). The rest as in Attention."""
        attended = self.attn(self.ln_1(x) if self.norm_first else x, slots, mask, cache)
        if rows is not None:  # beyond attention every row stands alone: skip those nobody reads
            x, slots = x.index_select(0, rows), slots.index_select(0, rows)
        x = x + self.dropout(self.attn.c_proj(attended.index_select(0, slots)))
        if self.norm_first:
            x = x + self.dropout(self.mlp(self.ln_2(x)))
        else:
            x = self.ln_1(x)
            x = self.ln_2(x + self.dropout(self.mlp(x)))
        return x


class _EmbedTokens(torch.autograd.Function):
    """The sum of two look-ups, and the weight itself for the head: all uses in one place, so one gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, input_ids: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(torch.cat([input_ids, token_type_ids]))
        return F.embedding(input_ids, weight) + F.embedding(token_type_ids, weight), weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, x_grad: Tensor, weight_grad: Tensor) -> tuple[Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        return weight_grad.index_put_((ids,), torch.cat([x_grad, x_grad]), accumulate=True), None, None


def embed_tokens(weight: Tensor, input_ids: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum (P, D) of the embeddings of two sorts of ids (P,), and the weight (V, D) for a head tied to it.

    The gradients of the look-ups are added to that of the head in place. Left to itself autograd makes a matrix (V, D)
    of zeros for each look-up and adds it, which was a tenth of a training step on a CPU.
    """
    embedded: tuple[Tensor, Tensor] = _EmbedTokens.apply(  # type: ignore[no-untyped-call] # so torch has it
        weight, input_ids, token_type_ids
    )
    return embedded


class Transformer(nn.Module):
    """The stack of blocks, behind the position embedding."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.tokens_embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions_embed = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        if config.family == "gpt2":
            self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False  # in training keep each block's input only, and compute the rest again

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Let torch.compile make one program of each block: they are alike, so it is compiled once for all of them."""
        for block in self.h[:-1]:  # the last, which gets `rows`, would need another
            block.compile(dynamic=True, backend=backend)

    def forward(
        self,
        x: Tensor,
        position_ids: Tensor,
        slots: Tensor,
        mask: "Mask",
        rows: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Return the hidden states (P, D) of embedded tokens x (P, D), each of which sees what the mask says.

        `slots` (P,) points into the flattened B * T positions of the mask. Only (R, D) come out where `rows`
        (R,) into P are given. `cache` holds the keys and values of earlier positions and takes in those of these.
        """
        x = self.drop(x + self.positions_embed(position_ids))
        for block in self.h:
            rows_of_block = rows if block is self.h[-1] else None
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, slots, mask, rows_of_block, use_reentrant=False)
            else:
                x = block(x, slots, mask, rows_of_block, cache)
        return self.ln_f(x) if hasattr(self, "ln_f") else x


class RowBlock(NamedTuple):
    """Rows `start` to `end` of a grid, which see no keys but the shared first ones and those from `first_key` on."""

    start: int
    first_key: int
    end: int


class Mask(NamedTuple):
    """Who sees whom in attention."""

    visible: Tensor  # (B, 1, Q, K) bool: rows are queries
    blocks: Sequence[RowBlock] = ()  # all rows, in order; the end of the first is how many keys all others share


def tree_mask(branch_ids: Tensor, n_queries: int | None = None) -> Mask:
    """Return who sees whom for branch_ids (B, T): 0 context, k the k-th candidate, -1 padding.

    The rows are the last `n_queries` positions, by default all: with a cache, those before need no computing. A row
    sees itself and what stands before it that is context or of its own branch. Padding sees padding: a row that sees
    nothing would be NaN.
    """
    length = branch_ids.shape[1]
    n_queries = length if n_queries is None else n_queries
    causal = torch.ones(length, length, dtype=torch.bool, device=branch_ids.device).tril()[length - n_queries :]
    rows, columns = branch_ids[:, length - n_queries :, None], branch_ids[:, None, :]
    visible = (rows == columns) | ((columns == 0) & (rows > 0))
    # Elsewhere reading branch_ids would wait for the device.
    blocks = row_blocks(branch_ids) if branch_ids.device.type == "cpu" and n_queries == length else ()
    return Mask((visible & causal)[:, None], blocks)


def row_blocks(branch_ids: Tensor) -> list[RowBlock]:
    """Return the context's rows as one block, and those of the candidates in blocks of about ROWS_OF_BLOCK.

    Most pairs of candidate rows belong to different candidates: blocks leave nearly all of these out.
    """
    length = branch_ids.shape[1]
    n_context = max(1, int((branch_ids == 0).sum(dim=1).max()))
    blocks = [RowBlock(0, 0, n_context)]
    for start in range(n_context, length, ROWS_OF_BLOCK):
        # Of the branches that the first row cuts through, the one that began first.
        before = (branch_ids[:, :start] == branch_ids[:, start : start + 1]) & (branch_ids[:, start : start + 1] > 0)
        first_key = start - int(before.sum(dim=1).max())
        blocks.append(RowBlock(start, max(n_context, first_key), min(length, start + ROWS_OF_BLOCK)))
    return blocks
