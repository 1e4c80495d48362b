"""In which number format a model is trained: fp32, bf16, or apex's levels O0 to O3 of fp16.

    O0  fp32
    O1  fp32 weights; matrix products in fp16 (autocast), the loss scaled so that its gradients do not vanish
    O2  fp16 weights, but LayerNorm in fp32; the optimizer updates an fp32 master copy; the loss is scaled
    O3  fp16 throughout, without scaling: the fastest, and rarely one that learns well

apex.amp (https://nvidia.github.io/apex/amp.html) does O1 to O3 where a version of apex that still has it is installed;
otherwise torch's own mixed precision gives the same levels. bf16 has fp32's range and needs no scaling.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from convai.device import warn_if_bf16_is_slow
from convai.errors import UserError, argument

Model = TypeVar("Model", bound=nn.Module)
NamedParameter = tuple[str, nn.Parameter]

logger = logging.getLogger(__name__)


class Step(NamedTuple):
    """What became of an update."""

    grad_norm: Tensor  # () of the unscaled gradient, before it was clipped
    was_skipped: bool  # for an overflow of scaled fp16 gradients; the weights stay, the scale falls


class Precision:
    """Owns casting, autocast, loss scaling and the optimizer's step, so that the loop needs no branches.

    One update is: `backward` on each micro-batch's loss, computed within `autocast`, then `step`.
    """

    def __init__(self, level: str = "", bf16: bool = False, device: torch.device | str = "cpu"):
        """`level` is one of apex's, "" for O0, the only one that bf16 goes with; else UserError."""
        self.level = level or "O0"
        if bf16 and self.level != "O0":
            raise UserError(f"{argument('fp16')} {level} and {argument('bf16')} exclude each other; leave one out.")
        if bf16:
            warn_if_bf16_is_slow(device)
        self.device_type = torch.device(device).type
        self.apex_amp = import_apex_amp() if self.level != "O0" else None
        scales = self.level in ("O1", "O2")
        self.autocast_dtype = torch.bfloat16 if bf16 else torch.float16 if scales and not self.apex_amp else None
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=scales and not self.apex_amp)
        self._masters: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}  # O2: name -> (fp16 weight, fp32 master)

    def prepare(
        self, model: Model, make_optimizer: Callable[[list[NamedParameter]], Optimizer]
    ) -> tuple[Model, Optimizer]:
        """Cast the model as the level says; return it and the optimizer of what is to be updated, given by name."""
        trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
        if self.apex_amp:
            optimizer = make_optimizer(trained)
            return self.apex_amp.initialize(model, optimizer, opt_level=self.level, verbosity=0)
        if self.level == "O3":
            model.half()
        if self.level != "O2":
            return model, make_optimizer(trained)
        masters = {name: nn.Parameter(weight.detach().clone()) for name, weight in trained}
        model.half()
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.float()
        self._masters = {name: (weight, masters[name]) for name, weight in trained}
        self._copy_masters()  # what LayerNorm lost on its way through fp16
        return model, make_optimizer(list(masters.items()))

    def autocast(self) -> contextlib.AbstractContextManager:
        """Return the context in which the model computes, in training and in evaluation."""
        if self.autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device_type, self.autocast_dtype)

    def backward(self, loss: Tensor, optimizer: Optimizer) -> None:
        """Add a loss's gradients, scaled where the level scales."""
        if self.apex_amp:
            with self.apex_amp.scale_loss(loss, optimizer) as scaled:
                scaled.backward()
        else:
            self.scaler.scale(loss).backward()

    def step(self, optimizer: Optimizer, max_norm: float) -> Step:
        """Unscale, clip, step, update the scale: in this order. Leaves the gradients empty."""
        for weight, master in self._masters.values():
            if weight.grad is not None:
                master.grad, weight.grad = weight.grad.float(), None
        self.scaler.unscale_(optimizer)
        updated = self.apex_amp.master_params(optimizer) if self.apex_amp else _parameters(optimizer)
        grad_norm = nn.utils.clip_grad_norm_(list(updated), max_norm)
        scale = self._scale()
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad()
        self._copy_masters()
        return Step(grad_norm, was_skipped=self._scale() < scale)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the model's weights as they are to be kept: in fp32, from the master copy where there is one."""
        masters = {name: master.detach() for name, (_, master) in self._masters.items()}
        return {name: masters.get(name, tensor).float() for name, tensor in model.state_dict().items()}

    def state_dict(self) -> dict:
        """Return what a later run needs to go on with the same loss scale."""
        return dict(self.apex_amp.state_dict()) if self.apex_amp else self.scaler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        (self.apex_amp or self.scaler).load_state_dict(state)

    @torch.no_grad()
    def _copy_masters(self) -> None:
        for weight, master in self._masters.values():
            weight.copy_(master)

    def _scale(self) -> float:
        if self.apex_amp:
            return min(value["loss_scale"] for value in self.apex_amp.state_dict().values())
        return self.scaler.get_scale()


def import_apex_amp():
    """Return apex.amp, or None where there is no apex or one without amp (it was removed in 2025)."""
    try:
        from apex import amp

        amp.initialize  # noqa: B018 - the unrelated package of that name has none
    except (ImportError, AttributeError):
        return None
    logger.info("mixed precision by apex.amp")
    return amp


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
