"""The seam to transformers: any of its causal language models, run on candidate trees.

transformers' models take their attention, and the mask for it, from two registries. Under the name CANDIDATE_TREES
there are a mask that evaluates the model's own rule (full, sliding, chunked) at positions rather than rows, and lets a
branch see the context and itself; and an attention that takes the packed tokens to the padded grid and back. All else
in a model works on single tokens, so that it computes for each branch what it would for that candidate alone.

A model that does not take its attention from there reads the padded grid instead, with a mask like any other. Where
neither will do (recurrent layers, attention by distance in the row), the probe notices (see probe.py).

Shapes: B trees, T positions of the longest, P tokens of all trees, D width, H heads, V vocabulary.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from convai.errors import UserError
from convai.model.cpu_kernels import Dropout, QueryBlock, attend, attend_by_blocks
from convai.model.transformer import PackedTrees, tree_mask

CANDIDATE_TREES = "candidate_trees"
CausalLM = Any  # a PreTrainedModel of transformers, half of whose methods have no annotations
# Tensors that models hand to attention, of which the kernels here need nothing; any other changes what it computes.
_IDLE_TENSORS = ("position_ids", "cache_position")

_Attended = tuple[Tensor, Tensor | None]


class Trees(NamedTuple):
    """Where the tokens of a batch stand, and who sees whom by branch alone."""

    grid_indices: Tensor  # (P,) into the flattened B * T
    positions: Tensor  # (B, T); 0 for padding
    visible: Tensor  # (B, 1, T, T) bool
    blocks: list[QueryBlock]

    @classmethod
    def of(cls, position_ids: Tensor, grid_indices: Tensor, branch_ids: Tensor) -> "Trees":
        """Work it out from what a TreeBatch holds."""
        mask = tree_mask(branch_ids)
        positions = _on_grid(position_ids, grid_indices, branch_ids.shape)
        return cls(grid_indices, positions, mask.visible, list(mask.blocks))


def _on_grid(rows: Tensor, grid_indices: Tensor, shape: torch.Size) -> Tensor:
    """Return (B, T, ...) with rows (P, ...) at `grid_indices` (P,), which rise, and zeros elsewhere."""
    if len(rows) < shape.numel():
        rows = rows.new_zeros(shape.numel(), *rows.shape[1:]).index_copy(0, grid_indices, rows)
    return rows.view(*shape, *rows.shape[1:])


class TreeMask(NamedTuple):
    """What attention gets as its mask. A model that computes with it itself fails, and so is refused."""

    visible: Tensor  # (B, 1, T, T) bool, the model's own rule included
    grid_indices: Tensor
    blocks: list[QueryBlock]


_trees: ContextVar[Trees | None] = ContextVar("trees", default=None)  # of the forward pass that is on


def _mask(*, mask_function: Callable[..., Any] = causal_mask_function, **arguments: Any) -> Any:
    """Return the mask of the trees that are read, or, where there are none, that of transformers' sdpa."""
    trees = _trees.get()
    if trees is None:
        return sdpa_mask(mask_function=mask_function, **arguments)
    zero = trees.positions.new_zeros(1, 1, 1, 1)  # rules about rows of a batch or heads see a single one
    rule = mask_function(zero, zero, trees.positions[:, None, :, None], trees.positions[:, None, None, :])
    return TreeMask(trees.visible & rule, trees.grid_indices, trees.blocks)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: TreeMask | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **arguments: Any,
) -> _Attended:
    """Return attention (1, P, H, D / H) of packed tokens (1, H, P, D / H).

    Without a tree's mask it is that of transformers' sdpa, of any shapes.
    """
    is_plain = not any(isinstance(x, Tensor) for name, x in arguments.items() if name not in _IDLE_TENSORS)
    if not isinstance(attention_mask, TreeMask):
        if is_plain and softcap is None:
            return cast(_Attended, sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **arguments
            ))  # fmt: skip
        return _attend_by_own(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, softcap=softcap, **arguments
        )
    visible, grid_indices, blocks = attention_mask
    shape = visible.shape[::2]  # (B, T)

    def on_grid(x: Tensor) -> Tensor:
        rows = _on_grid(x[0].transpose(0, 1).flatten(1), grid_indices, shape)
        return rows.view(*shape, x.shape[1], x.shape[3]).transpose(1, 2)

    groups = query.shape[1] // key.shape[1]
    query, key, value = map(on_grid, (query, key, value))
    if is_plain:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        drop = Dropout(dropout).train(module.training)
        # In training on a CPU the parts are faster than the fused kernel: by a fifth of an update, with 4 candidates.
        is_fused = query.device.type != "cpu" or not query.requires_grad
        if blocks:
            heads = attend_by_blocks(query, key, value, visible, blocks, drop, scaling, softcap, is_fused)
        else:
            heads = attend(query, key, value, visible, drop, scaling, softcap, is_fused)
        attended = heads.transpose(1, 2)
    else:
        attended, _ = _attend_by_own(
            module, query, key, value, visible, dropout=dropout, scaling=scaling, softcap=softcap, **arguments
        )
    return attended.flatten(0, 1).index_select(0, grid_indices)[None], None


def _attend_by_own(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None, **arguments: Any
) -> _Attended:
    """Return what the model's own plain attention does: sinks, biases and what else only it knows of.

    `visible` is (B, 1, Q, K) bool, or None where each query sees all keys up to itself.
    """
    own: Callable[..., _Attended] = sys.modules[type(module).__module__].eager_attention_forward
    if visible is None:
        n_queries, n_keys = query.shape[2], key.shape[2]
        visible = torch.ones(1, 1, n_queries, n_keys, dtype=torch.bool, device=query.device).tril(n_keys - n_queries)
    arguments = {name: argument for name, argument in arguments.items() if argument is not None}
    return own(module, query, key, value, _added(visible, query.dtype), **arguments)


def _added(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is to be added to scores, so that only what is visible remains."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)


AttentionInterface.register(CANDIDATE_TREES, _attention)
AttentionMaskInterface.register(CANDIDATE_TREES, _mask)


@contextmanager
def _reading(trees: Trees) -> Iterator[None]:
    token = _trees.set(trees)
    try:
        yield
    finally:
        _trees.reset(token)


class Backbone(nn.Module):
    """A causal language model of transformers, between embedded tokens and hidden states or logits."""

    def __init__(self, causal_lm: CausalLM):
        """Raises UserError for a model without an output matrix."""
        super().__init__()
        self.causal_lm = causal_lm
        self.reads_packed = causal_lm._can_set_attn_implementation()
        if self.reads_packed:
            causal_lm.set_attn_implementation(CANDIDATE_TREES)
        # Whatever a model does before its output matrix and after it (norms, scales, caps) is left to itself; only the
        # rows between are chosen here.
        self._takes_number = "logits_to_keep" in inspect.signature(causal_lm.forward).parameters
        self._lm_rows: Tensor | None = None
        self._grid_indices: Tensor | None = None
        self._hidden: Tensor | None = None
        head = causal_lm.get_output_embeddings()
        if head is None:
            raise UserError(f"{type(causal_lm).__name__} has no output matrix that predicts tokens; use another model.")
        head.register_forward_pre_hook(self._choose_rows)

    def replace_head(self, head: nn.Module) -> None:
        """Put another output matrix in the place of the model's."""
        self.causal_lm.set_output_embeddings(head)
        head.register_forward_pre_hook(self._choose_rows)

    def _choose_rows(self, head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._lm_rows is None or self._grid_indices is None:
            return None
        hidden = arguments[0].flatten(0, 1)
        self._hidden = hidden if self.reads_packed else hidden.index_select(0, self._grid_indices)
        return (self._hidden.index_select(0, self._lm_rows)[None],)

    def forward(self, trees: PackedTrees, lm_indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (N, V) at `lm_indices` (N,) into the P tokens, and the hidden states (P, D)."""
        self._lm_rows, self._grid_indices = lm_indices, trees.grid_indices
        try:
            logits = self._read(trees)
            assert self._hidden is not None, "kept where the output matrix was reached"
            return logits, self._hidden
        finally:
            self._lm_rows = self._grid_indices = self._hidden = None

    def _read(self, packed: PackedTrees) -> Tensor:
        """Return the logits of the rows that _choose_rows lets through."""
        input_ids, token_type_ids, position_ids, grid_indices, branch_ids = packed
        trees = Trees.of(position_ids, grid_indices, branch_ids)

        def shaped(ids: Tensor) -> Tensor:
            return ids[None] if self.reads_packed else _on_grid(ids, grid_indices, branch_ids.shape)

        ids = shaped(input_ids)
        if self.reads_packed:
            mask = torch.ones_like(ids)  # without it, steps in positions would be taken for ends of sequences
        else:
            device = ids.device.type
            is_cast = torch.is_autocast_enabled(device)
            mask = _added(trees.visible, torch.get_autocast_dtype(device) if is_cast else self.causal_lm.dtype)
        with _reading(trees):
            logits: Tensor = self.causal_lm(
                **self._embedded(ids, None if token_type_ids is None else shaped(token_type_ids)),
                position_ids=shaped(position_ids),
                attention_mask=mask,
                use_cache=False,
            ).logits
        return logits[0]

    def next_token_logits(
        self, input_ids: Tensor, token_type_ids: Tensor | None, position_ids: Tensor, attention_mask: Tensor, cache: Any
    ) -> Tensor:
        """Return the logits (B, V) of what follows ids (B, Q), the last Q of K positions in attention_mask (B, K)."""
        output = self.causal_lm(
            **self._embedded(input_ids, token_type_ids),
            position_ids=position_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
            **({"logits_to_keep": 1} if self._takes_number else {}),
        )
        return cast(Tensor, output.logits[:, -1])

    def _embedded(self, input_ids: Tensor, token_type_ids: Tensor | None) -> dict[str, Tensor]:
        if token_type_ids is None:
            return {"input_ids": input_ids}
        embed = self.causal_lm.get_input_embeddings()
        return {"inputs_embeds": embed(input_ids) + embed(token_type_ids)}
