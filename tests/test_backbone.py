"""Decoders of transformers compute for a candidate in a tree what they compute for it alone, by their own attention.

Each comparison must fail where branches see each other: what it says of a family is worth no more than that.
"""

import copy

import pytest
import torch
from conftest import needs, tiny_config
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache

from convai.model import backbone as seam
from convai.model import row_cache
from convai.model.backbone import Backbone
from convai.model.config import ModelConfig
from convai.model.decoder_cache import DecoderCache
from convai.model.double_heads import DoubleHeadsModel, save_gpt
from convai.model.probe import random_model
from convai.model.transformer import PackedTrees, tree_mask

WINDOW = 6
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
GROUPED = {**SIZES, "num_key_value_heads": 2}
LOCAL_AND_FULL = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
NO_DROPOUT = dict.fromkeys(
    ("attention_dropout", "hidden_dropout", "dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0
)
FAMILIES = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
    "gemma2": {**GROUPED, "head_dim": 8, **LOCAL_AND_FULL},  # scores and logits within limits
    "gemma3_text": {**GROUPED, "head_dim": 8, **LOCAL_AND_FULL},
    "mistral": {**GROUPED, "sliding_window": WINDOW},
    "phi3": {**GROUPED, "pad_token_id": 0},
    "gpt_neox": SIZES,
    "smollm3": {**GROUPED, "no_rope_layers": [1, 0], "pad_token_id": 0},
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 16},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 50},
    "gpt_oss": {
        **GROUPED,
        "head_dim": 8,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        **LOCAL_AND_FULL,
    },  # sinks, by its own attention
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "vocab_size": 50},  # on the padded grid
    "falcon": SIZES,  # this too
}
each_family = pytest.mark.parametrize("family", FAMILIES)


def models(family: str, seed: int = 0):
    """The same model twice: behind the seam, and by itself with its own plain attention."""
    settings = CONFIG_MAPPING[family](**{**NO_DROPOUT, **FAMILIES[family]})
    alone = random_model(settings, seed)
    behind = Backbone(copy.deepcopy(alone))
    if behind.reads_packed:
        alone.set_attn_implementation("eager")
    return behind, alone


def make_trees(seed: int = 0) -> list[list[Tensor]]:
    """Two trees, contexts first, of different lengths; longer than the windows."""
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randint(3, 50, (n,), generator=generator) for n in lengths] for lengths in ((11, 5, 9, 1), (7, 4, 4))
    ]


def packed(trees: list[list[Tensor]]) -> dict[str, Tensor]:
    length = max(sum(map(len, parts)) for parts in trees)
    branches = torch.full((len(trees), length), -1)
    positions = []
    for row, parts in enumerate(trees):
        own = torch.cat([torch.full((len(part),), branch) for branch, part in enumerate(parts)])
        branches[row, : len(own)] = own
        starts = [0] + [len(parts[0])] * (len(parts) - 1)
        positions += [start + torch.arange(len(part)) for start, part in zip(starts, parts, strict=True)]
    return {
        "input_ids": torch.cat([part for parts in trees for part in parts]),
        "position_ids": torch.cat(positions),
        "grid_indices": (branches >= 0).flatten().nonzero()[:, 0],
        "branch_ids": branches,
    }


def read_trees(model: Backbone, trees: list[list[Tensor]], types: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The logits (P, V) and hidden states (P, D) of all tokens."""
    batch = packed(trees)
    return model(PackedTrees(**batch, token_type_ids=types), torch.arange(len(batch["input_ids"])))


def read_alone(model, trees: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """The same, each candidate behind its context as a sequence of its own; the context's are those of the first."""
    seen = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0][0]))
    logits, hidden = [], []
    for context, *candidates in trees:
        for number, candidate in enumerate(candidates):
            rows = model(input_ids=torch.cat([context, candidate])[None], use_cache=False).logits[0]
            start = len(context) if number else 0
            logits.append(rows[start:])
            hidden.append(seen.pop()[start:])
    hook.remove()
    return torch.cat(logits), torch.cat(hidden)


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def gradients(model: torch.nn.Module, logits: Tensor, hidden: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator) for x in (logits, hidden)]
    ((logits * weights[0]).sum() + (hidden * weights[1]).sum()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def largest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys() and expected
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    return max(
        float((found[name] - gradient).abs().max()) / max(float(gradient.abs().max()), 1e-3 * scale)
        for name, gradient in expected.items()
    )


def without_branches(branch_ids: Tensor):
    return tree_mask(branch_ids.clamp(max=0))


@each_family
def test_a_candidate_in_a_tree_gets_what_it_gets_alone(family, monkeypatch):
    behind, alone = models(family)
    trees = make_trees()
    with torch.no_grad():
        expected = read_alone(alone, trees)
        for found, wanted in zip(read_trees(behind, trees), expected, strict=True):
            assert difference(found, wanted) < 1e-5
        monkeypatch.setattr(seam, "tree_mask", without_branches)
        for found, wanted in zip(read_trees(behind, trees), expected, strict=True):
            assert difference(found, wanted) > 1e-2


@pytest.mark.parametrize("checkpointed", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("adapted", [False, True], ids=["full", "lora"])
@each_family
def test_gradients_are_those_of_the_candidates_alone(family, adapted, checkpointed, monkeypatch):
    behind, alone = models(family)
    trees = make_trees()
    for model in (behind.causal_lm, alone):
        if adapted:
            add_lora(model)
        model.train()
    if checkpointed:
        behind.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
        if adapted:  # as DecoderModel.keep_less does
            behind.causal_lm.enable_input_require_grads()
        assert any(getattr(module, "gradient_checkpointing", False) for module in behind.causal_lm.modules())
    expected = gradients(alone, *read_alone(alone, trees))
    assert largest(gradients(behind.causal_lm, *read_trees(behind, trees)), expected) < 1e-4
    behind.causal_lm.zero_grad()
    monkeypatch.setattr(seam, "tree_mask", without_branches)
    assert largest(gradients(behind.causal_lm, *read_trees(behind, trees)), expected) > 1e-2


def add_lora(model) -> None:
    needs("peft")
    from convai.model import lora

    lora.add_lora(model, rank=2, alpha=4, dropout=0.0)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:  # they start at zero, where half of their gradients would be, too
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    assert sum(parameter.requires_grad for parameter in model.parameters()) >= 8


@each_family
@pytest.mark.parametrize("cache_type", [DynamicCache, DecoderCache])
def test_generation_with_a_cache_is_a_pass_over_all(family, cache_type, monkeypatch):
    """Padded on the left, in steps of several tokens and of one, to lengths beyond the windows."""
    monkeypatch.setattr(row_cache, "ROOM", 1)  # so that it has to move
    behind, alone = models(family)
    lengths, steps = (17, 10), (9, 14, 15, 16, 17)
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 50, (2, 17), generator=generator)
    mask = torch.arange(17) >= torch.tensor([[17 - length] for length in lengths])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache, start = cache_type(), 0
    with torch.no_grad():
        for end in steps:
            new = slice(start, end)
            found = behind.next_token_logits(ids[:, new], None, positions[:, new], mask[:, :end].long(), cache)
            uncached = behind.next_token_logits(ids[:, :end], None, positions[:, :end], mask[:, :end].long(), None)
            rows = [ids[row, 17 - length : end] for row, length in enumerate(lengths)]
            expected = torch.stack([alone(input_ids=row[None], use_cache=False).logits[0, -1] for row in rows])
            assert difference(found, expected) < 1e-5 and difference(uncached, expected) < 1e-5, end
            start = end


@each_family
def test_generation_after_trees_and_trees_after_generation(family):
    behind, _ = models(family)
    trees = make_trees()
    with torch.no_grad():
        first = read_trees(behind, trees)[0]
        ids = trees[0][0][None]
        arguments = (ids, None, torch.arange(ids.shape[1])[None], torch.ones_like(ids), None)
        logits = behind.next_token_logits(*arguments)
        assert torch.equal(read_trees(behind, trees)[0], first)
        assert torch.equal(behind.next_token_logits(*arguments), logits)


@each_family
def test_only_the_rows_asked_for_get_logits(family):
    behind, _ = models(family)
    trees = make_trees()
    with torch.no_grad():
        logits, hidden = read_trees(behind, trees)
        some = torch.tensor([12, 3, 30])
        few, all_hidden = behind(PackedTrees(**packed(trees), token_type_ids=None), some)
    assert few.shape == (3, 50) and difference(few, logits[some]) < 1e-6
    assert difference(all_hidden, hidden) < 1e-6


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gpt_oss"])  # rounding swaps experts
def test_bf16_is_as_close_in_a_tree_as_alone(family):
    behind, alone = models(family)
    trees = make_trees()
    with torch.no_grad():
        exact, _ = read_alone(alone, trees)
        with torch.autocast("cpu", torch.bfloat16):
            found, expected = read_trees(behind, trees)[0].float(), read_alone(alone, trees)[0].float()
    error, own_error = ((x - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt() for x in (found, expected))
    assert 1e-4 < error < 1.5 * own_error


def test_gpt2_by_either_implementation(tmp_path, monkeypatch):
    torch.manual_seed(0)
    ours = DoubleHeadsModel(ModelConfig.from_dict(tiny_config("gpt2", 50))).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_gpt(ours, tmp_path)
    theirs = Backbone(AutoModelForCausalLM.from_pretrained(tmp_path))
    trees = make_trees()
    batch = packed(trees)
    types = torch.arange(len(batch["input_ids"])) % 2 + 40  # of tokens, whose embeddings are added
    everywhere = torch.arange(len(types))
    expected = ours.read_trees(PackedTrees(**batch, token_type_ids=types), everywhere, everywhere)
    found = read_trees(theirs, trees, types)
    for one, other in zip(found, expected, strict=True):
        assert difference(one, other) < 1e-5
    gradient = gradients(theirs.causal_lm, *found)["transformer.wte.weight"]
    assert difference(gradient, gradients(ours, *expected)["transformer.tokens_embed.weight"]) < 1e-4
    monkeypatch.setattr(seam, "tree_mask", without_branches)
    assert difference(read_trees(theirs, trees, types)[0], expected[0]) > 1e-2
