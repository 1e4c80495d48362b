"""Tokenizers of transformers in both layouts: text to ids and back, dialog tokens, files, workers, what is refused."""

import json
import multiprocessing
import pickle

import pytest
from chat_families import (
    CHATML,
    FAMILIES,
    NO_END,
    THINKS,
    backend,
    byte_level,
    chat_tokenizer,
    chatml,
    gemma,
    llama2,
)
from conftest import TEXTS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from convai.errors import UserError
from convai.model.loading import load_tokenizer
from convai.model.pretrained_tokenizer import PlainText, PretrainedTokenizer, load_pretrained_tokenizer
from convai.model.vocabulary import SPECIAL_TOKENS

AWKWARD = [*TEXTS, "Émile 😀, so?!", "a  b", "line\nline", "<|im_end|> <speaker1></s><eos>", '7:30 - "so"', "你好 👋🏽"]


def load(made: PreTrainedTokenizerFast, layout: str) -> PretrainedTokenizer:
    return PretrainedTokenizer(made, "llama", layout)


@pytest.fixture(scope="module", params=[(family, layout) for family in FAMILIES for layout in ("chat", "speakers")],
                ids=lambda pair: "-".join(pair))  # fmt: skip
def tokenizer(request) -> PretrainedTokenizer:
    family, layout = request.param
    return load(backend(family), layout)


def test_text_comes_back_and_special_tokens_in_it_are_text(tokenizer):
    # What the template's own text is made of is never said by anyone.
    special = tokenizer.ending_ids | {*tokenizer.special_ids.values(), *tokenizer.backend.all_special_ids}
    for text in AWKWARD:
        ids = tokenizer.encode(f" {text}\n")
        assert ids == tokenizer.encode(text)
        assert special.isdisjoint(ids)
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode([*tokenizer.ending_ids, *ids, tokenizer.eos_id]) == text
    assert tokenizer.encode(" \n ") == [] and tokenizer.decode([]) == ""
    assert tokenizer.decode(tokenizer.encode("so \ud83d\ude00 \ud83d")) == "so 😀 \ufffd"  # half a pair is no character


def test_the_pieces_of_a_text_are_one_for_each_token_and_make_it_up(tokenizer):
    for text in AWKWARD:
        ids = [*tokenizer.encode(text), *tokenizer.encode(" so"), tokenizer.eos_id]
        pieces = tokenizer.pieces(ids)
        assert len(pieces) == len(ids)
        assert "".join(pieces[:-1]).replace(" ", "") == f"{text}so".replace(" ", "")
        assert pieces[-1] == tokenizer.token(tokenizer.eos_id)
    assert tokenizer.pieces([]) == []


def test_every_id_is_one_of_the_vocabulary(tokenizer):
    ids = {i for text in AWKWARD for i in tokenizer.encode(text)} | tokenizer.ending_ids | {tokenizer.pad_id}
    assert max(ids) < len(tokenizer) == len(tokenizer.tokens)
    assert all(tokenizer.token(i) for i in ids)
    assert tokenizer.token(len(tokenizer)) is None


def test_ids_outlast_whatever_else_the_tokenizer_is_used_for(tokenizer):
    before = [tokenizer.encode(text) for text in AWKWARD]
    tokenizer.backend("so <|im_end|>", truncation=True, max_length=3)
    if tokenizer.template:
        tokenizer.backend.apply_chat_template([{"role": "user", "content": "so"}])
        tokenizer.template.check()
    assert [tokenizer.encode(text) for text in AWKWARD] == before


def test_a_pickled_tokenizer_is_the_same(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert [copy.encode(text) for text in AWKWARD] == [tokenizer.encode(text) for text in AWKWARD]
    assert (copy.fingerprint, copy.ending_ids, len(copy)) == (
        tokenizer.fingerprint,
        tokenizer.ending_ids,
        len(tokenizer),
    )
    if tokenizer.template:
        pieces = [[tokenizer.encode(text) for text in AWKWARD[:5]], [tokenizer.encode(text) for text in AWKWARD[5:11]]]
        assert copy.template.context(*pieces) == tokenizer.template.context(*pieces)


def encode_elsewhere(tokenizer, texts):
    return [tokenizer.encode(text) for text in texts]


def test_a_worker_that_is_spawned_encodes_alike():
    tokenizer = load(chatml(), "chat")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(encode_elsewhere, (tokenizer, AWKWARD)) == encode_elsewhere(tokenizer, AWKWARD)


def save_checkpoint(tokenizer, folder, **config):
    folder.mkdir()
    tokenizer.save(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": tokenizer.family, **config}))
    return folder


def test_saved_and_loaded_it_gives_the_same_ids_in_the_same_layout(tokenizer, tmp_path):
    folder = save_checkpoint(tokenizer, tmp_path / "saved")
    for recorded in ({}, {"layout": tokenizer.layout}):
        (folder / "config.json").write_text(json.dumps({"model_type": "llama", **recorded}))
        again = load_tokenizer(folder)
        assert (again.layout, again.fingerprint, len(again)) == (
            tokenizer.layout,
            tokenizer.fingerprint,
            len(tokenizer),
        )
        assert [again.encode(text) for text in AWKWARD] == [tokenizer.encode(text) for text in AWKWARD]
        assert (again.special_ids, again.eos_id, again.pad_id) == (
            tokenizer.special_ids,
            tokenizer.eos_id,
            tokenizer.pad_id,
        )
        assert again.new_tokens == ()  # whatever was added is known now


def test_fingerprints_differ_by_layout_and_by_vocabulary(tmp_path):
    made = chatml(pad_token="<|endoftext|>")
    made.add_tokens(list(SPECIAL_TOKENS), special_tokens=True)  # the same vocabulary for both
    made.save_pretrained(tmp_path)
    chat, speakers = (load_pretrained_tokenizer(tmp_path, "llama", layout) for layout in ("chat", "speakers"))
    other = load(backend("chatml-qwen"), "chat")
    assert len({chat.fingerprint, speakers.fingerprint, other.fingerprint}) == 3
    assert load_pretrained_tokenizer(tmp_path, "llama", "chat").fingerprint == chat.fingerprint


def test_the_chat_layout_adds_nothing():
    tokenizer = load(backend("chatml"), "chat")
    assert (tokenizer.new_tokens, tokenizer.special_ids, tokenizer.n_recorded) == ((), {}, len(tokenizer))
    assert len(tokenizer) == len(backend("chatml"))
    assert tokenizer.token(tokenizer.eos_id) == "<|im_end|>" and tokenizer.token(tokenizer.pad_id) == "<|endoftext|>"
    assert not hasattr(tokenizer, "speaker1_id")
    assert load(chatml(pad_token=None), "chat").pad_id == tokenizer.eos_id


def test_replies_end_where_another_turn_would_begin():
    def ending(made, layout="chat"):
        tokenizer = load(made, layout)
        return {tokenizer.token(i) for i in tokenizer.ending_ids}

    assert ending(chatml()) == {"<|im_end|>", "<|im_start|>"}
    assert ending(chatml(eos_token="<|endoftext|>")) == {"<|im_end|>", "<|im_start|>", "<|endoftext|>"}
    assert ending(gemma()) == {"<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>"}
    assert ending(chatml(), "speakers") == {"<|im_end|>", *SPECIAL_TOKENS}


def test_speakers_tokens_follow_the_vocabulary():
    tokenizer = load(backend("chatml"), "speakers")
    n = len(backend("chatml"))
    assert tokenizer.new_tokens == SPECIAL_TOKENS and tokenizer.n_recorded == n
    assert tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS) == [*range(n, n + 5)]
    assert tokenizer.backend.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [*range(n, n + 5)]
    assert len(tokenizer) == n + 5
    assert tokenizer.eos_id == n + 1  # the paper's, though the tokenizer has an end of text


def test_dialog_tokens_that_a_vocabulary_has_are_used():
    tokenizer = load(gemma(), "speakers")
    n = len(gemma())
    assert tokenizer.new_tokens == ("<speaker1>", "<speaker2>")
    known = gemma().get_vocab()
    assert tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS) == [known["<bos>"], known["<eos>"], n, n + 1, known["<pad>"]]
    assert len(tokenizer) == n + 2


def test_a_vocabulary_with_gaps_takes_no_dialog_tokens():
    vocab = {"a": 0, "b": 7}  # tokenizers would give the next token the number 2
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab, [])))
    with pytest.raises(UserError, match=r"has gaps in its numbers, .* give --layout chat"):
        load(made, "speakers")


def test_words_of_the_speakers_layout_are_words_within_text():
    for made in (chatml(), backend("llama3"), gemma(), llama2("first"), llama2("legacy"), byte_level_with_space()):
        tokenizer = load(made, "speakers")
        tokens = [tokenizer.token(i) for i in tokenizer.encode("you like you")]
        assert tokens[0] in ("Ġyou", "▁you") and tokens[0] == tokens[-1]
        assert tokenizer.encode_within("you") == tokenizer.encode("you") == tokenizer.encode("hi you")[-1:]


def byte_level_with_space() -> PreTrainedTokenizerFast:
    return chat_tokenizer(byte_level(["<eos>"], add_prefix_space=True), None, eos_token="<eos>")


def test_words_of_the_chat_layout_begin_as_the_template_has_them():
    def first(family):
        tokenizer = load(backend(family), "chat")
        assert tokenizer.token(tokenizer.encode_within("you")[0]) in ("Ġyou", "▁you")
        return tokenizer.token(tokenizer.encode("you")[0])

    bare = load(backend("chatml"), "chat").token(load(backend("chatml"), "chat").encode("you")[0])
    assert not bare.startswith("Ġ")
    assert first("chatml") == bare
    assert first("spaced") == "Ġyou"
    assert first("llama2-first") == first("llama2-legacy") == first("phi3") == "▁you"
    assert not first("zephyr-legacy").startswith("▁")


def test_tokens_that_begin_words():
    for family, space in (("chatml", "Ġ"), ("gemma", "▁")):
        tokenizer = load(backend(family), "chat")
        assert all(map(tokenizer.begins_word, (f"{space}you", ".", "?!", tokenizer.token(tokenizer.eos_id))))
        assert not any(map(tokenizer.begins_word, ("you", "ou", "'s")))


def test_what_is_unknown_to_a_vocabulary():
    assert (
        load(chatml(unk_token="<|endoftext|>"), "chat").unknown_id is None
    )  # as SmolLM2 calls it, though it has bytes
    assert load(llama2("first"), "chat").unknown_id is None
    assert load(chatml(unk_token="<|endoftext|>"), "chat").lost_share("😀", [0, 0]) == 0.0

    words = {"<unk>": 0, "so": 1, "hi": 2}
    by_words = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    by_words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = load(PreTrainedTokenizerFast(tokenizer_object=by_words, unk_token="<unk>"), "speakers")
    assert tokenizer.unknown_id == 0
    ids = tokenizer.encode("so 😀 hi there")
    assert ids == [1, 0, 2, 0] and tokenizer.lost_share("so 😀 hi there", ids) == 0.5


def test_what_a_vocabulary_without_an_unknown_token_leaves_out_is_lost():
    letters = {letter: number for number, letter in enumerate("abcdefgh")}
    tokenizer = load(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(letters, []))), "speakers")
    assert tokenizer.unknown_id is None
    assert tokenizer.lost_share("head", tokenizer.encode("head")) == 0.0
    assert tokenizer.lost_share("xyzh", tokenizer.encode("xyzh")) == 0.75
    assert tokenizer.lost_share("xy z", tokenizer.encode("xy z")) == 1.0


def test_a_file_that_cuts_and_pads_text_does_neither_here(tmp_path):
    made = chatml()
    made.backend_tokenizer.enable_truncation(3)
    made.backend_tokenizer.enable_padding(length=30)
    tokenizer = load(made, "chat")
    assert tokenizer.decode(tokenizer.encode(TEXTS[1])) == TEXTS[1]
    assert tokenizer.encode(TEXTS[1]) == load(chatml(), "chat").encode(TEXTS[1])


def test_the_mark_between_spans_cannot_be_typed():
    plain = PlainText(byte_level([]).to_str())
    mark = "\U000f5cc7cut\U000f5cc7"
    assert plain.encode(f"so{mark} hi") == plain.encode("so hi")
    assert plain.encode(f"so{mark} hi", is_start=False) == plain.encode("so hi")


class TestLoading:
    def save(self, made, folder):
        made.save_pretrained(folder)
        return folder

    def test_the_layout_is_chat_where_there_is_a_template(self, tmp_path):
        assert load_pretrained_tokenizer(self.save(chatml(), tmp_path / "a"), "llama", None).layout == "chat"
        assert load_pretrained_tokenizer(tmp_path / "a", "llama", "speakers").layout == "speakers"
        assert load_pretrained_tokenizer(self.save(chatml(None), tmp_path / "b"), "llama", None).layout == "speakers"
        with pytest.raises(UserError, match="has no chat template; give --layout speakers"):
            load_pretrained_tokenizer(tmp_path / "b", "llama", "chat")

    def test_a_template_that_cannot_be_used_is_refused_but_not_for_speakers(self, tmp_path):
        folder = self.save(chatml(NO_END), tmp_path)
        with pytest.raises(UserError, match="does not end a reply"):
            load_pretrained_tokenizer(folder, "llama", None)
        assert load_pretrained_tokenizer(folder, "llama", "speakers").encode("so")

    def test_of_several_templates_the_default_counts(self, tmp_path):
        made = chatml({"default": CHATML, "tool_use": THINKS})
        tokenizer = load_pretrained_tokenizer(self.save(made, tmp_path), "llama", None)
        alone = load(chatml(), "chat")
        context = tokenizer.template.context([], [tokenizer.encode("hi")])
        assert context == alone.template.context([], [alone.encode("hi")])

    def test_several_templates_without_a_default_are_refused(self, tmp_path):
        folder = self.save(chatml({"rag": CHATML, "tool_use": THINKS}), tmp_path)
        with pytest.raises(UserError, match="give --layout speakers") as error:
            load_pretrained_tokenizer(folder, "llama", None)
        assert "\n" not in str(error.value)
        assert load_pretrained_tokenizer(folder, "llama", "speakers").encode("so")

    @pytest.mark.parametrize("has_pipeline", [True, False])
    def test_code_of_a_checkpoint_is_never_run(self, tmp_path, has_pipeline):
        self.save(chatml(), tmp_path)
        if not has_pipeline:
            (tmp_path / "tokenizer.json").unlink()
        config = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        (tmp_path / "own.py").write_text("raise SystemExit('code of the checkpoint was run')")
        with pytest.raises(UserError, match="it needs code of its own, which is never run") as error:
            load_pretrained_tokenizer(tmp_path, "llama", None)
        assert "\n" not in str(error.value)

    def test_files_that_cannot_be_read_are_named_in_one_line(self, tmp_path):
        with pytest.raises(UserError, match=f"{tmp_path}: its tokenizer cannot be read") as error:
            load_pretrained_tokenizer(tmp_path, "llama", None)
        assert "\n" not in str(error.value)
        self.save(chatml(), tmp_path)
        (tmp_path / "tokenizer.json").write_text("{")
        with pytest.raises(UserError, match="its tokenizer cannot be read") as error:
            load_pretrained_tokenizer(tmp_path, "llama", None)
        assert "\n" not in str(error.value)
