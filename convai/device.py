"""The device that a script computes on."""

import logging

import torch

from convai.errors import UserError, argument

logger = logging.getLogger(__name__)


def has_fast_bf16(device: torch.device | str) -> bool:
    """Return whether a device multiplies matrices in bf16 by instructions of its own; emulated, it is very slow."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def warn_if_bf16_is_slow(device: torch.device | str) -> None:
    """Log a warning where `has_fast_bf16` is false of the device."""
    if not has_fast_bf16(device):
        logger.warning("this processor has no bf16 instructions: %s will be slow here; leave it out.", argument("bf16"))


def choose_device(name: str) -> torch.device:
    """Return the device of that name, "" for cuda where there is one; UserError where nothing can be computed on it."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.ones(1, device=name).item()  # some devices have tensors without values, others have no tensors at all
        return torch.device(name)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__).split(". ")[0]
        raise UserError(
            f"{argument('device')} {name} cannot be used ({reason}); try {argument('device')} cpu."
        ) from error
