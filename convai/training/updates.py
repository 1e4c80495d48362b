"""Which examples make up an update of the weights, and their micro-batches.

An update is fixed first, by a seeded shuffle; only then are its examples sorted by length and split into micro-batches.
So how an update is split, by batch size, accumulation or ranks, does not change what it computes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.utils.data import Dataset, Sampler

from convai.data.batches import TreeBatch, collate_trees
from convai.data.inputs import CandidateTree, InputBuilder, cut_history
from convai.data.store import N_VALIDATION_DISTRACTORS, DialogSplit, Example


@dataclass(frozen=True)
class RunSize:
    """How much a run computes; a run that goes on must be of the same size."""

    n_updates: int
    n_examples: int  # of an epoch, personas' rotations included
    update_size: int  # examples of an update, on all ranks together

    @property
    def epoch_length(self) -> int:
        """Updates of an epoch, the last of which may be smaller."""
        return -(-self.n_examples // self.update_size)

    @property
    def n_epochs(self) -> int:
        """Epochs that the run begins."""
        return -(-self.n_updates // self.epoch_length)

    def described(self) -> dict[str, int]:
        """Return the sizes by the names that checkpoints and model cards have for them."""
        return {"updates": self.n_updates, "examples": self.n_examples, "update size": self.update_size}


class TreeDataset(Dataset):
    """The candidate trees of a split; for training, each example once per rotation of its persona."""

    def __init__(
        self,
        split: DialogSplit,
        inputs: InputBuilder,
        *,
        max_history: int,
        num_candidates: int | None = None,
        n_rotations: int = 1,
    ):
        """`num_candidates` None keeps all candidates of the data."""
        self.split = split
        self.inputs = inputs
        self.max_history = max_history
        self.num_candidates = num_candidates
        self.n_rotations = n_rotations

    def __len__(self) -> int:
        return len(self.split) * self.n_rotations

    def example(self, index: int) -> Example:
        """Return example `index` as the model sees it: persona rotated, history and candidates chosen."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        n_drawn = N_VALIDATION_DISTRACTORS if self.num_candidates is None else self.num_candidates - 1
        rotation, number = divmod(index, len(self.split))
        persona, history, candidates = self.split.example(number, self.num_candidates, n_drawn)
        # Rotating lets every sentence stand at every distance from the reply, so the order is not learned.
        shift = rotation % max(1, len(persona))
        return Example(persona[shift:] + persona[:shift], list(cut_history(history, self.max_history)), candidates)

    def offers_a_choice(self) -> bool:
        """Whether any example has more than one candidate; where none has, the gold ranks first by definition."""
        return any(len(self.example(index).candidates) > 1 for index in range(len(self)))

    def __getitem__(self, index: int) -> CandidateTree:
        return self.inputs.tree(*self.example(index))


class UpdateSampler(Sampler[list[int]]):
    """Yields the example indices of each update of an epoch; the last may be smaller. Call `set_epoch` before each.

    With several ranks each yields its share of every update. A share that would be empty, as there are fewer examples
    than ranks, is the update's first example instead: see `has_share`.
    """

    def __init__(self, n_examples: int, update_size: int, seed: int, rank: int = 0, n_ranks: int = 1):
        self.n_examples = n_examples
        self.update_size = update_size
        self.seed = seed
        self.rank = rank
        self.n_ranks = n_ranks
        self.epoch = 0
        self.n_done = 0

    def set_epoch(self, epoch: int, n_done: int = 0) -> None:
        """Choose the order: the same seed and epoch always give the same updates. The first `n_done` are left out."""
        self.epoch = epoch
        self.n_done = n_done

    def __len__(self) -> int:
        """Return the number of updates of a whole epoch."""
        return -(-self.n_examples // self.update_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.n_examples, generator=generator)
        updates = [update.tolist() for update in order.split(self.update_size)]
        return (update[self.rank :: self.n_ranks] or update[:1] for update in updates[self.n_done :])

    def has_share(self, number: int) -> bool:
        """Whether this rank's share of update `number` of an epoch counts, or only keeps it in step with the others."""
        return self.rank < min(self.update_size, self.n_examples - number * self.update_size)


class Update(NamedTuple):
    """What one update of the weights is computed from."""

    micro_batches: list[TreeBatch]
    n_examples: int
    n_targets: int  # gold target tokens of all micro-batches: what the language-model loss is averaged over


def collate_update(trees: Sequence[CandidateTree], micro_batch_size: int) -> Update:
    """Split an update's trees into micro-batches of similar length, longest first (memory shows its peak early)."""
    trees = sorted(trees, key=lambda tree: -len(tree.input_ids))
    starts = range(0, len(trees), micro_batch_size)
    micro_batches = [collate_trees(trees[start : start + micro_batch_size]) for start in starts]
    return Update(micro_batches, len(trees), sum(batch.n_targets for batch in micro_batches))


def length_sorted_batches(dataset: TreeDataset, batch_size: int, rank: int = 0, n_ranks: int = 1) -> list[list[int]]:
    """Return this rank's share of all indices, in batches of similar tree length, longest first, for validation.

    Every index is in exactly one rank's share; a rank for which nothing is left has no batches.
    """
    order = sorted(range(len(dataset)), key=lambda index: -len(dataset[index].input_ids))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return batches[rank::n_ranks]
