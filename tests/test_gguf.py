"""Checkpoints in one .gguf file: a tiny one is written here in full precision, and must compute what it is made of."""

import json
import logging
from pathlib import Path

import pytest
import torch
from conftest import needs
from decoder_folders import make_decoder
from transformers import AutoModelForCausalLM, AutoTokenizer

from convai.errors import UserError
from convai.io import gguf as own
from convai.io.pretrained import locate_checkpoint
from convai.model.loading import load_model, load_tokenizer

gguf = needs("gguf")

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def interleaved(weight: torch.Tensor, n_heads: int) -> torch.Tensor:
    """llama.cpp's order of rows, which pairs rotary dimensions that stand next to each other."""
    halves = weight.view(n_heads, 2, weight.shape[0] // n_heads // 2, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def write_gguf(folder: Path, path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    backend = AutoTokenizer.from_pretrained(folder)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(backend))
    content = json.loads(backend.backend_tokenizer.to_str())
    tokens = sorted(backend.get_vocab(), key=backend.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in backend.all_special_tokens else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in content["model"]["merges"]])
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_chat_template(backend.chat_template)
    for name, tensor in model.state_dict().items():
        weight = tensor.float()
        if "q_proj" in name or "k_proj" in name:
            weight = interleaved(weight, config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"])
        theirs = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}.get(name)
        if name.startswith("model.layers."):
            layer, _, rest = name.removeprefix("model.layers.").partition(".")
            theirs = f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"
        writer.add_tensor(theirs or "output.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CONVAI_CACHE", str(tmp_path / "cache"))
    make_decoder(tmp_path / "source", tie_word_embeddings=False)
    write_gguf(tmp_path / "source", tmp_path / "tiny.gguf")
    return tmp_path / "tiny.gguf"


def test_it_computes_what_the_folder_does_that_it_was_made_of(file, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = locate_checkpoint(file)
    assert f"unpacking {file}" in caplog.text
    tokenizer = load_tokenizer(folder)
    assert tokenizer.layout == "chat"
    assert tokenizer.encode("hello ! <|im_end|>") == load_tokenizer(tmp_path / "source").encode("hello ! <|im_end|>")
    ids = torch.arange(5, 25)[None]
    ours = load_model(folder, tokenizer).causal_lm(ids).logits
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype=torch.float32)(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_it_is_unpacked_once(file, monkeypatch):
    first = locate_checkpoint(file)
    monkeypatch.setattr(own, "_unpack", lambda *_: pytest.fail("unpacked twice"))
    assert locate_checkpoint(file.rename(file.with_name("moved.gguf"))) == first


def test_a_damaged_file_is_one_line(file, tmp_path):
    (tmp_path / "half.gguf").write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"half.gguf cannot be read \([^\n]*\); fetch it again") as error:
        locate_checkpoint(tmp_path / "half.gguf")
    assert "\n" not in str(error.value)


def test_without_the_package_it_says_how_to_get_it(file, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-gguf\.txt"):
        locate_checkpoint(file)
