"""The transformer that GPT and GPT-2 share, on packed tokens under any mask.

The tokens of a batch's sequences stand one after the other; each has a slot in the padded grid that
attention needs, and all else is computed for tokens only. Names of modules are those of the published checkpoints.

Shapes: B sequences, T positions of the longest, P tokens of all, D width, V vocabulary, K positions that can be seen.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from convai.model.config import ModelConfig
from convai.model.cpu_kernels import Dropout, QueryBlock, attend, attend_by_blocks, query_blocks

_ACTIVATIONS = {
    "gelu": nn.GELU(),
    "gelu_new": nn.GELU(approximate="tanh"),
    "gelu_pytorch_tanh": nn.GELU(approximate="tanh"),
    "relu": nn.ReLU(),
    "silu": nn.SiLU(),
    "swish": nn.SiLU(),
}


class KeyValueCache(Protocol):
    """The keys and values of earlier positions, of every layer, as in row_cache.py or transformers' DynamicCache."""

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


class Attention(nn.Module):
    """Multi-head scaled-dot-product attention; `forward` stops before the output projection (see Block)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.dropout = Dropout(config.attn_pdrop)
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, grid_indices: Tensor, mask: "Mask", cache: KeyValueCache | None = None) -> Tensor:
        """Return the heads' results (B * T, D) for x (P, D), the tokens at `grid_indices` (P,) of the grid (B * T).

        The mask is for K keys: T, or T and what `cache` (see Transformer) holds already.
        """
        batch, _, length, _ = mask.visible.shape
        width = x.shape[1]
        qkv = self.c_attn(x)
        if len(x) < batch * length:
            qkv = qkv.new_zeros(batch * length, 3 * width).index_copy(0, grid_indices, qkv)
        qkv = qkv.view(batch, length, 3, self.n_head, width // self.n_head)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, D / heads)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        if mask.blocks:
            heads = attend_by_blocks(query, key, value, mask.visible, mask.blocks, self.dropout)
        else:
            heads = attend(query, key, value, mask.visible, self.dropout)
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
        self,
        x: Tensor,
        grid_indices: Tensor,
        mask: "Mask",
        read: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Map x (P, D) to (P, D), or, given `read` (R,) into P, to just those (R, D). The rest as in Attention."""
        attended = self.attn(self.ln_1(x) if self.norm_first else x, grid_indices, mask, cache)
        if read is not None:  # beyond attention every token is by itself: skip those whose result nobody reads
            x, grid_indices = x.index_select(0, read), grid_indices.index_select(0, read)
        x = x + self.dropout(self.attn.c_proj(attended.index_select(0, grid_indices)))
        if self.norm_first:
            x = x + self.dropout(self.mlp(self.ln_2(x)))
        else:
            x = self.ln_1(x)
            x = self.ln_2(x + self.dropout(self.mlp(x)))
        return x


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
        for block in self.h[:-1]:  # the last, which gets `read`, would need another
            block.compile(dynamic=True, backend=backend)

    def forward(
        self,
        x: Tensor,
        position_ids: Tensor,
        grid_indices: Tensor,
        mask: "Mask",
        read: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Return the hidden states (P, D) of embedded tokens x (P, D), each of which sees what the mask says.

        `grid_indices` (P,) points into the flattened B * T positions of the mask. Only (R, D) come out where `read`
        (R,) into P are given. `cache` holds the keys and values of earlier positions and takes in those of these.
        """
        x = self.drop(x + self.positions_embed(position_ids))
        for block in self.h:
            read_here = read if block is self.h[-1] else None
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, grid_indices, mask, read_here, use_reentrant=False)
            else:
                x = block(x, grid_indices, mask, read_here, cache)
        return self.ln_f(x) if hasattr(self, "ln_f") else x


class PackedTrees(NamedTuple):
    """B candidate trees as a model reads them (see data.batches.TreeBatch): their P tokens, one after the other."""

    input_ids: Tensor  # (P,)
    token_type_ids: Tensor | None  # (P,), whose embeddings are added; None: none are
    position_ids: Tensor  # (P,)
    grid_indices: Tensor  # (P,) into the flattened B * T
    branch_ids: Tensor  # (B, T); 0 context, k the k-th candidate, -1 padding


class Mask(NamedTuple):
    """Who sees whom in attention."""

    visible: Tensor  # (B, 1, Q, K) bool: which keys a query sees
    blocks: Sequence[QueryBlock] = ()  # all queries, in order: see cpu_kernels.query_blocks


def tree_mask(branch_ids: Tensor, n_queries: int | None = None) -> Mask:
    """Return who sees whom for branch_ids (B, T): 0 context, k the k-th candidate, -1 padding.

    The queries are the last `n_queries` positions, by default all: with a cache, those before need no computing. Each
    sees itself and what stands before it that is context or of its own branch. Padding sees padding: a row that sees
    nothing would be NaN.
    """
    length = branch_ids.shape[1]
    n_queries = length if n_queries is None else n_queries
    causal = torch.ones(n_queries, length, dtype=torch.bool, device=branch_ids.device).tril(length - n_queries)
    queries, keys = branch_ids[:, length - n_queries :, None], branch_ids[:, None, :]
    visible = (queries == keys) | ((keys == 0) & (queries > 0))
    # Elsewhere reading branch_ids would wait for the device.
    blocks = query_blocks(branch_ids) if branch_ids.device.type == "cpu" and n_queries == length else ()
    return Mask((visible & causal)[:, None], blocks)
