"""Checkpoints as other programs wrote them: names, ties, parts, wrappers, precisions; what is missing is never hidden.

Each is compared with our own checkpoint of the same weights, whose figures those of transformers are tested to be.
"""

import json
import logging
import re

import pytest
import torch
from conftest import TEXTS, tiny_config
from safetensors.torch import load_file, save_file

from convai.dialog.agent import Context, DialogAgent
from convai.dialog.decoding import DecodingSettings
from convai.errors import NoFigure, UserError
from convai.model.loading import load_model, load_tokenizer, save_model
from convai.model.tokenization import SPECIAL_TOKENS

QUESTION = (Context([TEXTS[7], TEXTS[6]], [TEXTS[0]]), [TEXTS[1], TEXTS[3], TEXTS[5]])
WTE = {"openai-gpt": "transformer.tokens_embed.weight", "gpt2": "transformer.wte.weight"}


def figures_of(folder, **options) -> tuple[list[float], str]:
    """Scores of three candidates and a greedy reply: ranking head, language model and dialog tokens all matter."""
    agent = DialogAgent.load(folder, device="cpu", settings=DecodingSettings(no_sample=True), **options)
    return agent.rank_batch([QUESTION])[0], agent.reply_batch([QUESTION[0]])[0]


@pytest.fixture
def weights(checkpoint, expected) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors under their published names; the folder then holds none."""
    loaded = {name: tensor.clone() for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    (checkpoint / "model.safetensors").unlink()
    return loaded


@pytest.fixture
def expected(checkpoint) -> tuple[list[float], str]:
    scores, reply = figures_of(checkpoint)
    assert max(scores) - min(scores) > 1e-2  # scores that are all alike would agree with anything
    return scores, reply


def assert_same_figures(folder, expected, **options):
    scores, reply = figures_of(folder, **options)
    assert scores == pytest.approx(expected[0], abs=1e-5)
    assert reply == expected[1]


def test_ranking_head_and_output_matrix_of_pytorch_pretrained_bert(checkpoint, expected, weights, tokenizer):
    old = {name.replace("head.summary", "head.linear"): tensor for name, tensor in weights.items()}
    old["lm_head.decoder.weight"] = weights[WTE[tokenizer.family]].clone()
    old["transformer.h.0.attn.bias"] = torch.ones(1, 1, 128, 128).tril()
    torch.save(old, checkpoint / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    config = json.loads((checkpoint / "config.json").read_text())
    kept = {key: config[key] for key in ("n_positions", "n_embd", "n_layer", "n_head", "layer_norm_epsilon")}
    own = {"afn": "gelu"} if tokenizer.family == "openai-gpt" else {}
    (checkpoint / "config.json").write_text(json.dumps(kept | own | {"n_special": 5, "vocab_size": tokenizer.n_vocab}))
    for name in ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"):
        (checkpoint / name).unlink()
    (checkpoint / "special_tokens.txt").write_text("\n".join(SPECIAL_TOKENS) + "\n")
    assert_same_figures(checkpoint, expected)
    (checkpoint / "special_tokens.txt").unlink()  # n_special alone: the published script's tokens, in its order
    assert_same_figures(checkpoint, expected)


@pytest.mark.parametrize("stored", ["output alone", "embedding alone", "both"])
def test_the_tied_matrix_under_either_name(checkpoint, expected, weights, tokenizer, stored):
    embedding = weights.pop(WTE[tokenizer.family])
    if stored != "output alone":
        weights[WTE[tokenizer.family]] = embedding
    if stored != "embedding alone":
        weights["lm_head.weight"] = embedding.clone()
    save_file(weights, checkpoint / "model.safetensors")
    assert_same_figures(checkpoint, expected)


def test_what_transformers_saves_of_a_run(checkpoint, expected):
    from transformers import AutoTokenizer, GPT2DoubleHeadsModel, OpenAIGPTDoubleHeadsModel

    family = json.loads((checkpoint / "config.json").read_text())["model_type"]
    model_class = GPT2DoubleHeadsModel if family == "gpt2" else OpenAIGPTDoubleHeadsModel
    again = checkpoint.parent / "again"
    model_class.from_pretrained(checkpoint).save_pretrained(again)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(again)
    assert_same_figures(again, expected)


@pytest.mark.parametrize("change, wanted", [
    (lambda weights, config, wte: weights.update({"lm_head.weight": weights[wte] + 1}),
     "its output matrix (lm_head.weight) is not its embedding"),
    (lambda weights, config, wte: config.update(tie_word_embeddings=False), "the weights hold no lm_head.weight"),
    (lambda weights, config, wte: weights.pop(wte), "hold no token embedding"),
    (lambda weights, config, wte: weights.update({"module.lm_head.weight": weights[wte], "lm_head.weight": weights[wte]
                                                  + 1}), "two different tensors are stored as lm_head.weight"),
    (lambda weights, config, wte: weights.pop("multiple_choice_head.summary.bias"),
     "1 weights that config.json calls for are missing (multiple_choice_head.summary.bias"),
    (lambda weights, config, wte: config.update(summary_activation="tanh"), "summary_activation 'tanh'"),
    (lambda weights, config, wte: config.update(add_cross_attention=True), "cross-attention is not supported"),
])  # fmt: skip
def test_weights_that_would_compute_something_else_are_refused(checkpoint, weights, tokenizer, change, wanted):
    config = json.loads((checkpoint / "config.json").read_text())
    change(weights, config, WTE[tokenizer.family])
    torch.save(weights, checkpoint / "pytorch_model.bin")
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=re.escape(wanted)):
        figures_of(checkpoint)


def test_an_output_matrix_of_its_own_that_equals_the_embedding(checkpoint, expected, weights, tokenizer):
    weights["lm_head.weight"] = weights[WTE[tokenizer.family]].clone()
    torch.save(weights, checkpoint / "pytorch_model.bin")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    assert_same_figures(checkpoint, expected)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "_fsdp_wrapped_module."])
def test_prefixes_of_a_wrapped_model(checkpoint, expected, weights, prefix):
    torch.save({prefix + name: tensor for name, tensor in weights.items()}, checkpoint / "pytorch_model.bin")
    assert_same_figures(checkpoint, expected)


def test_layers_that_were_compiled_one_by_one(checkpoint, expected, weights):
    renamed = {name.replace(".h.0.", ".h.0._orig_mod."): tensor for name, tensor in weights.items()}
    torch.save(renamed, checkpoint / "pytorch_model.bin")
    assert_same_figures(checkpoint, expected)


def test_openai_s_own_endings(checkpoint, expected, weights):
    ends = {"ln_1.weight": "ln_1.g", "ln_1.bias": "ln_1.b", "c_attn.weight": "c_attn.w"}
    for old, new in ends.items():
        weights = {
            name.removesuffix(old) + new if name.endswith(old) else name: tensor for name, tensor in weights.items()
        }
    torch.save(weights, checkpoint / "pytorch_model.bin")
    assert_same_figures(checkpoint, expected)


def write_parts(folder, weights, name="model.safetensors") -> list[str]:
    names = sorted(weights)
    stem, kind = name.split(".")
    files = [f"{stem}-0000{n}-of-00002.{kind}" for n in (1, 2)]
    for file, part in zip(files, (names[::2], names[1::2]), strict=True):
        tensors = {key: weights[key] for key in part}
        save_file(tensors, folder / file) if kind == "safetensors" else torch.save(tensors, folder / file)
    weight_map = {key: files[n % 2] for n, key in enumerate(names)}
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return files


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_in_several_files(checkpoint, expected, weights, name):
    files = write_parts(checkpoint, weights, name)
    assert_same_figures(checkpoint, expected)
    (checkpoint / files[1]).unlink()
    with pytest.raises(UserError, match=rf"index.json names {files[1]}, which is not in that folder"):
        figures_of(checkpoint)


def test_an_index_that_names_a_file_elsewhere_or_tensors_that_are_not_there(checkpoint, weights):
    files = write_parts(checkpoint, weights)
    index = checkpoint / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({"weight_map": {"a": f"../{checkpoint.name}/{files[0]}"}}))
    with pytest.raises(UserError, match="which is not in that folder"):
        figures_of(checkpoint)
    index.write_text(json.dumps({"weight_map": content["weight_map"] | {"more": files[0]}}))
    with pytest.raises(UserError, match=r"names 1 tensors that its files lack \(more"):
        figures_of(checkpoint)
    index.write_text("{}")
    with pytest.raises(UserError, match="has no weight_map"):
        figures_of(checkpoint)


def test_the_published_script_s_newest_checkpoint(checkpoint, expected, weights):
    torch.save({name: tensor + 1 for name, tensor in weights.items()}, checkpoint / "checkpoint_mymodel_9.pth")
    torch.save(weights, checkpoint / "checkpoint_mymodel_10.pth")
    assert_same_figures(checkpoint, expected)
    torch.save({"mymodel": weights}, checkpoint / "checkpoint_mymodel_11.pth")
    assert_same_figures(checkpoint, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision(checkpoint, weights, tokenizer, dtype):
    halves = {name: tensor.to(dtype) for name, tensor in weights.items()}
    save_file({name: tensor.float() for name, tensor in halves.items()}, checkpoint / "model.safetensors")
    rounded = figures_of(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    save_file(halves, checkpoint / "model.safetensors")
    assert_same_figures(checkpoint, rounded)
    assert load_model(checkpoint, tokenizer).transformer.tokens_embed.weight.dtype == torch.float32


def test_rows_that_pad_the_embedding_are_kept_and_never_said(checkpoint, weights, tokenizer, expected):
    wte = WTE[tokenizer.family]
    loud = weights[wte].mean(0, keepdim=True) * 0 + 9  # would win every softmax, were it a token
    weights[wte] = torch.cat([weights[wte], loud.expand(11, -1)])
    save_file(weights, checkpoint / "model.safetensors")
    assert figures_of(checkpoint)[0] == pytest.approx(expected[0], abs=1e-5)
    model = load_model(checkpoint, tokenizer)
    assert model.config.vocab_size == len(tokenizer) + 11
    agent = DialogAgent(model, tokenizer, settings=DecodingSettings(no_sample=True, max_length=5))
    assert "<unk>" not in agent.reply("hello")


def test_tensors_without_a_place_are_named(checkpoint, weights, caplog):
    torch.save(weights | {"v_head.weight": torch.ones(1, 16)}, checkpoint / "pytorch_model.bin")
    with caplog.at_level(logging.WARNING):
        figures_of(checkpoint)
    assert '1 tensors are not used, as the model has no place for them: "v_head.weight"' in caplog.text


def test_a_feed_forward_layer_of_another_width(tmp_path, examples_batch):
    from transformers import GPT2Config, GPT2DoubleHeadsModel

    from bench import reference

    tokenizer, batch, padded = examples_batch
    config = GPT2Config(**tiny_config("gpt2", len(tokenizer)), n_inner=24)
    torch.manual_seed(3)
    GPT2DoubleHeadsModel(config).save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    ours = load_model(tmp_path, load_tokenizer(tmp_path)).eval()(**batch.model_inputs())
    theirs = reference.score_candidates(reference.load_reference_model(tmp_path), padded)
    torch.testing.assert_close(ours.mc_logits, theirs[1], atol=1e-4, rtol=1e-4)


@pytest.fixture
def examples_batch():
    from bench import reference
    from convai.data.batches import collate_trees
    from convai.data.inputs import InputBuilder
    from convai.data.store import Example
    from convai.model.tokenization import train_vocabulary

    tokenizer = train_vocabulary(TEXTS, "gpt2", 300)
    ids = [tokenizer.encode(text) for text in TEXTS]
    example = Example([ids[7]], [ids[0]], [ids[3], ids[1]])
    batch = collate_trees([InputBuilder(tokenizer, 128).tree(*example)])
    return tokenizer, batch, reference.pad_candidates([example], tokenizer)


# What was never trained


def without_head(folder):
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor.clone() for name, tensor in weights.items() if not name.startswith("multiple_choice")}
    (folder / "model.safetensors").unlink()
    save_file(kept, folder / "model.safetensors")


def test_scores_of_an_untrained_head_are_refused_and_its_draw_is_seeded(checkpoint, tokenizer):
    without_head(checkpoint)
    models = []
    for _ in range(2):
        torch.rand(1)  # whatever was drawn before
        models.append(load_model(checkpoint, tokenizer))
    heads = [model.multiple_choice_head.summary.weight for model in models]
    assert torch.equal(*heads)
    other = load_model(checkpoint, tokenizer, seed=1).multiple_choice_head.summary.weight
    assert not torch.equal(heads[0], other)
    agent = DialogAgent(models[0], tokenizer)
    with pytest.raises(NoFigure, match="ranking head has never been trained"):
        agent.rank_batch([QUESTION])
    assert isinstance(agent.reply("hello"), str)  # what needs no head works


def test_an_untrained_head_stays_untrained_through_saving(checkpoint, tokenizer, tmp_path):
    without_head(checkpoint)
    save_model(load_model(checkpoint, tokenizer), tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["ranking_is_trained"] is False
    assert not load_model(tmp_path / "again", tokenizer).config.ranking_is_trained


def test_transformers_own_generation_stops_at_eos(checkpoint, tokenizer):
    from transformers import AutoModelForCausalLM

    save_model(load_model(checkpoint, tokenizer), checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    assert config.items() >= ids.items()
    assert json.loads((checkpoint / "generation_config.json").read_text()) == ids

    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert model.generation_config.eos_token_id == tokenizer.eos_id
    # With these rows <eos> is always the likeliest, so a generation that knows of it ends at once.
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
        model.get_output_embeddings().weight[tokenizer.eos_id] = 5.0
        final_norm = getattr(model.transformer, "ln_f", None) or model.transformer.h[-1].ln_2
        final_norm.weight.zero_()
        final_norm.bias.fill_(1.0)
    prompt = torch.tensor([[tokenizer.bos_id, 7]])
    assert model.generate(prompt, max_new_tokens=9).tolist() == [[tokenizer.bos_id, 7, tokenizer.eos_id]]


# What the model was trained with


def test_the_history_of_training_is_the_default(checkpoint, tokenizer, caplog):
    assert DialogAgent.load(checkpoint, device="cpu").max_history == 2  # unknown: as published
    (checkpoint / "arguments.json").write_text('{"max_history": "all"}')  # of another program
    assert DialogAgent.load(checkpoint, device="cpu").max_history == 2
    (checkpoint / "arguments.json").write_text('{"max_history": 0}')  # as older runs record it
    assert DialogAgent.load(checkpoint, device="cpu").max_history == 0
    inner = checkpoint / "checkpoints" / "update-1"
    save_model(load_model(checkpoint.parent / "checkpoint", tokenizer), inner)
    config = json.loads((inner / "config.json").read_text())
    assert config.pop("max_history") == 0
    (inner / "config.json").write_text(json.dumps(config))
    tokenizer.save(inner)
    assert DialogAgent.load(inner, device="cpu").max_history == 0  # RUN/checkpoints/update-N
    (checkpoint / "config.json").write_text(json.dumps(config | {"max_history": 3}))
    assert DialogAgent.load(checkpoint, device="cpu").max_history == 3
    assert not caplog.text
    assert DialogAgent.load(checkpoint, device="cpu", max_history=1).max_history == 1
    assert "max_history 1 is used, though the model was trained with 3" in caplog.text
