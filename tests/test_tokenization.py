"""Token ids against the reference tokenizers, the dialog tokens through save and load, decoding, unusable folders."""

import json
import pickle
import random

import pytest
from conftest import DEVELOPMENT_DATA, TEXTS, needs

from convai.errors import UserError
from convai.model import tokenization
from convai.model.tokenization import (
    SPECIAL_TOKENS,
    UNKNOWN_TOKEN,
    DialogTokenizer,
    Gpt2Tokenizer,
    GptTokenizer,
    load_tokenizer,
    train_vocabulary,
)
from convai.model.word_splitting import PRE_TOKENIZATIONS, join_punctuation, standardize_text, word_splitter

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


# Words


@pytest.mark.parametrize("text, standard", [
    ("wait…what—no", "wait...what - no"),
    ("a--b !!??", "a -- b !! ??"),
    ("(x)[y]{z}", "( x ) [ y ] { z }"),
    ("it´s\t 5", "it's 5"),
    (" one \n\n two\n", "one \n two"),
    ("a.b:c", "a.b:c"),
])  # fmt: skip
def test_standard_text(text, standard):
    assert standardize_text(text) == standard


def test_words_of_either_pre_tokenization():
    text = "I can't say “I'm 30”…\nOK?"
    spacy = ["i", "ca", "n't", "say", '"', "i", "'m", "30", '"', "...", "\n", "ok", "?"]
    assert word_splitter("spacy")(text) == spacy
    bert = ["i", "can", "'", "t", "say", "“", "i", "'", "m", "30", "”", "…", "ok", "?"]
    assert word_splitter("bert")(text) == bert
    with pytest.raises(UserError, match="--tokenization must be one of spacy, bert, not 'nltk'"):
        word_splitter("nltk")


def test_chunk_by_chunk_gives_the_words_of_ftfy_and_spacy_on_the_whole_text():
    from ftfy import fix_text
    from spacy.lang.en import English

    whole = English().tokenizer
    parts = [
        "can't",
        "cant",
        "dont",
        "y'all",
        "o'clock",
        "u.s.",
        "a.m.",
        "10am",
        "v.v",
        ":)",
        ":o",
        "'",
        "''",
        ".",
        "...",
    ]
    parts += [
        "!",
        "?",
        ",",
        "-",
        "&amp;",
        "é",
        "x",
        "8",
        "D",
        "'s",
        "s.",
        "hello",
        "World",
        "3.50",
        "\n",
        "\t",
        "http://a.b",
    ]
    drawn = random.Random(0)
    for _ in range(20_000):
        words = ["".join(drawn.choices(parts, k=drawn.choice((1, 1, 1, 2)))) for _ in range(drawn.randint(1, 6))]
        text = " ".join(words)
        expected = [token.text.lower().rstrip(" ") for token in whole(standardize_text(fix_text(text)))]
        assert word_splitter("spacy")(text) == expected


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


@pytest.mark.parametrize("tokens, text", [
    ("hello , how are you ? fine . great !", "hello, how are you? fine. great!"),
    ("i do n't know , it 's what we 've said and they 'd", "i don't know, it's what we've said and they'd"),
    ("don ' t , i ' m , she ' ll", "don't, i'm, she'll"),
    ("he said ' so ' and 's' n'ts", "he said ' so ' and's' n'ts"),
    ("wait ...", "wait..."),
])  # fmt: skip
def test_punctuation_is_joined(tokens, text):
    assert join_punctuation(tokens) == text


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
