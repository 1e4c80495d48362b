"""What a checkpoint's files say of its tokens: which record counts, what contradicts, which pipelines are not ours."""

import json
import logging
import re

import pytest
import torch
from conftest import TEXTS, tiny_model
from safetensors.torch import load_file, save_file

from convai.dialog.agent import Context, DialogAgent
from convai.dialog.decoding import DecodingSettings
from convai.errors import UserError
from convai.model.loading import load_model, load_tokenizer, save_model
from convai.model.tokenization import SPECIAL_TOKENS, Gpt2Tokenizer, train_vocabulary


def change_json(path, **changes) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


def tokenizer_json(tokenizer, **changes) -> dict:
    """A file of the tokenizers library as GPT-2's checkpoints have it, the dialog tokens among its added ones."""
    added = [{"id": i, "content": token, "special": True} for token, i in tokenizer.special_ids.items()]
    return {
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": tokenizer.vocab, "merges": [" ".join(pair) for pair in tokenizer.merges]},
        **changes,
    }


@pytest.fixture
def gpt2_tokenizer() -> Gpt2Tokenizer:
    return train_vocabulary(TEXTS, "gpt2", 400)


# Ids of the dialog tokens

REORDERED = ("<pad>", "<speaker2>", "<eos>", "<bos>", "<speaker1>")


@pytest.fixture
def reordered(tmp_path, tokenizer):
    """A checkpoint whose dialog tokens have ids in another order than usual, which nothing records yet; its reply."""
    kind = type(tokenizer)
    ids = {token: tokenizer.n_vocab + n for n, token in enumerate(REORDERED)}
    other = kind(tokenizer.vocab, tokenizer.merges, {token: ids[token] for token in SPECIAL_TOKENS})
    model = tiny_model(other)
    save_model(model, tmp_path)
    other.save(tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    agent = DialogAgent(model, other, settings=DecodingSettings(no_sample=True))
    return tmp_path, ids, agent.reply_batch([Context([], [TEXTS[0]])])[0]


def reply_of(folder, **options) -> str:
    agent = DialogAgent.load(folder, device="cpu", settings=DecodingSettings(no_sample=True), **options)
    return agent.reply_batch([Context([], [TEXTS[0]])])[0]


@pytest.mark.parametrize("file", ["added_tokens.json", "tokenizer.json", "tokenizer_config.json", "special_tokens.txt"])
def test_ids_come_from_whichever_file_records_them(reordered, file):
    folder, ids, reply = reordered
    tokenizer = load_tokenizer(folder, dialog_token_ids=[ids[token] for token in SPECIAL_TOKENS])
    contents = {
        "added_tokens.json": json.dumps(ids),
        "tokenizer_config.json": json.dumps({"added_tokens_decoder": {i: {"content": t} for t, i in ids.items()}}),
        "special_tokens.txt": "\n".join(REORDERED),
    }
    if file == "tokenizer.json":
        content = tokenizer_json(tokenizer)
        if tokenizer.family == "openai-gpt":
            content |= {"pre_tokenizer": {"type": "BertPreTokenizer"}, "decoder": {"type": "BPEDecoder"}}
        contents[file] = json.dumps(content)
    (folder / file).write_text(contents[file])
    assert load_tokenizer(folder).special_ids == {token: ids[token] for token in SPECIAL_TOKENS}
    assert reply_of(folder) == reply


def test_ids_that_nothing_records_must_be_said(reordered):
    folder, ids, reply = reordered
    with pytest.raises(UserError, match=r"have rows for <bos>.*nothing records which; say it with --dialog_token_ids"):
        reply_of(folder)
    with pytest.raises(UserError, match="--dialog_token_ids"):  # nor are they trained on under wrong names
        load_model(folder, load_tokenizer(folder), for_training=True)
    assert reply_of(folder, dialog_token_ids=[ids[token] for token in SPECIAL_TOKENS]) == reply


def test_records_that_contradict_each_other_or_the_option_are_refused(reordered):
    folder, ids, _ = reordered
    n = ids["<pad>"]
    (folder / "added_tokens.json").write_text(json.dumps(ids))
    with pytest.raises(UserError, match=rf"records other ids of the dialog tokens: <bos> {n + 3}.*--dialog_token_ids"):
        load_tokenizer(folder, dialog_token_ids=range(n, n + 5))
    change_json(folder / "tokenizer_config.json", added_tokens_decoder={str(n + 1): {"content": "<pad>"}})
    with pytest.raises(UserError, match=rf"<pad> is {n} by added_tokens.json, but {n + 1} by tokenizer_config.json"):
        load_tokenizer(folder)
    change_json(folder / "tokenizer_config.json", added_tokens_decoder={"x": {}})
    with pytest.raises(UserError, match="are malformed; each needs its content and id"):
        load_tokenizer(folder)


@pytest.mark.parametrize("ids", [[0, 1, 2, 3, 4], [400, 400, 401, 402, 403]])
def test_given_ids_must_be_free_and_different(reordered, ids):
    with pytest.raises(UserError, match="each dialog token needs an id of its own"):
        load_tokenizer(reordered[0], dialog_token_ids=ids)


def test_some_dialog_tokens_are_completed_for_training_and_refused_for_chat(tmp_path, tokenizer):
    """A model that was given a <pad> of its own before; the others come behind it."""
    n = tokenizer.n_vocab
    kind = type(tokenizer)
    save_model(tiny_model(kind(tokenizer.vocab, tokenizer.merges)), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    wte = next(name for name in weights if name.endswith(("wte.weight", "tokens_embed.weight")))
    weights[wte] = weights[wte][: n + 1].clone()
    save_file(weights, tmp_path / "model.safetensors")
    tokenizer.save(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<pad>": n}))

    completed = load_tokenizer(tmp_path)
    assert completed.special_ids["<pad>"] == n
    assert sorted(completed.special_ids.values()) == [*range(n, n + 5)]
    model = load_model(tmp_path, completed, for_training=True)
    embedding = model.transformer.tokens_embed.weight
    assert embedding.shape == (n + 5, 16)
    assert torch.equal(embedding[: n + 1], weights[wte])  # <pad> keeps what it has learned
    with pytest.raises(
        UserError, match=r"knows only some of the dialog tokens.*<bos>, <eos>, <speaker1>, <speaker2> are"
    ):
        DialogAgent.load(tmp_path, device="cpu")


def test_spare_rows_of_a_pre_trained_embedding_become_the_dialog_tokens(tmp_path, gpt2_tokenizer):
    n = gpt2_tokenizer.n_vocab
    plain = Gpt2Tokenizer(gpt2_tokenizer.vocab, gpt2_tokenizer.merges)
    model = tiny_model(plain)
    model.resize_embeddings(n + 12)  # padded to a round number, as some trainers do
    model.transformer.tokens_embed.weight.data[n:] = 77.0
    save_model(model, tmp_path)
    plain.save(tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    embedding = load_model(tmp_path, load_tokenizer(tmp_path), for_training=True).transformer.tokens_embed.weight
    assert len(embedding) == n + 12
    assert embedding[n : n + 5].abs().max() < 5  # drawn anew: what stood there was no token
    assert (embedding[n + 5 :] == 77).all()
    with pytest.raises(UserError, match="--dialog_token_ids"):
        load_model(tmp_path, load_tokenizer(tmp_path))


# Pipelines that are not ours


@pytest.mark.parametrize("changes, wanted", [
    ({"pre_tokenizer": {"type": "Metaspace", "replacement": "▁"}}, "the pre-tokenizer Metaspace"),
    ({"pre_tokenizer": None}, "the pre-tokenizer none"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits"}, {"type": "ByteLevel"}]}},
     "the pre-tokenizer Digits + ByteLevel"),
    ({"pre_tokenizer": {"type": "ByteLevel", "use_regex": False}}, "a pre-tokenizer that does not part words"),
    ({"normalizer": {"type": "NFKC"}}, "the normalizer NFKC"),
    ({"decoder": {"type": "WordPiece"}}, "the decoder WordPiece"),
])  # fmt: skip
def test_a_tokenizer_json_with_another_pipeline_is_refused(gpt2_tokenizer, tmp_path, changes, wanted):
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(gpt2_tokenizer, **changes)))
    with pytest.raises(UserError, match=re.escape(f"its tokenizer has {wanted}, but only GPT-2's byte-level one")):
        load_tokenizer(tmp_path)
    gpt2_tokenizer.save(tmp_path)  # also where vocab.json and merges.txt stand beside it
    with pytest.raises(UserError, match="is implemented; use another checkpoint"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("setting", ["byte_fallback", "ignore_merges"])
def test_settings_of_the_model_that_change_ids_are_refused(gpt2_tokenizer, tmp_path, setting):
    content = tokenizer_json(gpt2_tokenizer)
    content["model"][setting] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"the setting {setting}"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_of_characters_rather_than_bytes_is_refused(tmp_path):
    """Korean syllables without a tokenizer.json: read as bytes, all text would become nothing."""
    (tmp_path / "vocab.json").write_text(json.dumps({"안": 0, "녕": 1, "안녕": 2}))
    (tmp_path / "merges.txt").write_text("안 녕\n", encoding="utf-8")
    with pytest.raises(UserError, match="merges of characters rather than bytes, such as '안'"):
        load_tokenizer(tmp_path)


def test_a_class_of_another_tokenizer_is_refused(gpt2_tokenizer, tmp_path):
    gpt2_tokenizer.save(tmp_path)
    change_json(tmp_path / "tokenizer_config.json", tokenizer_class="Qwen2TokenizerFast")
    with pytest.raises(UserError, match="its tokenizer has class Qwen2Tokenizer, but only GPT-2's"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("add_prefix_space", [True, False])
def test_gpt2_s_own_files_stay_readable(gpt2_tokenizer, tmp_path, add_prefix_space):
    content = tokenizer_json(gpt2_tokenizer, added_tokens=[])
    content["pre_tokenizer"]["add_prefix_space"] = add_prefix_space
    content["post_processor"] = {"type": "ByteLevel", "trim_offsets": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).encode("hello") == gpt2_tokenizer.encode("hello")  # a base model: with the space


# GPT-2's leading space


@pytest.fixture
def without_space(tmp_path, gpt2_tokenizer):
    """A fine-tuned checkpoint as the published script made them from GPT-2: no space before an utterance."""
    tokenizer = Gpt2Tokenizer(gpt2_tokenizer.vocab, gpt2_tokenizer.merges, gpt2_tokenizer.special_ids, False)
    model = tiny_model(tokenizer)
    save_model(model, tmp_path)
    tokenizer.save(tmp_path)
    return tmp_path, tokenizer, model


def test_what_a_fine_tuned_checkpoint_records_is_honoured(without_space, gpt2_tokenizer):
    folder, tokenizer, _ = without_space
    assert json.loads((folder / "tokenizer_config.json").read_text())["add_prefix_space"] is False
    loaded = load_tokenizer(folder)
    assert loaded.encode("hello hello") == tokenizer.encode("hello hello") != gpt2_tokenizer.encode("hello hello")
    assert loaded.tokens[loaded.encode("hello")[0]] == "h" or not loaded.tokens[loaded.encode("hello")[0]].startswith(
        "Ġ"
    )
    assert loaded.encode_within("hello") == gpt2_tokenizer.encode("hello")
    assert loaded.decode(loaded.encode("hello there")) == "hello there"
    assert loaded.fingerprint != gpt2_tokenizer.fingerprint  # they cannot share a token cache
    loaded.save(folder / "again")
    assert load_tokenizer(folder / "again").fingerprint == loaded.fingerprint
    with pytest.raises(
        UserError, match="was trained with --tokenization no_prefix_space; leave out --tokenization pref"
    ):
        load_tokenizer(folder, "prefix_space")


def test_the_record_may_stand_in_tokenizer_json(without_space):
    folder, tokenizer, _ = without_space
    (folder / "tokenizer_config.json").unlink()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(tokenizer)))
    assert load_tokenizer(folder).encode("hello") == tokenizer.encode("hello")


def test_without_a_record_the_space_is_announced_with_the_option(without_space, gpt2_tokenizer, caplog):
    folder, tokenizer, _ = without_space
    (folder / "tokenizer_config.json").unlink()
    with caplog.at_level(logging.INFO):
        assert load_tokenizer(folder).encode("hello") == gpt2_tokenizer.encode("hello")
    assert "does not record whether its utterances start with a space" in caplog.text
    assert "--tokenization no_prefix_space" in caplog.text
    assert load_tokenizer(folder, "no_prefix_space").encode("hello") == tokenizer.encode("hello")
    with pytest.raises(UserError, match="--tokenization bert is for OpenAI GPT"):
        load_tokenizer(folder, "bert")


def test_base_models_get_the_space_whatever_their_file_says(gpt2_tokenizer, tmp_path):
    gpt2_tokenizer.save(tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    change_json(tmp_path / "tokenizer_config.json", add_prefix_space=False)
    assert load_tokenizer(tmp_path).encode("hello") == gpt2_tokenizer.encode("hello")
    assert load_tokenizer(tmp_path, "no_prefix_space").encode("hello") != gpt2_tokenizer.encode("hello")


def test_gpt_has_no_leading_space_to_choose(tmp_path):
    train_vocabulary(TEXTS, "openai-gpt", 400).save(tmp_path)
    with pytest.raises(UserError, match="--tokenization no_prefix_space is for GPT-2"):
        load_tokenizer(tmp_path, "no_prefix_space")


def test_word_perplexity_spells_the_first_word_without_the_space(without_space):
    """With the one word of its dictionary to say, a word's probability is 1 wherever it stands."""
    from convai.evaluation.metrics import SPECIAL_ENTRIES, WordPerplexity, count_words

    _, tokenizer, model = without_space
    dictionary = {word: n for word, n in count_words(["hello hello"]).items() if word not in SPECIAL_ENTRIES}
    words = WordPerplexity(tokenizer, dictionary)
    assert words.first.pieces["hello"] == tuple(tokenizer.encode("hello"))
    assert words.within.pieces["hello"] == tuple(tokenizer.encode("a hello")[len(tokenizer.encode("a")) :])
    agent = DialogAgent(model, tokenizer)
    score = words.score(agent, [(Context([], [TEXTS[0]]), "hello hello")])[0]
    assert [word.published for word in score.words] == pytest.approx([0.0, 0.0], abs=1e-5)
    assert score.n_tokens == len(tokenizer.encode("hello hello")) + 1
    first = words.next_word_probability(agent, Context([], [TEXTS[0]]), [])
    assert first["hello"] != words.next_word_probability(agent, Context([], [TEXTS[0]]), ["hello"])["hello"]
