"""8-bit weights for decoders of transformers on CPUs: weights alone are rounded, what comes in stays bf16.

These models have inputs a hundred times as large as others in a few places, so that rounding inputs to 8 bits costs
a tenth of the perplexity (Dettmers et al., 2022, arXiv 2208.07339, describe such outliers), while 8-bit weights with a
scale for each output cost a thousandth. So every model is measured before and after on a few dialogs of the example
world, and refused where it loses more than a hundredth.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convai.errors import UserError, argument
from convai.model.decoder import DecoderModel
from convai.model.heads import DoubleHeads

MAX_LOSS = 0.01  # of perplexity
BLOCK = 64  # entries; a multiple of what any CPU takes at once


class Int8WeightLinear(nn.Module):
    """A linear map whose weights are 8-bit integers with a scale for each output; for inference on CPUs."""

    integers: Tensor  # (O, I)
    scale: Tensor  # (O,)
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        """`weight` is (O, I), `bias` (O,)."""
        super().__init__()
        self.n_outputs, self.n_inputs = weight.shape
        # The kernel reads and writes whole vectors, whether the matrix has them or not.
        weight = F.pad(weight, (0, -self.n_inputs % BLOCK, 0, -self.n_outputs % BLOCK))
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        self.register_buffer("scale", scale.to(torch.bfloat16), persistent=False)
        # Divided by the scales as they are kept, so that their own rounding costs nothing.
        integers = (weight / self.scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        self.register_buffer("integers", integers, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., O) of x (..., I)."""
        rows = x.reshape(-1, self.n_inputs).to(torch.bfloat16)
        if n_missing := self.integers.shape[1] - self.n_inputs:
            rows = F.pad(rows, (0, n_missing))
        y = torch._weight_int8pack_mm(rows, self.integers, self.scale)[:, : self.n_outputs].to(x.dtype)
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], self.n_outputs)


def use_int8_weights(model: DoubleHeads, loss_of: Callable[[DoubleHeads], float] | None) -> None:
    """Turn a model's linear layers into 8-bit ones, in place; embedding, norms and the ranking head stay in fp32.

    `loss_of` measures it (mean negative log-probability). Raises UserError where perplexity rises by more than
    MAX_LOSS.
    """
    assert isinstance(model, DecoderModel), type(model)
    assert loss_of is not None, "int8 is not given to a model unmeasured"
    before = loss_of(model)
    causal_lm = model.causal_lm
    head = causal_lm.get_output_embeddings()
    for module in list(causal_lm.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and child is not head:
                setattr(module, name, _int8(child))
    if isinstance(head, nn.Linear):
        model.backbone.replace_head(_int8(head))
    rise = math.expm1(loss_of(model) - before)
    if not rise <= MAX_LOSS:
        raise UserError(f"{argument('int8')} would raise the perplexity of this {model.config.family} by "
                        f"{rise:.1%}, more than {MAX_LOSS:.0%}; give {argument('bf16')}, or neither.")  # fmt: skip


def _int8(linear: nn.Linear) -> Int8WeightLinear:
    bias = None if linear.bias is None else linear.bias.detach()
    return Int8WeightLinear(linear.weight.detach().float(), bias)
