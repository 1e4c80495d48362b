"""Models made smaller for chat and evaluation: bf16 weights, or int8 weights on CPUs.

A reply's tokens are computed one at a time, and each reads all weights: the fewer bytes they take, the faster it is.

int8 is dynamic quantization: weights are rounded once, to 8 bits with a scale for each output; what comes in is rounded
on the way, with a scale for each token, and products are exact sums of integers. (Vector-wise quantization in Dettmers
et al., 2022, arXiv 2208.07339; without their separate treatment of outliers.) The embedding look-up, LayerNorm and the
multiple-choice head stay in fp32. Other decoders than GPT and GPT-2 keep what comes in (see int8_weights).
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from convai.device import warn_if_bf16_is_slow
from convai.errors import UserError, argument
from convai.model.double_heads import DoubleHeadsModel
from convai.model.heads import DoubleHeads
from convai.model.transformer import Conv1D

PRECISIONS = ("fp32", "bf16", "int8")


def lower_precision(
    model: DoubleHeads, precision: str, loss_of: Callable[[DoubleHeads], float] | None = None
) -> DoubleHeads:
    """Turn a model, in place, into one for inference only; `precision` is one of PRECISIONS.

    `loss_of` is what int8 is judged by, for other decoders than GPT and GPT-2 (see int8_weights). Raises ValueError for
    any other precision, UserError for int8 where device or this build of torch cannot compute with it, or the model
    loses too much by it.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision == "bf16":
        warn_if_bf16_is_slow(model.device)
        _to_bf16(model)
    elif precision == "int8":
        if model.device.type != "cpu":
            raise UserError(f"{argument('int8')} is for CPUs, but the model is on {model.device}; give "
                            f"{argument('device')} cpu, or {argument('bf16')}.")  # fmt: skip
        if isinstance(model, DoubleHeadsModel):
            _quantize(model)
        else:
            from convai.model.int8_weights import use_int8_weights

            use_int8_weights(model, loss_of)
    return model


def _to_bf16(model: DoubleHeads) -> None:
    if isinstance(model, DoubleHeadsModel):
        model.to(torch.bfloat16)
        return
    # Of other decoders the parameters only: their buffers are tables, of rotary angles for one, that need fp32.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)


def _quantize(model: DoubleHeadsModel) -> None:
    for module in list(model.transformer.h.modules()):
        for name, child in module.named_children():
            if isinstance(child, Conv1D):
                setattr(module, name, Int8Linear(child.weight.detach().t(), child.bias.detach()))
    model.lm_head = Int8Linear(model.transformer.tokens_embed.weight.detach())


class Int8Linear(nn.Module):
    """A linear map by 8-bit integers; its weights cannot be saved or trained."""

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        """`weight` is (O, I), `bias` (O,)."""
        super().__init__()
        scale = weight.abs().amax(dim=1).clamp(min=1e-12).double() / 127
        integers = (weight / scale[:, None]).round().to(torch.int8)
        zeros = torch.zeros(len(scale), dtype=torch.long)
        with warnings.catch_warnings():  # torch 2.13 announces another way to make such tensors, but has none yet
            warnings.simplefilter("ignore")
            quantized = torch._make_per_channel_quantized_tensor(integers, scale, zeros, 0)
        try:
            self.packed = torch.ops.quantized.linear_prepack(quantized, None)
        except RuntimeError as error:
            raise UserError(
                f"{argument('int8')} cannot be used here ({str(error).splitlines()[0]}); leave it out."
            ) from error
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., O) of x (..., I)."""
        # The kernel has one scale for all rows: with the largest entry of each at 1 that scale suits them all.
        largest = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12)
        # 7 bits of the inputs, or sums of pairs overflow 16 bits on CPUs without VNNI.
        y = torch.ops.quantized.linear_dynamic(x / largest, self.packed, True)
        return y * largest if self.bias is None else torch.addcmul(self.bias, y, largest)
