"""The probe lets through what reads candidate trees exactly, and nothing else; what it found out is remembered."""

import json
import re
import time
from pathlib import Path

import pytest
import torch
import transformers
from conftest import ROOT
from transformers import CONFIG_MAPPING

from bench import backbones
from convai.errors import UserError
from convai.model import backbone as seam
from convai.model import probe
from convai.model.backbone import Backbone
from convai.model.probe import check_real_weights, check_type, random_model, try_out
from convai.model.tiny_config import tiny_copy
from convai.model.transformer import tree_mask

USED = [
    "llama", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "mistral", "mixtral", "phi", "phi3",
    "gpt_neox", "opt", "gpt2", "gptj", "stablelm", "olmo", "olmo2", "smollm3", "granite", "cohere", "cohere2", "falcon",
    "gpt_oss", "gpt_bigcode", "deepseek_v3",
]  # fmt: skip
REFUSED = [
    ("mamba", {}),
    ("jamba", {}),
    ("rwkv", {}),
    ("qwen3_next", {}),
    ("bloom", {}),
    ("falcon", {"alibi": True}),
    ("mpt", {}),
    ("bert", {}),  # sees what follows
    ("lfm2", {"num_hidden_layers": 16, "full_attn_idxs": [2, 5, 8, 10, 12, 14]}),  # convolutions between
    ("gpt_neo", {}),  # its windows are of rows
    ("llama4_text", {}),  # scales queries by rows
    ("t5gemma", {}),  # no causal language model
]
# As published checkpoints have it, where it differs in kind from the default.
PUBLISHED = {
    "llama": {
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "num_hidden_layers": 30,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
        "eos_token_id": [128001, 128008, 128009],
    },
    "qwen2": {"num_hidden_layers": 24, "use_sliding_window": True, "max_window_layers": 21, "sliding_window": 4096},
    "phi": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.4}},
    "phi3": {
        "max_position_embeddings": 131072,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48, "long_factor": [2.0] * 48,
            "original_max_position_embeddings": 4096,
        },
        "sliding_window": 262144,
    },
    "gemma3_text": {"num_hidden_layers": 26, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512},
    "gemma3n_text": {},  # layers that share keys and values
    "smollm3": {"num_hidden_layers": 36, "no_rope_layers": [1, 1, 1, 0] * 9},
    "falcon": {"num_attention_heads": 71, "hidden_size": 4544, "multi_query": True},
    "opt": {"word_embed_proj_dim": 512, "hidden_size": 1024, "do_layer_norm_before": False},
    "granitemoehybrid": {"num_hidden_layers": 28, "layer_types": ["attention"] * 28, "num_local_experts": 0},
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("CONVAI_CACHE", str(tmp_path))
    return tmp_path / "probes"


@pytest.fixture
def built(monkeypatch) -> list[str]:
    """The types of the models that the probe has built."""
    types = []
    build = probe.random_model

    def counted(settings, seed):
        types.append(settings.model_type)
        return build(settings, seed)

    monkeypatch.setattr(probe, "random_model", counted)
    return types


def tiny(family: str, **changes):
    return tiny_copy(CONFIG_MAPPING[family](**changes))


def refusal(family: str, **changes) -> str:
    with pytest.raises(UserError) as error:
        check_type(CONFIG_MAPPING[family](**changes))
    message = str(error.value)
    assert "\n" not in message and len(message) < 300
    assert message.startswith(f"model_type {family!r} cannot read candidate trees: ") and "use another model" in message
    return message


@pytest.mark.parametrize("family", USED)
def test_what_people_use_is_exact(family):
    verdict = try_out(tiny(family), seeds=(3,))
    assert verdict.wrong == "" and 0 < verdict.difference < 1e-5


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_settings_are_let_through(family):
    check_type(CONFIG_MAPPING[family](**PUBLISHED[family]))


@pytest.mark.parametrize(("family", "changes"), REFUSED, ids=[family for family, _ in REFUSED])
def test_what_would_be_wrong_is_refused_in_one_line(family, changes):
    refusal(family, **changes)


def test_the_refusal_says_how_wrong_it_would_be(built):
    assert re.search(r"other logits than alone \(by \d.* of the largest\)", refusal("mamba"))
    assert refusal("bloom").count("ValueError") == 1


@pytest.mark.parametrize("family", ["llama", "gptj"])  # packed, and on the grid
def test_branches_that_see_each_other_are_noticed(family, monkeypatch):
    monkeypatch.setattr(seam, "tree_mask", lambda branch_ids: tree_mask(branch_ids.clamp(max=0)))
    assert "other logits than alone" in try_out(tiny(family)).wrong


def test_positions_that_run_on_are_noticed(monkeypatch):
    read = Backbone._read

    def by_row(self, trees):
        return read(self, trees._replace(position_ids=torch.arange(len(trees.position_ids))))

    monkeypatch.setattr(Backbone, "_read", by_row)
    assert "other logits than alone" in try_out(tiny("llama")).wrong


def test_a_window_that_is_left_out_is_noticed(monkeypatch):
    rule = seam._mask
    monkeypatch.setitem(
        transformers.AttentionMaskInterface._global_mapping,
        seam.CANDIDATE_TREES,
        lambda **arguments: rule(**{**arguments, "mask_function": seam.causal_mask_function}),
    )
    assert "other logits than alone" in try_out(tiny("mistral")).wrong
    assert try_out(tiny("llama")).wrong == ""  # which has none


def test_padding_that_is_seen_is_noticed(monkeypatch):
    step = Backbone.next_token_logits

    def careless(self, ids, types, positions, mask, cache):
        return step(self, ids, types, positions, torch.ones_like(mask), cache)

    monkeypatch.setattr(Backbone, "next_token_logits", careless)
    assert "with a cache" in try_out(tiny("llama")).wrong


def test_a_model_without_attention_proves_nothing(monkeypatch):
    build = probe.random_model

    def deaf(settings, seed):
        model = build(settings, seed)
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.data.zero_()
        return model

    monkeypatch.setattr(probe, "random_model", deaf)
    assert "does not depend on the tokens before" in refusal("llama")


def test_rounding_is_allowed_where_a_model_amplifies_it_and_nowhere_else(monkeypatch):
    verdict = try_out(tiny("gemma3n_text"), seeds=(1,))
    assert verdict.wrong == "" and verdict.difference > probe.TINY_TOLERANCE
    whole = probe.largest_difference
    monkeypatch.setattr(probe, "largest_difference", lambda *arguments: whole(*arguments) + 5e-4)
    assert "other logits than alone" in try_out(tiny("llama")).wrong  # which does not
    monkeypatch.setattr(probe, "largest_difference", lambda *arguments: whole(*arguments) + 6e-3)
    assert "other logits than alone" in try_out(tiny("gemma3n_text"), seeds=(1,)).wrong


def test_verdicts_are_remembered(cache, built):
    settings = CONFIG_MAPPING["llama"](hidden_size=1024)
    check_type(settings)
    first = refusal("qwen3_next")
    assert set(built) == {"llama", "qwen3_next"} and len(list(cache.glob("*.json"))) == 2
    built.clear()
    check_type(settings)
    check_type(CONFIG_MAPPING["llama"](hidden_size=4096))  # the same, made tiny
    assert refusal("qwen3_next") == first and built == []
    check_type(CONFIG_MAPPING["llama"](attention_bias=True))  # not the same
    assert built


def test_remembering_is_fast():
    settings = CONFIG_MAPPING["llama"](num_hidden_layers=32)
    start = time.perf_counter()
    check_type(settings)
    assert time.perf_counter() - start < 5  # 0.2 s on an idle core
    times = []
    for _ in range(10):
        start = time.perf_counter()
        check_type(settings)
        times.append(time.perf_counter() - start)
    assert min(times) < 5e-3


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"{}", b'{"verdict": 1}'])
def test_a_damaged_memory_is_no_trouble(content, cache, built):
    check_type(CONFIG_MAPPING["llama"]())
    (path,) = cache.glob("*.json")
    path.write_bytes(content)
    built.clear()
    check_type(CONFIG_MAPPING["llama"]())
    assert built and json.loads(path.read_text())["verdict"] == ""


def test_a_cache_that_cannot_be_written_is_no_trouble(tmp_path, monkeypatch, built):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CONVAI_CACHE", str(tmp_path / "file"))
    check_type(CONFIG_MAPPING["llama"]())
    n_built = len(built)
    check_type(CONFIG_MAPPING["llama"]())
    assert len(built) == 2 * n_built


@pytest.mark.parametrize("package", ["transformers", "torch"])
def test_other_versions_are_tried_anew(package, built, monkeypatch):
    check_type(CONFIG_MAPPING["llama"]())
    built.clear()
    monkeypatch.setattr(getattr(probe, package), "__version__", "0.1")
    check_type(CONFIG_MAPPING["llama"]())
    assert built


def test_a_failure_is_not_remembered(cache, monkeypatch):
    def fail(settings, seed):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(probe, "random_model", fail)
        assert "a tiny copy of it fails (MemoryError)" in refusal("llama")
    assert not list(cache.glob("*.json"))
    check_type(CONFIG_MAPPING["llama"]())


def test_the_probe_leaves_no_trace(capfd):
    before = torch.get_rng_state()
    verbosity = transformers.logging.get_verbosity()
    check_type(CONFIG_MAPPING["phi3"](**PUBLISHED["phi3"]))
    assert torch.equal(torch.get_rng_state(), before) and transformers.logging.get_verbosity() == verbosity
    assert "".join(capfd.readouterr()).count("tiny") == 0


def test_real_weights_are_tried_as_they_are(tmp_path, monkeypatch):
    model = Backbone(random_model(tiny("qwen3_moe"), 0))
    check_real_weights(model, tmp_path)
    monkeypatch.setattr(seam, "tree_mask", lambda branch_ids: tree_mask(branch_ids.clamp(max=0)))
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))}: a candidate in a tree") as error:
        check_real_weights(model, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", PUBLISHED)
def test_a_tiny_copy_is_of_the_same_kind(family):
    settings = CONFIG_MAPPING[family](**PUBLISHED[family])
    copy = tiny_copy(settings)
    assert sum(p.numel() for p in random_model(copy, 0).parameters()) < 1_000_000
    for key in ("layer_types", "no_rope_layers"):
        kinds = getattr(settings, key, None)
        assert kinds is None or set(getattr(copy, key)) == set(kinds)
    n_tokens = probe.N_CONTEXT // 2 + min(probe.N_CANDIDATES)  # of the shortest sequence
    for key in ("sliding_window", "attention_chunk_size"):
        assert not getattr(settings, key, None) or 1 < getattr(copy, key) < n_tokens
    of_old, of_new = (
        one.num_attention_heads / (getattr(one, "num_key_value_heads", None) or 1) for one in (settings, copy)
    )
    assert (of_old == 1) == (of_new == 1)


def test_settings_stay_as_they_are():
    settings = CONFIG_MAPPING["gemma3_text"]()
    before = settings.to_dict()
    tiny_copy(settings)
    assert settings.to_dict() == before


def test_the_survey_writes_its_table(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{''.join(backbones.MARKS)}after\n")
    backbones.main(["--types", "llama", "mamba", "bloom", "lfm2", "musicgen", "--output", str(page)])
    text = page.read_text()
    assert text.startswith(f"before\n{backbones.MARKS[0]}Of 5 types") and text.endswith(f"{backbones.MARKS[1]}after\n")
    assert "2 are exact, 1\nwould be wrong and 1 fail; of 1 no" in text
    assert re.search(r"\| llama \| exact \| \de-0[67] \|  \|\n\| lfm2 .* `conv` \|\n\| mamba \| refused: wrong ", text)
    assert capsys.readouterr().err.count("\n") == 5
    with pytest.raises(SystemExit):
        backbones.main(["--output", str(tmp_path / "none.md")])
    with pytest.raises(SystemExit):
        backbones.main(["--types", "lama"])
    assert "'lama'" in capsys.readouterr().err


def test_a_type_that_takes_too_long_does_not_end_the_survey():
    (report,) = backbones.try_types(["blt"], limit=0)
    assert report.verdict == "cannot be built" and "0 s" in report.remark


def test_the_documents_table_is_of_this_version():
    page = (ROOT / "docs/backbones.md").read_text()
    assert f"in transformers {transformers.__version__}," in page
    for family in USED:
        assert re.search(rf"^\| {family} \| exact ", page, re.MULTILINE), family
