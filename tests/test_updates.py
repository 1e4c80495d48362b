"""Updates: the sampler, micro-batches, and that splitting an update otherwise computes the same."""

import copy
import itertools
from functools import partial

import pytest
import torch
from conftest import make_dialogs, tiny_model
from ignite.engine import Engine

from convai.data.batches import collate_trees
from convai.data.build import build_arrays
from convai.data.held_out import SPLITS
from convai.data.inputs import InputBuilder
from convai.data.store import DialogSplit
from convai.options import TrainingOptions, training_parser
from convai.training.trainer import Trainer, UpdateResult
from convai.training.updates import TreeDataset, UpdateSampler, collate_update, length_sorted_batches
from train import create_evaluator, prepare_parts


@pytest.fixture
def dataset(tokenizer) -> TreeDataset:
    arrays = build_arrays({name: make_dialogs(10) for name in SPLITS}, tokenizer)
    return TreeDataset(DialogSplit(arrays, "train"), InputBuilder(tokenizer, 128), max_history=2, num_candidates=3)


def test_every_epoch_has_every_example_once_in_another_order():
    sampler = UpdateSampler(n_examples=11, update_size=4, seed=1)
    epochs = []
    for epoch in (1, 2, 1):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert [len(update) for update in epochs[0]] == [4, 4, 3]  # the last, incomplete one is used
    assert len(sampler) == 3
    assert sorted(itertools.chain(*epochs[0])) == list(range(11))
    assert epochs[0] != epochs[1]
    assert epochs[0] == epochs[2]
    other_seed = UpdateSampler(n_examples=11, update_size=4, seed=2)
    other_seed.set_epoch(1)
    assert list(other_seed) != epochs[0]


def test_rotations_move_the_persona_and_nothing_else(tokenizer):
    arrays = build_arrays({name: make_dialogs(3) for name in SPLITS}, tokenizer)
    split = DialogSplit(arrays, "train")
    rotated = TreeDataset(split, InputBuilder(tokenizer, 128), max_history=2, num_candidates=2, n_rotations=3)
    assert len(rotated) == 3 * len(split)
    first, second, third = (rotated.example(4 + rotation * len(split)) for rotation in range(3))
    assert second.persona == [first.persona[1], first.persona[0]] and third.persona == first.persona
    assert (second.history, second.candidates) == (first.history, first.candidates)


def test_training_keeps_the_last_candidates_and_validation_all(dataset, tokenizer):
    assert dataset.example(0).candidates == dataset.split[0].candidates[-3:]
    every = TreeDataset(dataset.split, InputBuilder(tokenizer, 128), max_history=2)
    assert every.example(0).candidates == dataset.split[0].candidates


def test_micro_batches_hold_all_examples_sorted_by_length(dataset, tokenizer):
    update = collate_update([dataset[i] for i in range(7)], micro_batch_size=3)
    assert [batch.n_examples for batch in update.micro_batches] == [3, 3, 1]
    lengths = [batch.branch_ids.shape[1] for batch in update.micro_batches]
    assert lengths == sorted(lengths, reverse=True)
    assert update.n_examples == 7
    assert update.n_targets == sum(len(dataset[i].lm_targets) for i in range(7))


def make_trainer(args, parts) -> Trainer:
    return Trainer(parts, lm_coef=args.lm_coef, mc_coef=args.mc_coef, max_norm=args.max_norm, seed=args.seed,
                   device=torch.device("cpu"))  # fmt: skip


def run_updates(model, dataset, micro_batch_size: int, n_updates: int = 3) -> tuple[list[UpdateResult], dict]:
    """Train a copy of the model on 8 examples an update; return each update's output and the weights after."""
    model = copy.deepcopy(model)
    args = training_parser().parse_args(["--lr", "1e-2", "--lm_coef", "2", "--mc_coef", "0.7"])
    parts = prepare_parts(args, model, dataset.inputs.tokenizer, n_updates, "cpu")
    # Biases that no loss depends on (of keys, of scores) have rounding noise for gradients: do not let Adam scale it.
    parts.optimizer.param_groups[0]["eps"] = 1e-2
    trainer = make_trainer(args, parts)
    update = partial(collate_update, micro_batch_size=micro_batch_size)
    trees = [dataset[i] for i in range(20)]
    outputs = [trainer.step(update(trees[start : start + 8]), n) for n, start in enumerate((0, 8, 16), start=1)]
    return outputs, model.state_dict()


def test_splitting_an_update_otherwise_makes_the_same_update(tokenizer, dataset):
    model = tiny_model(tokenizer)
    one_batch, weights = run_updates(model, dataset, 8)
    four_batches, other_weights = run_updates(model, dataset, 2)
    for ours, theirs in zip(one_batch, four_batches, strict=True):
        assert ours.n_examples == theirs.n_examples
        for name in ("loss", "lm_loss", "mc_loss", "grad_norm"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, other_weights[name], atol=1e-5, rtol=1e-4)
    assert one_batch[-1].loss < one_batch[0].loss


def test_gradients_are_clipped_once_over_the_whole_update(tokenizer, dataset):
    model = tiny_model(tokenizer)
    args, seen = TrainingOptions(max_norm=0.5, lr=0.0), []
    parts = prepare_parts(args, model, tokenizer, 1, "cpu")
    parts.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
    )
    trainer = make_trainer(args, parts)
    output = trainer.step(collate_update([dataset[i] for i in range(8)], 2), 1)
    assert output.grad_norm > 0.5
    assert seen == [pytest.approx(0.5, rel=1e-4)]  # one step, and its gradient has exactly that norm


@pytest.mark.parametrize(
    ("warmup", "rates"), [(0, [1, 0.75, 0.5, 0.25, 0]), (1, [1 / 2, 1, 2 / 3, 1 / 3, 0])]
)  # fmt: skip
def test_learning_rate_rises_then_falls_linearly_to_zero(tokenizer, warmup, rates):
    args = training_parser().parse_args(["--lr", "1", "--warmup", str(warmup)])
    _, _, optimizer, scheduler, _ = prepare_parts(args, tiny_model(tokenizer), tokenizer, 4, "cpu")
    seen = [optimizer.param_groups[0]["lr"]]
    for _ in range(4):
        optimizer.step()
        scheduler.step()
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == pytest.approx(rates)


def make_evaluator(model, tokenizer) -> Engine:
    parts = prepare_parts(training_parser().parse_args([]), model, tokenizer, 1, "cpu")
    return create_evaluator(parts, torch.device("cpu"))


def test_validation_figures_by_plain_arithmetic(tokenizer, dataset):
    every = TreeDataset(dataset.split, InputBuilder(tokenizer, 128), max_history=2)
    model = tiny_model(tokenizer, seed=1)
    hits, losses = [], []
    for tree in every:
        output = model(**collate_trees([tree]).model_inputs())
        hits.append(float(output.mc_logits.argmax() == len(tree.mc_indices) - 1))
        losses += (-output.lm_logits.log_softmax(-1)[range(len(tree.lm_targets)), tree.lm_targets]).tolist()
    for batch_size in (1, 3, 20):
        batches = length_sorted_batches(every, batch_size)
        assert sorted(itertools.chain(*batches)) == list(range(20))
        loader = [collate_trees([every[i] for i in batch]) for batch in batches]
        metrics = make_evaluator(model, tokenizer).run(loader).metrics
        assert metrics["hits@1"] == pytest.approx(sum(hits) / 20)
        assert metrics["perplexity"] == pytest.approx(torch.tensor(losses).mean().exp().item(), rel=1e-5)
    assert 0 < sum(hits) < 20


def test_equal_scores_do_not_count_as_hits(tokenizer, dataset):
    model = tiny_model(tokenizer)
    model.multiple_choice_head.summary.weight.data.zero_()
    metrics = make_evaluator(model, tokenizer).run([collate_trees([dataset[0], dataset[1]])]).metrics
    assert metrics["hits@1"] == 0.0
