"""The model against transformers' and pytorch-transformers' double-heads models: logits, gradients, checkpoints."""

import json
import logging
import sys

import pytest
import torch
from conftest import TEXTS, needs, tiny_config, tiny_model

from bench import reference
from convai.data.batches import collate_trees
from convai.data.inputs import InputBuilder
from convai.data.store import Example
from convai.errors import UserError
from convai.model.loading import load_model, load_tokenizer, save_model
from convai.model.transformer import tree_mask


@pytest.fixture
def examples(tokenizer) -> list[Example]:
    """Three examples of unlike length, with 4 candidates each; the first has a history of even length."""
    ids = [tokenizer.encode(text) for text in TEXTS]
    return [
        Example([ids[7], ids[6]], [ids[1], ids[2]], [ids[5], ids[0], [], ids[3]]),
        Example([], [ids[0]], [ids[2], ids[3], ids[5], ids[1]]),
        Example([ids[6]], [ids[0], ids[1], ids[2]], [ids[0], ids[1], ids[7], ids[3]]),
    ]


def batch_of(examples, tokenizer, max_positions=128):
    return collate_trees([InputBuilder(tokenizer, max_positions).tree(*e) for e in examples])


def gold_rows(lm_logits, labels):
    """The reference's logits (N, V) where the next label is a target, in order."""
    return lm_logits[..., :-1, :][labels[..., 1:] != -100]


def assert_same_scores(ours, theirs_lm, theirs_mc, labels):
    torch.testing.assert_close(ours.lm_logits, gold_rows(theirs_lm, labels), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.mc_logits, theirs_mc, atol=1e-4, rtol=1e-4)


def test_tree_equals_transformers_per_candidate_model(checkpoint, tokenizer, examples):
    ours = load_model(checkpoint, tokenizer).eval()(**batch_of(examples, tokenizer).model_inputs())
    padded = reference.pad_candidates(examples, tokenizer)
    theirs = reference.score_candidates(reference.load_reference_model(checkpoint), padded)
    assert_same_scores(ours, *theirs, padded["labels"])
    assert ours.lm_logits.std() > 0.1  # logits that are all alike would agree with anything


def test_gradients_of_the_joint_loss_equal_transformers(checkpoint, tokenizer, examples):
    ours, theirs = load_model(checkpoint, tokenizer).train(), reference.load_reference_model(checkpoint).train()
    batch = batch_of(examples, tokenizer)
    output = ours(**batch.model_inputs())
    lm_loss = torch.nn.functional.cross_entropy(output.lm_logits, batch.lm_targets)
    (2.0 * lm_loss + 0.5 * torch.nn.functional.cross_entropy(output.mc_logits, torch.full((3,), 3))).backward()
    padded = reference.pad_candidates(examples, tokenizer)
    reference.joint_loss(*reference.score_candidates(theirs, padded), padded["labels"], 2.0, 0.5).backward()

    names = {"tokens_embed": "wte", "positions_embed": "wpe"} if tokenizer.family == "gpt2" else {}
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        for our_name, their_name in names.items():
            name = name.replace(our_name, their_name)
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=2e-4, msg=lambda m, n=name: n + m)


def pytorch_transformers_model(family: str, vocab_size: int):
    """A reference model of pytorch-transformers 1.2.0, tiny and random."""
    pytorch_transformers = needs("pytorch_transformers")
    config = tiny_config(family, vocab_size)
    classes = {
        "openai-gpt": (pytorch_transformers.OpenAIGPTConfig, pytorch_transformers.OpenAIGPTDoubleHeadsModel),
        "gpt2": (pytorch_transformers.GPT2Config, pytorch_transformers.GPT2DoubleHeadsModel),
    }
    config_class, model_class = classes[family]
    sizes = {key: config[key] for key in ("n_positions", "n_embd", "n_layer", "n_head")}
    torch.manual_seed(1)
    model = model_class(config_class(vocab_size, n_ctx=config["n_positions"], **sizes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.tie_weights()
    return model


def test_checkpoint_of_pytorch_transformers_loads_with_equal_logits(tmp_path, tokenizer, examples):
    theirs = pytorch_transformers_model(tokenizer.family, len(tokenizer))
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    assert "model_type" not in json.loads((tmp_path / "config.json").read_text())  # the family is told by its keys

    loaded = load_model(tmp_path, load_tokenizer(tmp_path)).eval()
    ours = loaded(**batch_of(examples, tokenizer).model_inputs())
    padded = reference.pad_candidates(examples, tokenizer)
    assert_same_scores(ours, *reference.score_candidates(theirs, padded), padded["labels"])
    # And on from ours into today's transformers.
    save_model(loaded, tmp_path / "ours")
    again = reference.load_reference_model(tmp_path / "ours")
    assert_same_scores(ours, *reference.score_candidates(again, padded), padded["labels"])


def test_pretrained_weights_without_dialog_tokens_and_head_are_extended(tmp_path, tokenizer, caplog):
    from transformers import GPT2Config, GPT2LMHeadModel, OpenAIGPTConfig, OpenAIGPTLMHeadModel

    config = tiny_config(tokenizer.family, tokenizer.n_vocab)
    if tokenizer.family == "gpt2":
        pretrained = GPT2LMHeadModel(GPT2Config(**config))
    else:
        pretrained = OpenAIGPTLMHeadModel(OpenAIGPTConfig(**config))
    pretrained.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    (tmp_path / "added_tokens.json").unlink()

    extended = load_tokenizer(tmp_path)
    assert len(extended) == tokenizer.n_vocab + 5
    with caplog.at_level(logging.INFO):
        model = load_model(tmp_path, extended)
    assert "no ranking head" in caplog.text
    embedding = model.transformer.tokens_embed.weight.detach()
    torch.testing.assert_close(embedding[: tokenizer.n_vocab], pretrained.get_input_embeddings().weight.detach())
    new_rows = embedding[tokenizer.n_vocab :]
    assert new_rows.shape == (5, 16)
    # New rows stand near the mean of the old, yet differ from each other.
    assert (new_rows - embedding[: tokenizer.n_vocab].mean(0)).abs().max() < 5 * model.config.initializer_range
    assert torch.unique(new_rows, dim=0).shape == (5, 16)


def test_from_scratch_reads_the_config_only(tmp_path, tokenizer):
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(tokenizer.family, 7)))
    model = load_model(tmp_path, tokenizer, from_scratch=True)
    assert model.transformer.tokens_embed.weight.shape == (len(tokenizer), 16)
    assert model.transformer.h[0].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.1)
    depth_scale = 2.0 if tokenizer.family == "gpt2" else 1.0  # GPT-2 shrinks residual projections by sqrt(2 layers)
    assert model.transformer.h[0].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / depth_scale, rel=0.1)


def test_tree_mask_by_hand():
    # Context of two, a branch of two, a branch of one, a padding position.
    seen = tree_mask(torch.tensor([[0, 0, 1, 1, 2, -1]])).visible[0, 0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_absent_candidates_score_minus_infinity_and_padding_changes_nothing(tokenizer, examples):
    model = tiny_model(tokenizer)
    short = Example(examples[0].persona, examples[0].history, examples[0].candidates[-2:])
    alone = model(**batch_of([short], tokenizer).model_inputs())
    together = model(**batch_of([short, examples[2]], tokenizer).model_inputs())
    assert together.mc_logits[0, :2].tolist() == [-float("inf")] * 2
    torch.testing.assert_close(together.mc_logits[0, 2:], alone.mc_logits[0])
    torch.testing.assert_close(together.lm_logits[: len(alone.lm_logits)], alone.lm_logits)
    assert torch.isfinite(together.lm_logits).all()


def test_word_logits_of_one_tree_equal_one_pass_per_word(checkpoint, tokenizer, examples):
    persona, history, candidates = examples[2]
    words = [candidates[-1][:2], candidates[-1][2:3], candidates[-1][3:]]
    slow = reference.word_logits(reference.load_reference_model(checkpoint), persona, history, words, tokenizer)
    fast = load_model(checkpoint, tokenizer).eval()(**batch_of([examples[2]], tokenizer).model_inputs()).lm_logits
    torch.testing.assert_close(fast[[0, 2, 3]], slow, atol=1e-4, rtol=1e-4)


def test_activation_names_follow_each_family(checkpoint, tokenizer, examples):
    config = json.loads((checkpoint / "config.json").read_text())
    config["afn" if tokenizer.family == "openai-gpt" else "activation_function"] = "relu"
    (checkpoint / "config.json").write_text(json.dumps(config))
    ours = load_model(checkpoint, tokenizer).eval()(**batch_of(examples, tokenizer).model_inputs())
    padded = reference.pad_candidates(examples, tokenizer)
    theirs = reference.score_candidates(reference.load_reference_model(checkpoint), padded)
    assert_same_scores(ours, *theirs, padded["labels"])


class TestRefusals:
    def test_folder_without_config(self, checkpoint, tokenizer):
        (checkpoint / "config.json").unlink()
        with pytest.raises(UserError, match=r"has no config\.json"):
            load_model(checkpoint, tokenizer)

    def test_config_that_is_not_json(self, checkpoint, tokenizer):
        (checkpoint / "config.json").write_text('{"n_embd": 16,\n  oops}')
        with pytest.raises(UserError, match=r"config.json is not JSON: .* line 2, column 3"):
            load_model(checkpoint, tokenizer)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model_type": "bert"}, "model_type 'bert' cannot read candidate trees"),
            ({"n_layer": 0}, "n_layer must be a positive whole number, not 0"),
            ({"n_head": 3}, "n_embd 16 is not a multiple of n_head 3"),
            (
                {"n_positions": 32},
                r"positions_embed.weight has shape \(128, 16\), but config.json calls for \(32, 16\)",
            ),
            ({"n_layer": 3}, "12 weights that config.json calls for are missing"),
        ],
    )
    def test_config_that_does_not_fit(self, checkpoint, tokenizer, change, message):
        config = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=message):
            load_model(checkpoint, tokenizer)

    def test_vocabulary_of_another_checkpoint(self, checkpoint, tokenizer):
        vocab = json.loads((checkpoint / "vocab.json").read_text())
        (checkpoint / "vocab.json").write_text(json.dumps(vocab | {"another": tokenizer.n_vocab + 9}))
        with pytest.raises(UserError, match="do not belong together"):
            load_model(checkpoint, load_tokenizer(checkpoint))

    def test_folder_without_weights(self, checkpoint, tokenizer):
        (checkpoint / "model.safetensors").unlink()
        with pytest.raises(UserError, match="holds no weights"):
            load_model(checkpoint, tokenizer)

    def test_truncated_weights(self, checkpoint, tokenizer):
        path = checkpoint / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(UserError, match="is damaged"):
            load_model(checkpoint, tokenizer)

    def test_pickled_code_is_never_run(self, checkpoint, tokenizer, tmp_path):
        class Malicious:
            def __reduce__(self):
                return open, (str(tmp_path / "proof"), "w")

        (checkpoint / "model.safetensors").unlink()
        torch.save({"transformer.tokens_embed.weight": Malicious()}, checkpoint / "pytorch_model.bin")
        with pytest.raises(UserError, match="holds more than weights"):
            load_model(checkpoint, tokenizer)
        assert not (tmp_path / "proof").exists()


def test_model_module_needs_neither_ignite_nor_transformers():
    import subprocess

    code = (
        "import sys, convai.model.double_heads; "
        "sys.exit(any(m.split('.')[0] in ('ignite', 'transformers', 'spacy') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=reference.__file__.rsplit("/", 2)[0]).returncode == 0
