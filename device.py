"""The device that a script computes on."""

import torch

from errors import UserError


def has_fast_bf16(device: torch.device | str) -> bool:
    """Return whether a device multiplies matrices in bf16 by instructions of its own; emulated, it is very slow."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def choose_device(name: str) -> torch.device:
    """Return the device of that name, "" for cuda where there is one; UserError where it cannot be used."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used ({str(error).splitlines()[0]}); try --device cpu.") from error
