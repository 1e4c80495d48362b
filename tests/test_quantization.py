"""Lower precision for inference: int8 arithmetic by hand and against fp32, what is refused, and scores without ties."""

import logging

import pytest
import torch
import torch.nn.functional as F
from conftest import TEXTS, tiny_model

from convai import device
from convai.dialog.agent import Context, DialogAgent
from convai.errors import UserError
from convai.model.quantization import Int8Linear, lower_precision

QUESTIONS = [(Context([TEXTS[3], TEXTS[6]], TEXTS[: 2 * n + 1]), [*TEXTS[4:], TEXTS[n]]) for n in range(3)]


def relative_error(ours: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Of each row."""
    return (ours - exact).norm(dim=-1) / exact.norm(dim=-1)


def test_int8_linear_by_hand():
    # Scales of the weights are 1 and 2 / 127, of the inputs 3 and 0.5: every number fits its integers.
    linear = Int8Linear(torch.tensor([[127.0, -127.0], [0.0, 2.0]]), torch.tensor([0.0, 10.0]))
    y = linear(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
    torch.testing.assert_close(y, torch.tensor([[381.0, 10.0], [-63.5, 11.0]]), rtol=0.01, atol=0.01)


def test_int8_linear_is_close_for_rows_and_outputs_of_any_size():
    torch.manual_seed(0)
    weight = torch.randn(96, 64) * torch.logspace(-4, 4, 96)[:, None]
    x, bias = torch.randn(2, 5, 64) * torch.logspace(-3, 3, 5)[:, None], torch.randn(96)
    ours, exact = Int8Linear(weight, bias)(x) - bias, F.linear(x, weight)
    assert ours.shape == (2, 5, 96)
    scale = weight.norm(dim=1)
    assert relative_error(ours / scale, exact / scale).max() < 0.03
    assert relative_error(ours, exact).min() > 1e-5  # it is not fp32 after all


def test_int8_linear_of_zeros():
    assert Int8Linear(torch.zeros(4, 3))(torch.zeros(2, 3)).tolist() == [[0.0] * 4] * 2


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_scores_and_next_tokens_stay_close(precision, tokenizer):
    exact = DialogAgent(tiny_model(tokenizer), tokenizer)
    lower = DialogAgent(lower_precision(tiny_model(tokenizer), precision), tokenizer)
    for ours, expected in zip(lower.rank_batch(QUESTIONS), exact.rank_batch(QUESTIONS), strict=True):
        assert ours != expected
        torch.testing.assert_close(torch.tensor(ours), torch.tensor(expected), atol=0.15, rtol=0.05)
    asked = [(context, tokenizer.encode(TEXTS[1])) for context, _ in QUESTIONS]
    for ours, expected in zip(lower.reply_logits(asked), exact.reply_logits(asked), strict=True):
        assert relative_error(ours.float(), expected).max() < 0.1
    lower.reply(TEXTS[0])
    assert len(lower.history) == 2


def test_int8_replaces_every_linear_layer_and_the_head(tokenizer):
    model = lower_precision(tiny_model(tokenizer), "int8")
    assert sum(isinstance(module, Int8Linear) for module in model.modules()) == 4 * 2 + 1
    assert not any(name.endswith(("c_fc.weight", "c_proj.weight", "c_attn.weight")) for name in model.state_dict())


def test_fp32_changes_nothing(tokenizer):
    model = tiny_model(tokenizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert lower_precision(model, "fp32") is model
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_unknown_precision_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, int8, not 'int4'"):
        lower_precision(tiny_model(tokenizer), "int4")


def test_int8_is_refused_on_gpus(tokenizer):
    with pytest.raises(UserError, match="--int8 is for CPUs, but the model is on meta; give --device cpu"):
        lower_precision(tiny_model(tokenizer).to("meta"), "int8")


def test_slow_bf16_is_announced(tokenizer, caplog, monkeypatch):
    monkeypatch.setattr(device, "has_fast_bf16", lambda _: False)
    with caplog.at_level(logging.WARNING):
        lower_precision(tiny_model(tokenizer), "bf16")
    assert "no bf16 instructions" in caplog.text


def test_candidates_are_scored_in_fp32_under_autocast(tokenizer):
    model = tiny_model(tokenizer)
    hidden = 20 + torch.randn(64, 16) / 100  # so near that bf16 cannot tell them apart
    with torch.autocast("cpu", torch.bfloat16):
        scores = model.multiple_choice_head(hidden)
    assert scores.dtype == torch.float32
    assert len(set(scores.tolist())) == 64 > len(set(scores.bfloat16().tolist()))
