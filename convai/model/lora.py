"""Low-rank adapters (Hu et al., 2021, arXiv 2106.09685) by peft: in training, in checkpoints, and merged.

An adapter is kept as peft keeps it (adapter_config.json, adapter_model.safetensors), beside a record of the base model
that it belongs to, with a hash of its weights. The names of its tensors are those of the model that holds it.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from convai.errors import UserError, argument
from convai.io.files import read_json_object, write_json
from convai.io.pretrained import ADAPTER_FILE
from convai.model.backbone import CausalLM

ADAPTER_CONFIG, BASE_FILE = "adapter_config.json", "base.json"
_ADAPTER = "default"
_PEFT_PREFIX = "base_model.model."
_BASE_LAYER = ".base_layer."


def add_lora(causal_lm: CausalLM, rank: int, alpha: float, dropout: float) -> None:
    """Freeze a model and give all of its linear layers adapters of this rank, scaled by `alpha` / `rank`."""
    from peft import LoraConfig

    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type] # any number does
        lora_dropout=dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    _inject(causal_lm, config)


def _inject(causal_lm: CausalLM, config: Any) -> None:
    from peft import inject_adapter_in_model

    causal_lm.requires_grad_(False)
    inject_adapter_in_model(config, causal_lm, adapter_name=_ADAPTER)
    causal_lm.lora_config = config
    for name, parameter in causal_lm.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def train_rows(causal_lm: CausalLM, new_ids: Sequence[int]) -> None:
    """Let these rows of embedding and output matrix be trained, and no others, whose gradients stay zero."""
    if not new_ids:
        return
    matrices = (causal_lm.get_input_embeddings().weight, causal_lm.get_output_embeddings().weight)
    for weight in {id(weight): weight for weight in matrices}.values():
        is_new = torch.zeros(len(weight), 1)
        is_new[list(new_ids)] = 1
        weight.requires_grad_(True)
        weight.register_hook(lambda gradient, is_new=is_new: gradient * is_new.to(gradient))


def merge_lora(causal_lm: CausalLM) -> None:
    """Add the adapters to what they adapt, in place, and let all weights be trained again."""
    for name, layer in list(causal_lm.named_modules()):
        if hasattr(layer, "get_delta_weight") and hasattr(layer, "base_layer"):
            layer.merge()
            parent, _, own_name = name.rpartition(".")
            setattr(causal_lm.get_submodule(parent), own_name, layer.get_base_layer())
    causal_lm.requires_grad_(True)


@torch.no_grad()
def merged_weights(causal_lm: CausalLM, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `weights` of a model under the names that it has without adapters, these added to what they adapt."""
    merged = {}
    for name, tensor in weights.items():
        if ".lora_" in name:
            continue
        if _BASE_LAYER in name:
            layer, _, kind = name.partition(_BASE_LAYER)
            name = f"{layer}.{kind}"
            if kind == "weight":
                tensor = tensor + causal_lm.get_submodule(layer).get_delta_weight(_ADAPTER).to(tensor)
        merged[name] = tensor
    return merged


def save_adapter(causal_lm: CausalLM, weights: dict[str, Tensor], folder: Path, base: dict[str, Any]) -> None:
    """Write a model's adapter and what it belongs to. Raises OSError."""
    own = {_PEFT_PREFIX + name.replace(f".{_ADAPTER}.", "."): t for name, t in weights.items() if ".lora_" in name}
    causal_lm.lora_config.save_pretrained(str(folder))
    save_file({name: tensor.contiguous() for name, tensor in own.items()}, folder / ADAPTER_FILE, {"format": "pt"})
    write_json(folder / BASE_FILE, base)


def load_adapter(causal_lm: CausalLM, folder: Path) -> None:
    """Give a base model the adapter in a checkpoint folder; UserError where it is damaged or of another model."""
    from peft import LoraConfig

    try:
        _inject(causal_lm, LoraConfig.from_pretrained(str(folder)))
        stored = load_file(folder / ADAPTER_FILE)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder}: its adapter cannot be read ({error}); use another checkpoint.") from error
    own = {name for name, _ in causal_lm.named_parameters() if ".lora_" in name}
    names = {_PEFT_PREFIX + name.replace(f".{_ADAPTER}.", "."): name for name in own}
    if names.keys() != stored.keys():
        raise UserError(f"{folder}: its adapter is not of this base model.")
    causal_lm.load_state_dict({names[name]: tensor for name, tensor in stored.items()}, strict=False)


def read_base(folder: Path) -> dict[str, Any]:
    """Return the record of a checkpoint's base model; UserError where it is malformed."""
    record = read_json_object(folder / BASE_FILE)
    if not all(isinstance(record.get(key), str) for key in ("model_checkpoint", "sha256")):
        raise UserError(f"{folder / BASE_FILE} does not name a base model and its hash; use another checkpoint.")
    return record


def check_base(record: dict[str, Any], base: Path, folder: Path) -> None:
    """Raise UserError where the weights in `base` are not those that the adapter in `folder` was trained on."""
    if weights_hash(base) != record["sha256"]:
        raise UserError(f"{folder}: its adapter was trained on other weights than those in {base} now; give the same "
                        f"base model, or use the merged model in the run folder with "
                        f"{argument('model_checkpoint')}.")  # fmt: skip


def weights_hash(folder: Path) -> str:
    """Return a SHA-256 over all files of weights in a folder, by name."""
    total = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        total.update(path.name.encode())
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
