"""From text to ids and back: odd characters, the dialog tokens, the fingerprint, vocabularies learned from text."""

import pickle

import pytest
from conftest import TEXTS

from convai.model import tokenization
from convai.model.tokenization import SPECIAL_TOKENS, UNKNOWN_TOKEN, Gpt2Tokenizer, GptTokenizer, train_vocabulary
from convai.model.word_splitting import PRE_TOKENIZATIONS


def test_gpt2_always_has_its_leading_space(tmp_path):
    tokenizer = train_vocabulary(TEXTS, "gpt2", 400)
    assert tokenizer.tokens[tokenizer.encode("hello")[0]].startswith("Ġ")
    assert tokenizer.encode("hello") == tokenizer.encode("  hello\n")
    assert tokenizer.encode("hello hello") == 2 * tokenizer.encode("hello")
    assert tokenizer.encode("") == tokenizer.encode(" \n") == []


# Unknown and broken characters


def test_an_unknown_character_is_the_unknown_token():
    tokenizer = train_vocabulary(TEXTS, "openai-gpt", 400)
    unknown = tokenizer.vocab["<unk>"]
    assert tokenizer.encode("你好 hello") == [unknown, unknown, *tokenizer.encode("hello")]
    assert "<unk>" in tokenizer.decode([unknown])


def test_a_vocabulary_without_unknown_token_skips_unknown_characters():
    tokenizer = train_vocabulary(TEXTS, "openai-gpt", 400)
    vocab = {token: i for token, i in tokenizer.vocab.items() if token != "<unk>"}
    without = GptTokenizer(vocab, tokenizer.merges)
    assert without.encode("你 hello 好") == tokenizer.encode("hello")
    assert "hello" in without.decode([0, *without.encode("hello")])  # no token has id 0


def test_gpt2_spells_every_character_in_bytes():
    tokenizer = train_vocabulary(TEXTS, "gpt2", 400)
    for text in ("😀 👨‍👩‍👧", "你好", "café", "\x00\x07", "a\nb\tc"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    half = tokenizer.encode("😀")[:2]
    assert "�" in tokenizer.decode(half)  # as a sampled reply may end


def test_the_share_of_a_text_that_has_no_token():
    def shares(tokenizer) -> list[float]:
        texts = ["hello there", "привет", "hello привет", "日本 hello there", "", " "]
        return [round(tokenizer.lost_share(text, tokenizer.encode(text)), 2) for text in texts]

    gpt = train_vocabulary(["hello there"], "openai-gpt", 400)
    assert shares(gpt) == [0, 1, 0.86, 0.5, 0, 0]  # of tokens
    vocab = {token: i for token, i in gpt.vocab.items() if token != UNKNOWN_TOKEN}
    assert shares(GptTokenizer(vocab, gpt.merges)) == [0, 1, 0.55, 0.17, 0, 0]  # of characters

    gpt2 = train_vocabulary(["hello there"], "gpt2", 400)
    assert shares(gpt2) == [0] * 6
    vocab = {token: i for token, i in gpt2.vocab.items() if token.isascii() or token[0] == "Ġ"}
    assert shares(Gpt2Tokenizer(vocab, gpt2.merges)) == [0, 1, 0.67, 0.33, 0, 0]  # of bytes


def test_halves_of_surrogate_pairs_do_not_stop_anything(tokenizer):
    both, lone = "hi \ud83d\ude00", "hi \ud83d"
    tokenizers = [tokenizer]
    if tokenizer.family == "openai-gpt":
        tokenizers.append(GptTokenizer(tokenizer.vocab, tokenizer.merges, pre_tokenization="bert"))
    for each in tokenizers:
        assert each.encode(both) == each.encode("hi 😀")
        assert each.encode(lone) == each.encode("hi \ufffd")


# Decoding


@pytest.mark.parametrize("pre_tokenization", PRE_TOKENIZATIONS)
def test_encoding_and_decoding_returns_the_text(family, pre_tokenization):
    tokenizer = train_vocabulary([*TEXTS, "'"], family, 400)
    if family == "openai-gpt":
        tokenizer = GptTokenizer(tokenizer.vocab, tokenizer.merges, pre_tokenization=pre_tokenization)
    for text in TEXTS:
        decoded = tokenizer.decode(tokenizer.encode(text))
        assert decoded == text.replace(" ?", "?").replace(" !", "!").replace(" .", ".").replace(" ,", ",")
        if family == "openai-gpt":  # GPT-2 spells "hello ?" and "hello?" differently
            assert tokenizer.encode(decoded) == tokenizer.encode(text)
    assert tokenizer.decode([]) == ""


def test_special_tokens_are_left_out_when_decoding(tokenizer):
    ids = tokenizer.encode("hello !")
    special = list(tokenizer.special_ids.values())
    assert tokenizer.decode([*special, *ids, *special]) == tokenizer.decode(ids) == "hello!"


# Dialog tokens


def test_pieces_are_the_text_of_each_token_and_dialog_tokens_their_names(tokenizer):
    ids = [tokenizer.bos_id, *tokenizer.encode("hello 12 !"), tokenizer.eos_id]
    first, *pieces, last = tokenizer.pieces(ids)
    assert (first, last, len(pieces)) == ("<bos>", "<eos>", len(ids) - 2)
    assert "".join(pieces).strip() == "hello 12 !"


def test_of_a_character_in_several_tokens_the_last_one_has_it():
    tokenizer = train_vocabulary(TEXTS, "gpt2", 260)
    assert tokenizer.pieces(tokenizer.encode("é!")) == [" ", "", "é", "!"]
    assert tokenizer.pieces(tokenizer.encode("é")[:-1])[-1] == "\ufffd"  # cut within


def test_dialog_tokens_come_after_the_vocabulary(tokenizer):
    assert tokenizer.n_vocab == len(tokenizer.vocab)
    assert list(tokenizer.special_ids) == list(SPECIAL_TOKENS)
    assert list(tokenizer.special_ids.values()) == list(range(tokenizer.n_vocab, tokenizer.n_vocab + 5))
    assert len(tokenizer) == tokenizer.n_vocab + 5
    ids = tokenizer.convert_tokens_to_ids(["<pad>", "<bos>"])
    assert ids == [tokenizer.pad_id, tokenizer.bos_id] == [len(tokenizer) - 1, len(tokenizer) - 5]
    assert tokenizer.convert_tokens_to_ids("<speaker2>") == tokenizer.speaker2_id
    with pytest.raises(KeyError):
        tokenizer.convert_tokens_to_ids("no such token")


def test_names_of_special_tokens_in_text_stay_text(tokenizer):
    for name in (*SPECIAL_TOKENS, "<unk>", "<|endoftext|>"):
        ids = tokenizer.encode(f"hi {name} hello")
        assert not set(ids) & set(tokenizer.special_ids.values())
        assert tokenizer.vocab.get(name) not in ids or tokenizer.family == "openai-gpt"  # whose < is unknown
    known = train_vocabulary(["<unk> <bos> ok"], "openai-gpt", 100)
    assert known.decode(known.encode("<unk> <bos>")) == "< unk > < bos >"


# The tokenizer as a whole


def test_the_fingerprint_tells_what_changes_ids(tokenizer, monkeypatch):
    kind, vocab, merges, special_ids = type(tokenizer), tokenizer.vocab, tokenizer.merges, tokenizer.special_ids
    first, second, *_ = vocab
    others = [
        kind(vocab | {first: vocab[second], second: vocab[first]}, merges, special_ids),
        kind(vocab, merges[1:], special_ids),
        kind(vocab, [merges[1], merges[0], *merges[2:]], special_ids),
        kind(vocab, merges, {token: i + 1 for token, i in special_ids.items()}),
    ]
    if tokenizer.family == "openai-gpt":
        others.append(GptTokenizer(vocab, merges, special_ids, "bert"))
    prints = [tokenizer.fingerprint, *(other.fingerprint for other in others)]
    assert len(set(prints)) == len(prints)
    assert kind(dict(reversed(vocab.items())), merges, special_ids).fingerprint == tokenizer.fingerprint
    monkeypatch.setattr(tokenization, "version", lambda package: "0.0")
    assert (tokenizer.fingerprint != prints[0]) == (tokenizer.family == "openai-gpt")


def test_a_tokenizer_can_go_to_worker_processes(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert [copy.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert copy.fingerprint == tokenizer.fingerprint


def test_a_vocabulary_is_learned_reproducibly_and_within_its_size(family):
    first, second = (train_vocabulary(iter(TEXTS), family, 300) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert len(first.vocab) <= 300
    assert len(first.encode("hello")) < len("hello")
