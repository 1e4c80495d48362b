"""Batches of candidate trees: what the model reads, as tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from convai.data.inputs import CandidateTree


@dataclass
class TreeBatch:
    """B candidate trees as tensors: their P tokens one after the other, and where each stands in a padded (B, T) grid.

    Only attention needs the grid; everything else works on the P tokens, so padding costs next to nothing. C candidates
    at most, N target tokens together.
    """

    input_ids: Tensor  # (P,)
    token_type_ids: Tensor  # (P,)
    position_ids: Tensor  # (P,)
    grid_indices: Tensor  # (P,) into the flattened B * T
    branch_ids: Tensor  # (B, T); -1 for padding
    mc_indices: Tensor  # (B, C) into P; gold in the last column, -1 in front where there are fewer
    lm_indices: Tensor  # (N,) into P
    lm_targets: Tensor  # (N,)
    n_cut: int  # examples of which something was left out
    source: int = 0  # which of several data sets the first example is of

    @property
    def n_examples(self) -> int:
        return len(self.branch_ids)

    @property
    def n_targets(self) -> int:
        return len(self.lm_targets)

    def model_inputs(self) -> dict[str, Tensor]:
        """Return the arguments of DoubleHeads.forward."""
        names = (
            "input_ids",
            "token_type_ids",
            "position_ids",
            "grid_indices",
            "branch_ids",
            "lm_indices",
            "mc_indices",
        )
        return {name: getattr(self, name) for name in names}

    def to(self, device: torch.device) -> "TreeBatch":
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "TreeBatch":
        """Called by DataLoader, so that copies to the GPU overlap with its work."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "TreeBatch":
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        mapped = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return TreeBatch(**(values | mapped))


def collate_trees(trees: Sequence[CandidateTree]) -> TreeBatch:
    """Put B candidate trees into one batch."""
    lengths = torch.tensor([len(tree.input_ids) for tree in trees])
    starts = (lengths.cumsum(0) - lengths).tolist()  # of each tree among the P tokens
    is_token = torch.arange(int(lengths.max())) < lengths[:, None]  # (B, T)
    branch_ids = torch.full(is_token.shape, -1)
    branch_ids[is_token] = _joined(trees, "branch_ids")
    mc_indices = torch.full((len(trees), max(len(tree.mc_indices) for tree in trees)), -1)
    for b, (start, tree) in enumerate(zip(starts, trees, strict=True)):
        mc_indices[b, -len(tree.mc_indices) :] = torch.tensor(tree.mc_indices) + start
    return TreeBatch(
        input_ids=_joined(trees, "input_ids"),
        token_type_ids=_joined(trees, "token_type_ids"),
        position_ids=_joined(trees, "position_ids"),
        grid_indices=is_token.flatten().nonzero().squeeze(1),
        branch_ids=branch_ids,
        mc_indices=mc_indices,
        lm_indices=torch.tensor(
            [start + row for start, tree in zip(starts, trees, strict=True) for row in tree.lm_indices]
        ),
        lm_targets=_joined(trees, "lm_targets"),
        n_cut=sum(tree.was_cut for tree in trees),
        source=trees[0].source,
    )


def _joined(trees: Sequence[CandidateTree], name: str) -> Tensor:
    return torch.tensor([value for tree in trees for value in getattr(tree, name)])
