"""Tokenizers saved and loaded: ids and pre-tokenization are kept, and unusable folders are refused."""

import json

import pytest
from conftest import TEXTS

from convai.errors import UserError
from convai.model.loading import load_tokenizer
from convai.model.tokenization import SPECIAL_TOKENS, GptTokenizer, train_vocabulary

# Dialog tokens


def all_files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_saving_and_loading_again_and_again_changes_nothing(tokenizer, tmp_path):
    saved = tokenizer
    for n in range(3):
        saved.save(tmp_path / str(n))
        saved = load_tokenizer(tmp_path / str(n))
        assert saved.special_ids == tokenizer.special_ids
        assert saved.fingerprint == tokenizer.fingerprint
        assert len(saved) == len(tokenizer)
        assert [saved.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
        assert all_files(tmp_path / str(n)) == all_files(tmp_path / "0")


def test_a_pretrained_vocabulary_gets_the_dialog_tokens(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    for name in ("added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    loaded = load_tokenizer(tmp_path)
    assert loaded.special_ids == tokenizer.special_ids
    assert loaded.fingerprint == tokenizer.fingerprint


def test_special_ids_of_another_order_are_kept(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    n = tokenizer.n_vocab
    ids = {"<pad>": n, "<speaker2>": n + 1, "<speaker1>": n + 2, "<eos>": n + 3, "<bos>": n + 4}
    (tmp_path / "added_tokens.json").write_text(json.dumps(ids))
    loaded = load_tokenizer(tmp_path)
    assert loaded.special_ids == ids
    assert [loaded.bos_id, loaded.eos_id, loaded.pad_id] == [n + 4, n + 3, n]
    loaded.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").special_ids == ids


def test_dialog_tokens_within_the_vocabulary(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    inside = {token: i + 5 for token, i in tokenizer.vocab.items()} | dict(zip(SPECIAL_TOKENS, range(5), strict=True))
    (tmp_path / "vocab.json").write_text(json.dumps(inside))
    (tmp_path / "added_tokens.json").unlink()
    loaded = load_tokenizer(tmp_path)
    assert list(loaded.special_ids.values()) == [0, 1, 2, 3, 4]
    assert len(loaded) == len(inside)
    assert loaded.encode("hello <bos>") == [i + 5 for i in tokenizer.encode("hello <bos>")]
    loaded.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").fingerprint == loaded.fingerprint


def test_dialog_tokens_do_not_take_the_ids_of_other_added_tokens(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<sep>": tokenizer.n_vocab}))
    loaded = load_tokenizer(tmp_path)
    assert loaded.bos_id == tokenizer.n_vocab + 1
    assert loaded.convert_tokens_to_ids("<sep>") == tokenizer.n_vocab
    loaded.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").fingerprint == loaded.fingerprint


# Pre-tokenization


def test_the_pre_tokenization_is_recorded_and_not_to_be_contradicted(tmp_path):
    spacy = train_vocabulary(TEXTS, "openai-gpt", 400)
    GptTokenizer(spacy.vocab, spacy.merges, pre_tokenization="bert").save(tmp_path)
    assert load_tokenizer(tmp_path).pre_tokenization == "bert"
    assert load_tokenizer(tmp_path, "bert").pre_tokenization == "bert"
    with pytest.raises(UserError, match="was trained with --tokenization bert; leave out --tokenization spacy"):
        load_tokenizer(tmp_path, "spacy")
    (tmp_path / "tokenizer_config.json").unlink()
    assert load_tokenizer(tmp_path).pre_tokenization == "spacy"
    assert load_tokenizer(tmp_path, "bert").pre_tokenization == "bert"


def test_gpt2_has_no_pre_tokenization_to_choose(tmp_path):
    train_vocabulary(TEXTS, "gpt2", 400).save(tmp_path)
    with pytest.raises(UserError, match=r"--tokenization bert is for OpenAI GPT, but .* leave it out"):
        load_tokenizer(tmp_path, "bert")


# Folders that cannot be used


def spoil(name: str, change):
    """A function that replaces the text of a folder's file by what `change` makes of it."""

    def spoiled(folder):
        path = folder / name
        path.write_bytes(change(path.read_text()).encode("latin-1"))

    return spoiled


def spoil_json(name: str, change):
    return spoil(name, lambda text: json.dumps(change(json.loads(text))))


@pytest.mark.parametrize("spoiled, wanted", [
    (lambda folder: (folder / "vocab.json").unlink(), "has no vocabulary: vocab.json and merges.txt (or"),
    (lambda folder: (folder / "merges.txt").unlink(), "has no vocabulary"),
    (spoil("vocab.json", lambda text: '{"a": 1,\n}'), "vocab.json is not JSON: "),
    (spoil("vocab.json", lambda text: "[]"), "vocab.json holds a JSON list; an object is needed"),
    (spoil("vocab.json", lambda text: "{}"), "is malformed: each token needs a whole number of its own"),
    (spoil_json("vocab.json", lambda vocab: vocab | {"a": "7"}), "is malformed"),
    (spoil_json("vocab.json", lambda vocab: vocab | {"a": -1}), "is malformed"),
    (spoil_json("vocab.json", lambda vocab: vocab | {"a": vocab["b"]}), "is malformed"),
    (spoil("merges.txt", lambda text: "#version\n\xff\xfe a\n"), "merges.txt cannot be read: 'utf-8' codec"),
    (spoil("merges.txt", lambda text: "h e l\n"), "merge 1 ('h e l') does not join two tokens of the vocabulary"),
    (spoil("merges.txt", lambda text: "zz zz\n"),
     "merge 1 ('zz zz') does not join two tokens of the vocabulary into a third; vocabulary and merges must be of one"),
    (spoil_json("added_tokens.json", lambda ids: ids | {"<bos>": ids["<eos>"]}), "must give each dialog token a whole"),
    (spoil_json("added_tokens.json", lambda ids: ids | {"<bos>": 3}), "must give each dialog token a whole number of"),
    (spoil_json("added_tokens.json", lambda ids: ids | {"<bos>": None}), "must give each dialog token a whole number"),
])  # fmt: skip
def test_folders_without_a_usable_vocabulary(tokenizer, tmp_path, spoiled, wanted):
    tokenizer.save(tmp_path)
    spoiled(tmp_path)
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert wanted in str(caught.value)


@pytest.mark.parametrize("content", [
    {"model": {"type": "WordPiece", "vocab": {"a": 0}}},
    {"model": {"type": "Unigram", "vocab": [["a", 0.5]]}},
    {"version": "1.0"},
])  # fmt: skip
def test_a_tokenizer_json_of_another_kind(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"tokenizer\.json holds no BPE vocabulary; GPT and GPT-2 need one"):
        load_tokenizer(tmp_path)
