"""fp16 by apex's levels, and bf16: each trains, in the right order, with the right things in fp32."""

import sys
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import pytest
import torch
from conftest import make_dialogs, tiny_model
from test_updates import make_trainer

from convai.data.build import build_arrays
from convai.data.held_out import SPLITS
from convai.data.inputs import InputBuilder
from convai.data.store import DialogSplit
from convai.errors import UserError
from convai.model.tokenization import train_vocabulary
from convai.options import training_parser
from convai.training.precision import Precision
from convai.training.trainer import UpdateResult
from convai.training.updates import TreeDataset, collate_update
from train import prepare_parts

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_vocabulary([str(number) for number in range(300)], "gpt2", 300)


@pytest.fixture(scope="module")
def update(tokenizer):
    arrays = build_arrays({name: make_dialogs(8) for name in SPLITS}, tokenizer)
    dataset = TreeDataset(DialogSplit(arrays, "train"), InputBuilder(tokenizer, 128), max_history=2)
    return collate_update([dataset[i] for i in range(16)], micro_batch_size=8)


def parts_for(tokenizer, *options, device="cpu", std=0.05):
    args = training_parser().parse_args(["--lr", "5e-3", *options])
    model = tiny_model(tokenizer).to(device)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return args, prepare_parts(args, model, tokenizer, 1000, device)


def run_updates(args, parts, update, n: int) -> list[UpdateResult]:
    trainer = make_trainer(args, parts)
    return [trainer.step(update, number) for number in range(1, n + 1)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("options", [["--fp16", "O0"], ["--fp16", "O1"], ["--fp16", "O2"], ["--bf16"]])
def test_mixed_precision_learns_as_fp32_does(tokenizer, update, options, device):
    outputs = run_updates(*parts_for(tokenizer, *options, device=device), update, 15)
    plain = run_updates(*parts_for(tokenizer, device=device), update, 15)
    losses, plain_losses = ([output.loss for output in each if not output.was_skipped] for each in (outputs, plain))
    assert losses[0] == pytest.approx(plain_losses[0], rel=2e-2)
    assert losses[-1] < 0.97 * losses[0]
    assert losses[-1] == pytest.approx(plain_losses[-1], rel=0.15)
    if options[-1] != "O0":
        assert losses != plain_losses  # half precision was used


@pytest.mark.parametrize("device", DEVICES)
def test_pure_fp16_makes_fifty_finite_updates(tokenizer, update, device):
    args, parts = parts_for(tokenizer, "--fp16", "O3", "--lr", "6.25e-5", device=device)
    outputs = run_updates(args, parts, update, 50)
    assert {weight.dtype for weight in parts.model.parameters()} == {torch.float16}
    assert all(torch.tensor([output.loss, output.grad_norm]).isfinite().all() for output in outputs)
    assert outputs[-1].loss < outputs[0].loss


def test_o2_keeps_layer_norm_and_a_master_copy_in_fp32(tokenizer, update):
    args, parts = parts_for(tokenizer, "--fp16", "O2", "--lr", "1e-6")
    dtypes = {name: weight.dtype for name, weight in parts.model.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == {
        name for name in dtypes if ".ln_" in name
    }
    before = {name: weight.clone() for name, weight in parts.precision.weights(parts.model).items()}
    run_updates(args, parts, update, 3)
    after = parts.precision.weights(parts.model)
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    # Updates far below fp16's resolution at this size are kept.
    name = "transformer.h.0.attn.c_attn.weight"
    assert 0 < (after[name] - before[name]).abs().max() < 1e-5
    assert torch.equal(parts.model.state_dict()[name], after[name].half())


def test_the_master_copy_starts_at_full_precision(tokenizer):
    model = tiny_model(tokenizer)
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    precision = Precision("O2")
    precision.prepare(model, torch.optim.AdamW)
    assert all(torch.equal(weights[name], kept) for name, kept in precision.weights(model).items())
    assert torch.equal(model.transformer.h[0].ln_1.weight, weights["transformer.h.0.ln_1.weight"])


@pytest.mark.parametrize("level", ["O1", "O2"])
def test_an_overflow_skips_the_update_and_the_schedule_and_lowers_the_scale(tokenizer, update, level):
    args, parts = parts_for(tokenizer, "--fp16", level)
    parts.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**36)
    before, lr = parts.precision.weights(parts.model), parts.scheduler.get_last_lr()
    before = {name: weight.clone() for name, weight in before.items()}
    (output,) = run_updates(args, parts, update, 1)
    assert output.was_skipped and torch.tensor(output.loss).isfinite()
    assert all(torch.equal(before[name], weight) for name, weight in parts.precision.weights(parts.model).items())
    assert parts.scheduler.get_last_lr() == lr
    assert parts.precision.scaler.get_scale() == 2.0**35
    outputs = run_updates(args, parts, update, 35)  # the scale has come down to where updates succeed
    assert outputs[0].was_skipped and outputs[-1].loss < 0.99 * output.loss


def test_gradients_are_clipped_after_they_were_unscaled(tokenizer, update):
    _, plain = run_updates(*parts_for(tokenizer), update, 2)
    outputs = run_updates(*parts_for(tokenizer, "--fp16", "O1"), update, 2)
    assert outputs[1].grad_norm == pytest.approx(plain.grad_norm, rel=0.1)


def test_the_loss_scale_is_part_of_the_state():
    precision = Precision("O1")
    precision.scaler.scale(torch.ones(1))
    precision.scaler.update(8.0)
    other = Precision("O1")
    other.load_state_dict(precision.state_dict())
    assert other.scaler.get_scale() == 8.0


def test_fp16_and_bf16_exclude_each_other():
    with pytest.raises(UserError, match="--fp16 O1 and --bf16"):
        Precision("O1", bf16=True)
    Precision("O0", bf16=True)


class TestApex:
    """With a stand-in that records what it is asked for: apex itself needs a GPU and its own build."""

    @pytest.fixture
    def calls(self, monkeypatch):
        calls, optimizers = [], []

        def initialize(model, optimizer, **options):
            calls.append(("initialize", options["opt_level"]))
            optimizers.append(optimizer)
            return model, optimizer

        @contextmanager
        def scale_loss(loss, optimizer):
            assert optimizer is optimizers[0]
            calls.append(("scale_loss",))
            yield loss * 4
            for parameter in master_params(optimizer):  # as apex does on leaving
                parameter.grad /= 4

        def master_params(optimizer):
            return (parameter for group in optimizer.param_groups for parameter in group["params"])

        def state_dict():
            return {"loss_scaler0": {"loss_scale": 4.0, "unskipped": 3}}

        amp = SimpleNamespace(
            initialize=initialize, scale_loss=scale_loss, master_params=master_params, state_dict=state_dict,
            load_state_dict=lambda state: calls.append(("load_state_dict", state)),
        )  # fmt: skip
        package = ModuleType("apex")
        package.amp = amp
        monkeypatch.setitem(sys.modules, "apex", package)
        return calls

    @pytest.mark.parametrize("level", ["O1", "O2", "O3"])
    def test_apex_is_used_where_it_is_installed(self, tokenizer, update, calls, level):
        args, parts = parts_for(tokenizer, "--fp16", level)
        assert calls == [("initialize", level)]
        update = update._replace(micro_batches=update.micro_batches[:1], n_examples=8)
        outputs = run_updates(args, parts, update, 2)
        assert calls[1:] == [("scale_loss",)] * 2
        plain = run_updates(*parts_for(tokenizer), update, 2)
        assert [output.loss for output in outputs] == pytest.approx([output.loss for output in plain])
        assert parts.precision.state_dict() == {"loss_scaler0": {"loss_scale": 4.0, "unskipped": 3}}
        parts.precision.load_state_dict({"loss_scaler0": {}})
        assert calls[-1] == ("load_state_dict", {"loss_scaler0": {}})

    def test_fp32_needs_no_apex(self, tokenizer, update, calls):
        run_updates(*parts_for(tokenizer, "--fp16", "O0"), update, 1)
        assert not calls

    def test_the_unrelated_package_of_that_name_is_passed_over(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
        assert Precision("O1").apex_amp is None
