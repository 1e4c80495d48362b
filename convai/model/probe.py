"""Does a model compute for a candidate in a tree what it computes for that candidate alone? Asked before it is used.

Of transformers' decoders most do, some fail, and some would be wrong without a word: recurrent layers run over one
candidate into the next, and an attention of its own may not ask the mask. So every type of model is tried on a tiny
copy of its config, with every kind of its layers and windows shorter than the tree, and what came out is remembered by
config and versions; and every checkpoint is tried briefly on its own weights.
"""

import copy
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from convai.errors import UserError
from convai.io.download import cache_folder
from convai.io.files import read_json_object, write_json
from convai.model.backbone import CANDIDATE_TREES, Backbone

PROBE_VERSION = 1
TINY_TOLERANCE = 1e-4  # of the largest logit, in fp32; what is exact shows 1e-6, what is not 1e-1
REAL_TOLERANCE = 1e-3
N_LAYERS = 8  # enough for patterns of layers that a config does not spell out
WINDOW = 16
VOCABULARY = 64
# Sizes of the tiny copy, by the names that configs have for them; a smaller one stays.
_SIZES = {
    "hidden_size": 32, "n_embd": 32, "d_model": 32, "embedding_size": 32, "word_embed_proj_dim": 32,
    "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "intermediate_size": 64,
    "ffn_dim": 64, "n_inner": 64, "ffn_hidden_size": 64, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "head_dim": 8, "global_head_dim": 8, "v_head_dim": 8, "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8, "kv_lora_rank": 16, "q_lora_rank": 16, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_topk": 2, "first_k_dense_replace": 1,
    "sliding_window": WINDOW, "attention_chunk_size": WINDOW, "window_size": WINDOW, "vocab_size": VOCABULARY,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
_HEADS = ("num_attention_heads", "n_head", "num_heads")
_KEY_VALUE_HEADS = ("num_key_value_heads", "n_head_kv", "num_kv_heads")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def check_type(settings: PretrainedConfig) -> None:
    """Raise UserError where a model of these settings would read candidate trees wrongly, or cannot be tried."""
    tiny = tiny_copy(settings)
    content = json.dumps([tiny.to_dict(), version("transformers"), version("torch"), PROBE_VERSION], default=str)
    path = cache_folder() / "probes" / f"{hashlib.sha256(content.encode()).hexdigest()[:24]}.json"
    verdict = read_json_object(path).get("verdict") if path.is_file() else None
    if not isinstance(verdict, str):
        verdict = _verdict(tiny)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"model_type": settings.model_type, "verdict": verdict})
        except OSError:  # then it is found out each time
            pass
    if verdict:
        raise UserError(
            f"model_type {settings.model_type!r} cannot read candidate trees: {verdict}; use another model."
        )


def check_real_weights(backbone: Backbone, where: Path) -> None:
    """Raise UserError where a loaded model's own weights show what the tiny copy did not."""
    difference = largest_difference(backbone, n_context=24, n_candidates=(3, 5))
    if not difference <= REAL_TOLERANCE:
        raise UserError(f"{where}: a candidate in a tree gets other logits than alone (by {difference:.1g} of the "
                        "largest), so nothing that it computes could be trusted; use another model.")  # fmt: skip


def _verdict(tiny: PretrainedConfig) -> str:
    """Return what is wrong with models of these settings, "" where nothing is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = AutoModelForCausalLM.from_config(tiny, dtype=torch.float32)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.dim() > 1:  # of a size that lets every token and position make a difference
                        parameter.normal_(std=0.2)
            difference = largest_difference(Backbone(model.eval()), n_context=40, n_candidates=(5, 9, 3))
        except UserError as error:
            return str(error).rstrip(".")
        except Exception as error:  # whatever the code of a hundred families raises
            reason = next(iter(str(error).strip().splitlines()), "")
            return f"it fails on one ({type(error).__name__}: {reason[:120]})"
    if not difference <= TINY_TOLERANCE:
        return f"a candidate in a tree gets other logits than alone (by {difference:.1g} of the largest)"
    return ""


@torch.no_grad()
def largest_difference(backbone: Backbone, n_context: int, n_candidates: tuple[int, ...]) -> float:
    """Return by how much of the largest logit a candidate in a tree differs from that candidate alone, at most.

    Two trees, the second shorter, are read together; alone, a sequence is read by the model's own plain attention.
    """
    model = backbone.causal_lm
    generator = torch.Generator().manual_seed(0)
    n_rows = model.get_input_embeddings().weight.shape[0]

    def tokens(n: int) -> Tensor:
        return torch.randint(3, n_rows, (n,), generator=generator)

    trees = [(tokens(n), [tokens(length) for length in n_candidates]) for n in (n_context, n_context // 2)]
    device = model.device
    inputs = [tensor.to(device) for tensor in _packed(trees)]
    in_tree, _ = backbone(inputs[0], None, *inputs[1:], torch.arange(len(inputs[0]), device=device))
    alone = []
    model.set_attn_implementation("eager")
    try:
        for context, candidates in trees:
            sequences = [torch.cat([context, candidate])[None].to(device) for candidate in candidates]
            logits = [model(input_ids=ids, use_cache=False).logits[0] for ids in sequences]
            alone += [logits[0][: len(context)], *(row[len(context) :] for row in logits)]
    finally:
        model.set_attn_implementation(CANDIDATE_TREES)
    expected = torch.cat(alone)
    return float((in_tree - expected).abs().max() / expected.abs().max())


def _packed(trees: list[tuple[Tensor, list[Tensor]]]) -> list[Tensor]:
    """Return token ids, positions and grid indices (P,) and branches (B, T) of trees."""
    length = max(len(context) + sum(map(len, candidates)) for context, candidates in trees)
    branch_ids = torch.full((len(trees), length), -1)
    ids, positions, grid = [], [], []
    for row, (context, candidates) in enumerate(trees):
        parts = [context, *candidates]
        ids += parts
        positions += [torch.arange(len(context)), *(len(context) + torch.arange(len(c)) for c in candidates)]
        branches = torch.cat([torch.full((len(part),), branch) for branch, part in enumerate(parts)])
        branch_ids[row, : len(branches)] = branches
        grid.append(row * length + torch.arange(len(branches)))
    return [torch.cat(ids), torch.cat(positions), torch.cat(grid), branch_ids]


def tiny_copy(settings: PretrainedConfig) -> PretrainedConfig:
    """Return settings of the same kind of model, a few layers of small width, windows shorter than a probe's tree."""
    content = copy.deepcopy(settings.to_dict())
    for key in ("architectures", "dtype", "torch_dtype", "_name_or_path", "transformers_version", "auto_map"):
        content.pop(key, None)
    text_key = next((k for k in ("text_config", "decoder_config") if isinstance(content.get(k), dict)), None)
    _shrink(content)
    if text_key:
        _shrink(content[text_key])
    return type(settings).from_dict(content)


def _shrink(content: dict[str, Any]) -> None:
    n_layers = _shrink_layers(content)
    n_heads = next((content[key] for key in _HEADS if isinstance(content.get(key), int)), None)
    n_groups = next((content[key] for key in _KEY_VALUE_HEADS if isinstance(content.get(key), int)), None)
    for key in _HEADS:
        if isinstance(content.get(key), int):
            content[key] = min(content[key], 4)
    for key in _KEY_VALUE_HEADS:
        if isinstance(content.get(key), int) and n_heads:
            content[key] = min(content[key], 4 if n_groups == n_heads else 1 if n_groups == 1 else 2)
    for key, size in _SIZES.items():
        if isinstance(content.get(key), int) and not isinstance(content[key], bool):
            content[key] = min(content[key], size)
    for key in [key for key in content if key.endswith("_token_id")]:
        content[key] = None if content[key] is None else 0
    for key in ("rope_parameters", "rope_scaling"):
        content[key] = _plain_rope(content.get(key))
    for key, value in content.items():  # what is said layer by layer
        if isinstance(value, list) and len(value) > n_layers and key.endswith(("layers", "types", "pattern", "type")):
            content[key] = value[:n_layers]


def _shrink_layers(content: dict[str, Any]) -> int:
    """Cut the layers to the first few, among which is every kind; return their number."""
    n_layers = next((content[key] for key in _LAYERS if isinstance(content.get(key), int)), N_LAYERS)
    wanted = min(n_layers, N_LAYERS)
    for value in content.values():
        if isinstance(value, list) and len(value) == n_layers and all(isinstance(kind, str | int) for kind in value):
            wanted = max(wanted, 1 + max(value.index(kind) for kind in set(value)))
    for key in _LAYERS:
        if isinstance(content.get(key), int):
            content[key] = wanted
    return wanted


def _plain_rope(rope: Any) -> Any:
    """Return rotary settings without what stretches them, whose tables are as wide as the heads were."""
    if not isinstance(rope, dict):
        return rope
    if all(isinstance(value, dict) or value is None for value in rope.values()) and rope:  # by kind of layer
        return {kind: _plain_rope(value) for kind, value in rope.items()}
    kept = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    return {"rope_type": "default", **kept}
