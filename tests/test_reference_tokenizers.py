"""Token ids against the reference tokenizers, and folders that these and ours can read from each other."""

import json

import pytest
from conftest import DEVELOPMENT_DATA, TEXTS, needs

from convai.model.loading import load_tokenizer
from convai.model.tokenization import SPECIAL_TOKENS, DialogTokenizer, GptTokenizer, train_vocabulary

TRICKY = [
    "i'm sure they're not what we'd've said ; it's bob's , and she'll say y'all can't .",
    "I WON'T, you cannot, gonna wanna gotta. O'Neil's rock 'n' roll 'tis the dogs' o'clock",
    "so ... well… wait...what.. e.g. the U.S.A. , Mr. Smith , 5 p.m. and no.",
    "a - b — c – d ― e -- f --- g well-known non-smoker",
    "she said “hello” and ‘bye’ , it´s `fine` \"quoted\" 'single' «guillemets»",
    "😀 yes!! 👍🏽👍 family 👨‍👩‍👧‍👦 flag 🇫🇷 heart ❤️ <3 :-) ;) :( ^_^ ಠ_ಠ",
    "3.14 1,000 10% $5 #1 @home 2nd 1990s 12:30 50/50 +1 1e6 ½ ² №7",
    "what?? no!!! yes?! hmm,,, (((ok))) [[x]] {y} a/b//c \\ | || ~~ * ** _under_score__ ===",
    "first line\nsecond line\n\n third\r\nfourth\ttab  two  spaces\u2028separated",
    "schÃ¶n â€œmojibakeâ€\x9d &amp; &lt;3 ﬁne ﬂuid",
    "super" * 60,
    "你好，世界。こんにちは 안녕하세요 Привет мир مرحبا שלום",
    "café naïve Zoë e\u0301te İstanbul straße ſ ÅNGSTRÖM",
    "zero\u200bwidth no\u00a0break soft\u00adhyphen \ufeffmark bell\x07 nul\x00 esc\x1b",
    "https://www.example.org/a?b=c&d=e me@example.org file.txt www.x.y",
    "<bos> <eos> <speaker1> <pad> are plain text",
    "",
    "a",
    "'",
    "!",
    " leading and trailing ",
]


def load_reference(family: str, folder, monkeypatch):
    """The tokenizer of pytorch-transformers 1.2.0, GPT's with spaCy and ftfy."""
    reference = needs("pytorch_transformers")
    if family == "gpt2":
        return reference.GPT2Tokenizer.from_pretrained(str(folder))
    from spacy.lang.en import English

    # It asks spaCy 2 for its tokenizer in this way; spaCy 3 makes the same one by itself.
    monkeypatch.setattr(English.Defaults, "create_tokenizer", staticmethod(lambda nlp: nlp.tokenizer), raising=False)
    tokenizer = reference.OpenAIGPTTokenizer.from_pretrained(str(folder))
    assert tokenizer.fix_text is not None  # ftfy is in use
    return tokenizer


@pytest.fixture(scope="module")
def tricky_tokenizer(family) -> DialogTokenizer:
    """A vocabulary that knows parts of most of TRICKY; other characters are unknown to GPT's."""
    return train_vocabulary([*TEXTS, *TRICKY[:9], *TRICKY[12:]], family, 700)


def assert_same_ids(ours, theirs, texts):
    for text in texts:
        assert ours.encode(text) == theirs.encode(text), text


# The reference takes its special tokens' names in a text for the tokens; ours never does.
PLAIN = [text for text in TRICKY if "<bos>" not in text]


def test_ids_equal_the_reference_on_tricky_utterances(tricky_tokenizer, tmp_path, monkeypatch):
    tricky_tokenizer.save(tmp_path)
    theirs = load_reference(tricky_tokenizer.family, tmp_path, monkeypatch)
    assert_same_ids(load_tokenizer(tmp_path), theirs, PLAIN)
    assert_same_ids(tricky_tokenizer, theirs, TEXTS)
    assert len({tuple(tricky_tokenizer.encode(text)) for text in PLAIN}) == len(PLAIN)
    for token in SPECIAL_TOKENS:
        assert theirs.convert_tokens_to_ids(token) == tricky_tokenizer.special_ids[token]


def test_ids_equal_the_reference_with_the_published_vocabularies(family, monkeypatch):
    folder = DEVELOPMENT_DATA / "tokenizers" / family
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    assert_same_ids(load_tokenizer(folder), load_reference(family, folder, monkeypatch), [*TRICKY, *TEXTS])


def test_bert_pre_tokenization_equals_transformers_openai_gpt_tokenizer(tmp_path):
    from transformers import OpenAIGPTTokenizer

    ours = train_vocabulary([*TEXTS, *TRICKY[:9]], "openai-gpt", 700)
    ours = GptTokenizer(ours.vocab, ours.merges, pre_tokenization="bert")
    ours.save(tmp_path)
    theirs = OpenAIGPTTokenizer.from_pretrained(tmp_path)
    for text in PLAIN:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
    spacy = GptTokenizer(ours.vocab, ours.merges)
    assert ours.encode("i'm") != spacy.encode("i'm")


def test_transformers_reads_the_saved_folder_with_the_same_special_ids(tricky_tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tricky_tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": tricky_tokenizer.family}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(tricky_tokenizer.special_ids.values())
    assert [theirs.bos_token, theirs.eos_token, theirs.pad_token] == ["<bos>", "<eos>", "<pad>"]
    assert len(theirs) == len(tricky_tokenizer)


def test_a_folder_that_transformers_wrote_has_a_tokenizer_json_alone(tricky_tokenizer, tmp_path):
    from transformers import AutoTokenizer

    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    tricky_tokenizer.save(ours)
    ids = {token: tricky_tokenizer.n_vocab + i for i, token in enumerate(reversed(SPECIAL_TOKENS))}
    (ours / "added_tokens.json").write_text(json.dumps(ids))
    (ours / "config.json").write_text(json.dumps({"model_type": tricky_tokenizer.family}))
    AutoTokenizer.from_pretrained(ours).save_pretrained(theirs)
    assert not (theirs / "vocab.json").exists()
    loaded = load_tokenizer(theirs)
    assert loaded.special_ids == ids
    assert loaded.fingerprint == load_tokenizer(ours).fingerprint
    assert loaded.encode(TRICKY[0]) == tricky_tokenizer.encode(TRICKY[0])
