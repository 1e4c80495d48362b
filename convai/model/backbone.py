"""The seam to transformers: any of its causal language models, run on packed candidate trees.

transformers' models take their attention, and the mask for it, from two registries. Under the name CANDIDATE_TREES
there are a mask that evaluates the model's own rule (full, sliding, chunked) at positions rather than rows, and lets a
branch see the context and itself; and an attention that takes the packed tokens to the padded grid and back. All else
in a model works on single tokens, so that it computes for each branch what it would for that candidate alone; where it
does not (recurrent layers, attention of its own), the probe notices (see probe.py).

Shapes: B trees, T positions of the longest, P tokens of all trees, D width, H heads, V vocabulary.
"""

import inspect
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
from convai.model.transformer import tree_mask

CANDIDATE_TREES = "candidate_trees"
CausalLM = Any  # a PreTrainedModel of transformers, half of whose methods have no annotations


class Trees(NamedTuple):
    """Where the packed tokens of a batch stand, and who sees whom by branch alone."""

    grid_indices: Tensor  # (P,) into the flattened B * T
    positions: Tensor  # (B, T); 0 for padding
    visible: Tensor  # (B, 1, T, T) bool
    blocks: list[QueryBlock]

    @classmethod
    def of(cls, position_ids: Tensor, grid_indices: Tensor, branch_ids: Tensor) -> "Trees":
        """Work it out from what a TreeBatch holds."""
        mask = tree_mask(branch_ids)
        positions = position_ids.new_zeros(branch_ids.numel()).index_copy(0, grid_indices, position_ids)
        return cls(grid_indices, positions.view(branch_ids.shape), mask.visible, list(mask.blocks))


class TreeMask(NamedTuple):
    """What attention gets as its mask."""

    visible: Tensor  # (B, 1, T, T) bool, the model's own rule included
    grid_indices: Tensor
    blocks: list[QueryBlock]


_trees: ContextVar[Trees | None] = ContextVar("trees", default=None)  # of the forward pass that is on


def _mask(
    *, mask_function: Callable[..., Tensor] = causal_mask_function, use_vmap: bool = False, **arguments: Any
) -> Any:
    """Return the mask of the trees that are read, or, where there are none, that of transformers' sdpa."""
    trees = _trees.get()
    if trees is None:
        return sdpa_mask(mask_function=mask_function, use_vmap=use_vmap, **arguments)
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
) -> tuple[Tensor, None]:
    """Return attention (1, P, H, D / H) of packed tokens (1, H, P, D / H) in a tree's mask; else as transformers has it."""
    drop = Dropout(dropout).train(module.training)
    groups = query.shape[1] // key.shape[1]
    if not isinstance(attention_mask, TreeMask):
        if softcap is None:
            return cast(tuple[Tensor, None], sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **arguments
            ))  # fmt: skip
        n_queries, n_keys = query.shape[2], key.shape[2]
        if attention_mask is None:
            attention_mask = torch.ones(1, 1, n_queries, n_keys, dtype=torch.bool, device=query.device)
            attention_mask = attention_mask.tril(n_keys - n_queries)
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        heads = attend(query, key, value, attention_mask, drop, scaling, softcap)
        return heads.transpose(1, 2), None
    visible, grid_indices, blocks = attention_mask
    batch, _, length, _ = visible.shape

    def on_grid(x: Tensor) -> Tensor:
        rows = x[0].transpose(0, 1).flatten(1)  # (P, H * D / H)
        if len(rows) < batch * length:
            rows = rows.new_zeros(batch * length, rows.shape[1]).index_copy(0, grid_indices, rows)
        return rows.view(batch, length, x.shape[1], x.shape[3]).transpose(1, 2)

    query, key, value = map(on_grid, (query, key, value))
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    # In training on a CPU the parts are faster than the fused kernel: by a fifth of an update, with 4 candidates.
    is_fused = query.device.type != "cpu" or not query.requires_grad
    if blocks:
        heads = attend_by_blocks(query, key, value, visible, blocks, drop, scaling, softcap, is_fused)
    else:
        heads = attend(query, key, value, visible, drop, scaling, softcap, is_fused)
    rows = heads.transpose(1, 2).reshape(batch * length, *heads.shape[1::2])
    return rows.index_select(0, grid_indices)[None], None


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
        """Raises UserError for a model whose attention cannot be replaced."""
        super().__init__()
        name = type(causal_lm).__name__
        if not causal_lm._supports_attention_backend or not causal_lm._can_set_attn_implementation():
            raise UserError(
                f"{name} has an attention of its own, which cannot read candidate trees; use another model."
            )
        self.causal_lm = causal_lm
        causal_lm.set_attn_implementation(CANDIDATE_TREES)
        # Whatever a model does before its output matrix and after it (norms, scales, caps) is left to itself; only the
        # rows between are chosen here.
        self._takes_number = "logits_to_keep" in inspect.signature(causal_lm.forward).parameters
        self._lm_rows: Tensor | None = None
        self._hidden: Tensor | None = None
        if causal_lm.get_output_embeddings() is None:
            raise UserError(f"{name} has no output matrix that predicts tokens; use another model.")
        causal_lm.get_output_embeddings().register_forward_pre_hook(self._choose_rows)

    def replace_head(self, head: nn.Module) -> None:
        """Put another output matrix in the place of the model's."""
        self.causal_lm.set_output_embeddings(head)
        head.register_forward_pre_hook(self._choose_rows)

    def _choose_rows(self, head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._lm_rows is None:
            return None
        self._hidden = arguments[0]
        return (arguments[0].index_select(1, self._lm_rows),)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor | None,
        position_ids: Tensor,
        grid_indices: Tensor,
        branch_ids: Tensor,
        lm_indices: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return the logits (N, V) at `lm_indices` (N,) and the hidden states (P, D) of packed trees.

        The arguments are those of DoubleHeads.forward; `token_type_ids` None: the tokens alone are embedded.
        """
        self._lm_rows = lm_indices
        try:
            with _reading(Trees.of(position_ids, grid_indices, branch_ids)):
                logits: Tensor = self.causal_lm(
                    **self._embedded(input_ids[None], None if token_type_ids is None else token_type_ids[None]),
                    position_ids=position_ids[None],
                    # Without a mask of ones, steps in positions would be taken for ends of sequences.
                    attention_mask=torch.ones_like(input_ids)[None],
                    use_cache=False,
                ).logits
            assert self._hidden is not None, "kept where the output matrix was reached"
            return logits[0], self._hidden[0]
        finally:
            self._lm_rows = self._hidden = None

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
