"""A tiny copy of any model's settings: every kind of its layers, of small width, windows shorter than a probe's tree.

Families name alike things differently; what is known of a family here is no more than such names.
"""

import copy
import re
from typing import Any

from transformers import PretrainedConfig

N_LAYERS = 8  # enough for patterns of layers that a config does not spell out
N_HEADS = 4
WINDOW = 16
VOCABULARY = 64
# Sizes of the copy, by the names that configs have for them; a smaller one stays.
_SIZES = {
    64: "intermediate_size ffn_dim n_inner ffn_hidden_size vocab_size vocab_size_per_layer_input decoder_ffn_dim "
        "encoder_ffn_dim d_inner dim_ff kv_channels max_seq_len attention_hidden_size mamba_d_ssm",
    32: "hidden_size n_embd d_model embedding_size word_embed_proj_dim input_embedding_size output_embedding_size "
        "state_size lru_width encoder_hidden_size emb_dim dim_model pooler_hidden_size",
    16: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size kv_lora_rank q_lora_rank "
        "qk_head_dim swa_head_dim mamba_d_state attention_head_dim",
    8: "head_dim global_head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim hidden_size_per_layer_input rotary_dim "
       "linear_head_dim linear_key_head_dim linear_value_head_dim index_head_dim d_head d_kv mamba_n_heads "
       "mamba_d_head mamba_headdim",
    4: "num_experts num_local_experts n_routed_experts moe_num_experts linear_num_heads",
    2: "num_experts_per_tok num_experts_per_token moe_topk moe_k n_group num_expert_group zero_expert_num "
       "linear_num_key_heads linear_num_value_heads",
    1: "n_groups first_k_dense_replace topk_group num_dense_layers index_topk_blocks index_local_blocks mamba_n_groups",
}  # fmt: skip
_SIZE_OF = {key: size for size, keys in _SIZES.items() for key in keys.split()}
# What reaches as far as a number of tokens: beyond it another rule holds, which a probe must see.
_REACH = re.compile(r"(window(_size|_len)?|chunk_size|block_size|local_attention|floor(_scale)?|index_topk)$")
_N_HEADS = re.compile(r"((swa_)?num_(attention_)?heads|n_heads?|\w+coder_attention_heads)$")
_N_KEY_VALUE_HEADS = re.compile(r"((swa_)?num_key_value_heads|n_head_kv|num_kv_heads|kv_n_heads)$")
_ROTARY_PART = ("partial_rotary_factor", "rotary_pct")
_IDLE = ("architectures", "dtype", "torch_dtype", "_name_or_path", "transformers_version", "auto_map", "id2label",
         "label2id")  # fmt: skip
_N_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "encoder_layers")


def tiny_copy(settings: PretrainedConfig) -> PretrainedConfig:
    """Return settings of the same kind of model, but tiny."""
    content = copy.deepcopy(settings.to_dict())
    for key in _IDLE:
        content.pop(key, None)
    _shrink(content)
    return type(settings).from_dict(content)


def _shrink(content: dict[str, Any]) -> None:
    _shrink_layers(content)
    for key, value in content.items():
        if isinstance(value, dict):
            if key.startswith("rope"):
                content[key] = _tiny_rope(value)
            elif all(isinstance(name, str) for name in value):
                _shrink(value)
        elif _is_number(value):
            limit = _SIZE_OF.get(key, WINDOW if _REACH.search(key) else None)
            if limit is not None:
                content[key] = min(value, limit)
            elif key.endswith("_token_id"):
                content[key] = 0
        elif key in _ROTARY_PART:
            content[key] = _rotary_part(value)
        elif isinstance(value, list) and key.endswith("_token_id"):
            content[key] = 0
        elif isinstance(value, list) and key in _SIZE_OF and all(map(_is_number, value)):
            content[key] = [min(size, _SIZE_OF[key]) for size in value]
    _shrink_heads(content)


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shrink_heads(content: dict[str, Any]) -> None:
    """Have four heads, and of them as many for keys and values as there were: all, one, or some."""
    heads = [key for key in content if _N_HEADS.match(key) and _is_number(content[key])]
    n_heads = content[heads[0]] if heads else 0
    for key in heads:
        content[key] = min(content[key], N_HEADS) if content[key] != 3 else 2
    for key in content:
        if _N_KEY_VALUE_HEADS.match(key) and _is_number(content[key]) and n_heads:
            n_groups = content[key]
            content[key] = content[heads[0]] if n_groups == n_heads else 1 if n_groups == 1 else 2
    if heads and "expand" in content and "head_dim" in content:  # heads of a state that is wider than the model
        content["head_dim"] = content["expand"] * content["hidden_size"] // content[heads[0]]


def _shrink_layers(content: dict[str, Any]) -> None:
    """Cut the layers to the first few, among which is every kind, and what is said layer by layer with them."""
    n_layers = next((content[key] for key in _N_LAYERS if _is_number(content.get(key))), N_LAYERS)
    wanted = min(n_layers, N_LAYERS)
    by_layer = [key for key, value in content.items() if isinstance(value, list) and len(value) == n_layers]
    for value in map(content.__getitem__, by_layer):
        if all(isinstance(kind, str | int) for kind in value):
            wanted = max(wanted, 1 + max(value.index(kind) for kind in set(value)))
    if any(key.endswith("shared_layers") and value for key, value in content.items()):
        wanted = n_layers  # which layers share with which depends on how many there are
    for key in by_layer:
        content[key] = content[key][:wanted]
    for key in _N_LAYERS:
        if _is_number(content.get(key)):
            content[key] = min(content[key], wanted)
    for key, value in content.items():
        if isinstance(value, dict) and value and all(str(layer).isdecimal() for layer in value):
            content[key] = {layer: rest for layer, rest in value.items() if int(layer) < wanted}
        elif "layers" in key and key not in _N_LAYERS and _is_number(value) and n_layers > wanted:
            content[key] = min(value, -(-value * wanted // n_layers))  # as large a part of them


def _rotary_part(value: Any) -> Any:
    """Return what part of a head is turned: of these narrow ones half, as others would not be even numbers."""
    return 0.5 if isinstance(value, float) and value < 1 else value


def _tiny_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """Return rotary settings without tables that are as wide as the heads were."""
    if any(isinstance(value, dict) for value in rope.values()):  # by kind of layer
        return {kind: _tiny_rope(value) if isinstance(value, dict) else value for kind, value in rope.items()}
    kept = {key: value for key, value in rope.items() if not isinstance(value, list)}
    kept |= {key: _rotary_part(rope[key]) for key in _ROTARY_PART if key in rope}
    if len(kept) < len(rope):
        kept |= {key: "default" for key in ("rope_type", "type") if key in kept}
    return kept
