"""The two heads of TransferTransfo over any backbone, and what the rest of the project knows of a model.

Models read candidate trees (data.inputs.CandidateTree): the context once, then every candidate as a branch that sees
the context and itself. A backbone turns them into next-token logits, and into hidden states that the ranking head
scores candidates by.

Shapes: B examples, T positions of the longest tree, P tokens of all trees (no padding among them), C candidates,
D width, V vocabulary, N gold target tokens.
"""

import math
from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convai.model.cpu_kernels import Dropout
from convai.model.row_cache import CacheOfRows
from convai.model.transformer import PackedTrees


class DialogConfig(Protocol):
    """What the project reads of a model's config.json, whatever the backbone."""

    family: str  # model_type
    vocab_size: int  # rows of the embedding
    n_positions: int
    n_embd: int
    n_layer: int
    initializer_range: float
    summary_first_dropout: float
    history_start: int | None  # position of the first token after the persona; None: wherever the persona ends
    max_history: int | None  # exchanges before the turn to answer that it was trained with; None: unknown
    ranking_is_trained: bool  # whether the ranking head has learned anything
    extra: dict[str, Any]


class MultipleChoiceHead(nn.Module):
    """Scores a candidate by one linear map of its last position's hidden state."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.first_dropout = Dropout(dropout)
        self.summary = nn.Linear(width, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the scores (R,) of hidden states (R, D)."""
        # Always in fp32: with 8 bits candidates would tie by the dozen, and a tie with the gold is no hit.
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = self.first_dropout(hidden.float())
            return F.linear(hidden, self.summary.weight.float(), self.summary.bias.float()).squeeze(-1)

    def draw(self, std: float) -> None:
        """Draw a new head's weights; its bias starts at zero."""
        nn.init.normal_(self.summary.weight, std=std)
        nn.init.zeros_(self.summary.bias)


class DoubleHeadsOutput(NamedTuple):
    lm_logits: Tensor  # (N, V)
    mc_logits: Tensor  # (B, C), -inf where an example has fewer candidates


class DoubleHeads(nn.Module, ABC):
    """A causal language model with a next-utterance head beside its own."""

    config: DialogConfig
    multiple_choice_head: MultipleChoiceHead

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        grid_indices: Tensor,
        branch_ids: Tensor,
        lm_indices: Tensor,
        mc_indices: Tensor,
    ) -> DoubleHeadsOutput:
        """Run a batch of candidate trees (see data.batches.TreeBatch), P tokens together.

        The first four are (P,), branch_ids (B, T); `lm_indices` (N,) and `mc_indices` (B, C) point into the P tokens,
        at those that predict a target token and at each candidate's last one, -1 for a candidate that is not there.
        """
        present = mc_indices >= 0
        trees = PackedTrees(input_ids, token_type_ids, position_ids, grid_indices, branch_ids)
        lm_logits, hidden = self.read_trees(trees, lm_indices, mc_indices.clamp(min=0).flatten())
        scores = self.multiple_choice_head(hidden).view(mc_indices.shape)
        return DoubleHeadsOutput(lm_logits, scores.masked_fill(~present, -math.inf))

    @abstractmethod
    def read_trees(self, trees: PackedTrees, lm_indices: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (N, V) at `lm_indices` and the hidden states (R, D) at `rows` (R,)."""

    @abstractmethod
    def next_token_logits(
        self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor, attention_mask: Tensor, cache: Any = None
    ) -> Tensor:
        """Return the logits (B, V) of what follows ids (B, Q), the last Q of K positions.

        `attention_mask` (B, K) is 0 for padding, which stands on the left; `cache`, of new_cache or one of
        transformers', holds keys and values of the positions before these, and takes in those of these.
        """

    @abstractmethod
    def new_cache(self) -> CacheOfRows:
        """Return an empty cache for next_token_logits, of rows that may come and go."""

    @property
    @abstractmethod
    def device(self) -> torch.device: ...

    @abstractmethod
    def keep_less(self) -> None:
        """In training keep each layer's input only, and compute the rest again (gradient checkpointing)."""

    @abstractmethod
    def compile_layers(self, backend: str = "inductor") -> None:
        """Let torch.compile make one program of each layer."""
