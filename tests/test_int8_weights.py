"""Lower precision for decoders of transformers: 8-bit weights, judged by what they cost, and bf16."""

import math

import pytest
import torch
from conftest import TEXTS
from decoder_folders import make_decoder

from convai.dialog.agent import Context, DialogAgent
from convai.dialog.example_loss import loss_on_examples
from convai.errors import UserError
from convai.model.int8_weights import MAX_LOSS, Int8WeightLinear
from convai.model.loading import load_model, load_tokenizer
from convai.model.quantization import lower_precision
from convai.options import DecodingSettings


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVAI_CACHE", str(tmp_path / "cache"))
    return make_decoder(tmp_path / "model", std=0.05, hidden_size=64, intermediate_size=128)


def test_a_layer_by_hand():
    layer = Int8WeightLinear(torch.tensor([[127.0, -64.0], [0.5, 0.25]]), torch.tensor([1.0, 0.0]))
    assert layer.integers[:2, :2].tolist() == [[127, -64], [127, 64]]  # 0.25 / (0.5 / 127) is 63.5, rounded to even
    assert layer.scale[:2].tolist() == pytest.approx([1, 0.5 / 127], rel=2**-8)
    assert layer(torch.tensor([[1.0, 2.0]]))[0].tolist() == pytest.approx([0.0, 1.0], abs=0.02)


def test_weights_are_rounded_to_a_scale_of_each_output_and_inputs_are_not(folder):
    torch.manual_seed(0)
    weight = torch.randn(48, 64) * torch.logspace(-3, 3, 48)[:, None]
    x = torch.randn(5, 64)
    x[:, 3] *= 1000  # what 8 bits for the inputs would lose the others by
    layer = Int8WeightLinear(weight)
    rounded = layer.integers[:48].double() * layer.scale[:48, None].double()
    assert ((rounded - weight).abs().amax(1) <= 0.51 / 127 * weight.abs().amax(1)).all()
    expected = x.bfloat16().double() @ rounded.t()
    errors = (layer(x).double() - expected).abs() / (x.bfloat16().double().abs() @ rounded.abs().t())
    assert errors.max() < 2**-8  # a result in bf16


def test_it_replies_and_ranks_nearly_as_in_fp32(folder):
    exact = DialogAgent.load(folder)
    lower = DialogAgent.load(folder, precision="int8")
    kinds = [type(module) for module in lower.model.modules()]
    assert kinds.count(Int8WeightLinear) == 2 * 7 + 1  # of two layers, and the output matrix
    question = (Context([TEXTS[7]], [TEXTS[0]]), exact.tokenizer.encode(TEXTS[1]))
    logits, rounded = (agent.reply_logits([question])[0] for agent in (exact, lower))
    assert 0 < (logits - rounded).abs().max() < 0.05 * logits.abs().max()
    by = [agent.rank_batch([(question[0], TEXTS)], by="likelihood")[0] for agent in (exact, lower)]
    assert by[0] == pytest.approx(by[1], rel=0.01)
    lower.change_settings(no_sample=True, max_length=5)
    assert isinstance(lower.reply(TEXTS[0]), str)


def test_a_model_that_loses_too_much_is_refused(folder):
    tokenizer = load_tokenizer(folder)
    losses = iter([1.0, 1.0 + math.log(1 + MAX_LOSS) + 1e-6])
    with pytest.raises(UserError, match=r"--int8 would raise the perplexity of this llama by 1\.0%, more than 1%"):
        lower_precision(load_model(folder, tokenizer), "int8", lambda model: next(losses))
    losses = iter([1.0, 1.0 + math.log(1 + MAX_LOSS) - 1e-6])
    lower_precision(load_model(folder, tokenizer), "int8", lambda model: next(losses))


def test_the_loss_is_that_of_the_example_worlds_replies(folder):
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, tokenizer)
    before = loss_on_examples(model, tokenizer)
    assert before == pytest.approx(math.log(len(tokenizer)), rel=0.1)  # as of a model that knows nothing
    with torch.no_grad():
        model.causal_lm.model.norm.weight *= 30
    assert loss_on_examples(model, tokenizer) > before + 0.5


def test_bf16_leaves_the_rotary_tables_in_fp32(folder):
    tokenizer = load_tokenizer(folder)
    model = lower_precision(load_model(folder, tokenizer), "bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers() if buffer.is_floating_point()} == {torch.float32}
    agent = DialogAgent(model, tokenizer, [TEXTS[7]], settings=DecodingSettings(no_sample=True, max_length=5))
    assert isinstance(agent.reply(TEXTS[0]), str)
    assert agent.rank_batch([(Context([], [TEXTS[0]]), TEXTS[:3])], by="likelihood")
