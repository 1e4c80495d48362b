"""Which examples make up an update of the weights, and their micro-batches.

An update is fixed first, by a seeded shuffle; only then are its examples sorted by length and split into micro-batches.
So how an update is split, by batch size, accumulation or ranks, does not change what it computes.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from convai.data.batches import TreeBatch, collate_trees
from convai.data.inputs import CandidateTree, InputBuilder, cut_history
from convai.data.mixture import AnySplit, Mixture
from convai.data.store import N_VALIDATION_DISTRACTORS, Example

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSize:
    """How much a run computes; a run that goes on must be of the same size."""

    n_updates: int
    n_examples: int  # of an epoch, personas' rotations included
    update_size: int  # examples of an update, on all ranks together
    mixture: str = ""  # what several sources of data are, and their weights

    @property
    def epoch_length(self) -> int:
        """Updates of an epoch, the last of which may be smaller."""
        return -(-self.n_examples // self.update_size)

    @property
    def n_epochs(self) -> int:
        """Epochs that the run begins."""
        return -(-self.n_updates // self.epoch_length)

    def described(self) -> dict[str, int | str]:
        """Return the sizes by the names that checkpoints and model cards have for them."""
        sizes = {"updates": self.n_updates, "examples": self.n_examples, "update size": self.update_size}
        return sizes | ({"sources": self.mixture} if self.mixture else {})


class TreeDataset(Dataset):
    """The candidate trees of a split; for training, each example once per rotation of its persona."""

    def __init__(
        self,
        split: AnySplit,
        inputs: InputBuilder,
        *,
        max_history: int,
        num_candidates: int | None = None,
        n_rotations: int = 1,
        distractors: str = "random",
    ):
        """`num_candidates` None keeps all candidates of the data; `distractors` says how missing ones are drawn."""
        if num_candidates != 1 and (n_alone := split.draw_by(distractors, inputs.tokenizer.decode)):
            logger.info("%s: %d of %d examples are without distractors, which are drawn (%s)", split.name, n_alone,
                        len(split), distractors)  # fmt: skip
        self.split = split
        self.inputs = inputs
        self.max_history = max_history
        self.num_candidates = num_candidates
        self.n_rotations = n_rotations

    def __len__(self) -> int:
        return len(self.split) * self.n_rotations

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the data sets that it is made of; none where it is a single one."""
        return self.split.sources if isinstance(self.split, Mixture) else ()

    @property
    def n_seen(self) -> int:
        """How many examples an epoch of training has: all, or as many as the weights of several data sets make it."""
        n_once = self.split.n_seen if isinstance(self.split, Mixture) else len(self.split)
        return n_once * self.n_rotations

    def seen_in(self, epoch: int, seed: int) -> Tensor:
        """Return the indices (n_seen,) of the examples that an epoch (from 1 on) sees; see Mixture.seen_in."""
        if not isinstance(self.split, Mixture):
            return torch.arange(len(self))
        once = torch.from_numpy(self.split.seen_in(epoch, seed))
        return torch.cat([once + rotation * len(self.split) for rotation in range(self.n_rotations)])

    def source_of(self, index: int) -> int:
        """Return the number of the data set that an example is of."""
        return self.split.source_of(index % len(self.split)) if isinstance(self.split, Mixture) else 0

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
        tree = self.inputs.tree(*self.example(index))
        return tree._replace(source=self.source_of(index)) if self.sources else tree


class MeasuredSource(NamedTuple):
    """One of several data sets, as validation measures it by itself."""

    number: int
    name: str
    offers_a_choice: bool  # whether any of its examples has more than one candidate


def sources_to_measure(valid: TreeDataset) -> list[MeasuredSource]:
    """Return the data sets that have validation examples; none where there is only one data set."""
    offers: dict[int, bool] = {}
    for index in range(len(valid)) if valid.sources else ():
        source = valid.source_of(index)
        offers[source] = offers.get(source, False) or len(valid.example(index).candidates) > 1
    return [MeasuredSource(number, valid.sources[number], choice) for number, choice in sorted(offers.items())]


class UpdateSampler(Sampler[list[int]]):
    """Yields the example indices of each update of an epoch; the last may be smaller. Call `set_epoch` before each.

    With several ranks each yields its share of every update. A share that would be empty, as there are fewer examples
    than ranks, is the update's first example instead: see `has_share`. An epoch has `n_examples`: each one, or those of
    `seen_in(epoch, seed)`, which may be of more.
    """

    def __init__(
        self,
        n_examples: int,
        update_size: int,
        seed: int,
        rank: int = 0,
        n_ranks: int = 1,
        seen_in: Callable[[int, int], Tensor] | None = None,
    ):
        self.n_examples = n_examples
        self.update_size = update_size
        self.seed = seed
        self.rank = rank
        self.n_ranks = n_ranks
        self.seen_in = seen_in
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
        if self.seen_in:
            order = self.seen_in(self.epoch, self.seed)[order]
        updates = map(Tensor.tolist, order.split(self.update_size)[self.n_done :])
        return (update[self.rank :: self.n_ranks] or update[:1] for update in updates)

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

    Every index is in exactly one rank's share; a rank for which nothing is left has no batches. A batch is of one data
    set, where there are several.
    """
    lengths = [len(dataset[index].input_ids) for index in range(len(dataset))]
    order = sorted(range(len(dataset)), key=lambda index: -lengths[index])
    batches = []
    for source in range(max(1, len(dataset.sources))):
        own = [index for index in order if dataset.source_of(index) == source]
        batches += [own[start : start + batch_size] for start in range(0, len(own), batch_size)]
    batches.sort(key=lambda batch: -lengths[batch[0]])
    return batches[rank::n_ranks]
