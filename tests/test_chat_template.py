"""Chat templates taken apart: what is put together from pieces has the ids that the template itself gives the whole."""

import logging
import random
from unittest.mock import Mock

import pytest
from chat_families import (
    ALTERNATING,
    CHATML,
    DROPS_SYSTEM,
    FAMILIES,
    GEMMA,
    LOWERS,
    NO_END,
    QUOTES,
    THINKS,
    WITHOUT_SYSTEM,
    backend,
    chat_tokenizer,
    chatml,
    pieces,
)
from transformers import AutoTokenizer

from convai.errors import UserError
from convai.model.pretrained_tokenizer import PretrainedTokenizer

WORDS = [
    *(
        "hi",
        "so",
        "I",
        "it's",
        "don't",
        "42",
        "7:30",
        "1,000",
        "café",
        "Émile",
        "naïve",
        "😀",
        "👋🏽",
        "你好",
        "Привет",
    ),
    *(
        ".",
        "!",
        "?!",
        "...",
        ",",
        "…",
        "'",
        '"',
        "(so)",
        ":)",
        "-",
        "--",
        "&",
        "<b>",
        "</i>",
        "#1",
        "@",
        "%",
        "/",
        "\\",
    ),
    *("[x]", "{y}", "a.b", "so.\n", "\n", "\n\n", "  ", "\t", "\u00a0", "'s", "’", "“so”", "so▁so", "user", "system"),
]


def awkward_text(rng: random.Random) -> str:
    while True:
        words = rng.choices(WORDS, k=rng.randint(1, 8))
        if text := "".join(word + rng.choice(["", " ", " "]) for word in words).strip():
            return text


def awkward_dialogs(n: int, seed: int):
    """Yield personas, histories (long ones cut) and replies."""
    rng = random.Random(seed)
    for _ in range(n):
        persona = [awkward_text(rng) for _ in range(rng.randint(0, 4))]
        history = [awkward_text(rng) for _ in range(rng.randint(0, 8))]
        yield persona, history[-rng.choice([1, 3, 5, 9]) :], awkward_text(rng)


def expected_messages(family: str, persona: list[str], history: list[str]) -> list[dict[str, str]]:
    """The rules of the layout, written anew."""
    roles = ["user" if n % 2 else "assistant" for n in range(len(history), 0, -1)]
    messages = [{"role": role, "content": text} for role, text in zip(roles, history, strict=True)]
    user_opens = bool(messages) and messages[0]["role"] == "user"
    in_turn = bool(persona) and family in WITHOUT_SYSTEM
    if not user_opens and (in_turn or family in ALTERNATING or not (persona or history)):
        messages.insert(0, {"role": "user", "content": "..."})
    if in_turn:
        messages[0]["content"] = "\n".join(persona) + "\n\n" + messages[0]["content"]
    elif persona:
        messages.insert(0, {"role": "system", "content": "\n".join(persona)})
    return messages


def of_template(tokenizer: PretrainedTokenizer, messages, **settings) -> list[int]:
    return tokenizer.backend.apply_chat_template(messages, return_dict=False, **settings)


def context_of(tokenizer: PretrainedTokenizer, persona, history) -> list[int]:
    return tokenizer.template.context([*map(tokenizer.encode, persona)], [*map(tokenizer.encode, history)])


def load(family: str) -> PretrainedTokenizer:
    return PretrainedTokenizer(backend(family), "llama", "chat")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(family) -> PretrainedTokenizer:
    return load(family)


def test_ids_are_the_templates_own_on_dialogs_beyond_the_probes(family, tokenizer):
    for persona, history, reply in awkward_dialogs(200, seed=3):
        messages = expected_messages(family, persona, history)
        assert tokenizer.template.messages(persona, history) == messages
        context = context_of(tokenizer, persona, history)
        assert context == of_template(tokenizer, messages, add_generation_prompt=True), (persona, history)
        whole = of_template(tokenizer, [*messages, {"role": "assistant", "content": reply}])
        ours = [*context, *tokenizer.encode(reply), tokenizer.template.end_id]
        if family.startswith("llama2"):  # which writes a space before the end
            del whole[len(ours) - 1]
        assert whole[: len(ours)] == ours, (persona, history, reply)
        assert tokenizer.template.is_exact(persona, [*history, reply])


def test_control_tokens_in_what_people_say_are_text(family, tokenizer):
    control = ["<|im_end|>", "<|im_start|>system", "</s>", "<|eot_id|>", "<end_of_turn>", "<think>", "<|end|>", "<eos>"]
    written = set(tokenizer.template.written_ids) | set(tokenizer.backend.all_special_ids)
    assert tokenizer.template.end_id in written
    for text in control:
        texts = [f"so {text} hi", f"{text}", f"hi{text}so"]
        assert not written.intersection(*map(tokenizer.encode, texts))
        context = context_of(tokenizer, texts, texts)
        plain = context_of(tokenizer, ["so"] * 3, ["hi"] * 3)
        assert [i for i in context if i in written] == [i for i in plain if i in written]
        for told in texts:
            assert tokenizer.decode(tokenizer.encode(told)) == told


def test_tokens_that_the_template_writes_are_control_tokens_though_not_called_special():
    tokenizer = load("hybrid")
    thought = tokenizer.backend.convert_tokens_to_ids(["<think>", "</think>"])
    assert tokenizer.backend.encode("so <think>")[-1] == thought[0]  # the premise
    assert set(thought).isdisjoint(tokenizer.encode("so <think> hi </think>"))
    assert [
        i for i in context_of(tokenizer, ["<think>"], ["</think>"]) if i in thought
    ] == thought  # the template's own


def test_control_tokens_are_those_of_transformers_sanitizing():
    for family in ("chatml", "llama3", "hybrid", "chatml-qwen"):
        tokenizer = load(family)
        persona, history = ["so <|im_end|> so", "<|eot_id|> <think>"], ["<|im_start|>user hi", "</think> so", "hi"]
        messages = expected_messages(family, persona, history)
        settings = {"add_generation_prompt": True, "sanitize_control_tokens": True}
        # Where transformers cuts, around the token's text, a vocabulary may join more; ours joins, as with other text.
        ours, theirs = context_of(tokenizer, persona, history), of_template(tokenizer, messages, **settings)
        assert tokenizer._plain.decode(ours) == tokenizer._plain.decode(theirs)
        special = tokenizer.template.written_ids
        assert [i for i in ours if i in special] == [i for i in theirs if i in special]


def test_contexts_by_hand():
    def text(family, persona, history):
        tokenizer = load(family)
        return tokenizer._plain.decode(context_of(tokenizer, persona, history))

    default = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    ask = "<|im_start|>assistant\n"
    assert text("chatml", [], []) == default + "<|im_start|>user\n...<|im_end|>\n" + ask
    assert text("chatml", ["i ski .", "i sing ."], []) == "<|im_start|>system\ni ski .\ni sing .<|im_end|>\n" + ask
    assert text("chatml", [], ["hi", "ho"]) == (
        default + "<|im_start|>assistant\nhi<|im_end|>\n<|im_start|>user\nho<|im_end|>\n" + ask
    )
    assert text("gemma", ["i ski .", "i sing ."], ["hi"]) == (
        "<bos><start_of_turn>user\ni ski .\ni sing .\n\nhi<end_of_turn>\n<start_of_turn>model\n"
    )
    opened = "<bos><start_of_turn>user\n...<end_of_turn>\n<start_of_turn>model\n"
    assert text("gemma", [], []) == opened
    assert text("gemma", [], ["hi", "ho"]) == (
        opened + "hi<end_of_turn>\n<start_of_turn>user\nho<end_of_turn>\n<start_of_turn>model\n"
    )
    assert text("llama3", ["so"], ["hi"]) == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nso<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert text("llama2-first", ["so"], ["hi"]) == "<s>[INST] <<SYS>>\nso\n<</SYS>>\n\nhi [/INST]"


def test_sentences_that_join_with_their_line_break_are_encoded_in_context():
    tokenizer = load("chatml-qwen")
    joined = tokenizer.backend.convert_tokens_to_ids(".Ċ")  # the premise: the vocabulary has such a token
    assert joined is not None
    assert joined in context_of(tokenizer, ["I like it.", "I ski."], ["hi"])
    assert joined not in context_of(tokenizer, ["I like it."], ["I like it."])  # before a token nothing joins


def test_what_has_been_encoded_is_not_encoded_again(monkeypatch):
    for family, n_encoded in (("chatml", 0), ("chatml-qwen", 1)):  # the persona that is encoded in context, once
        tokenizer = load(family)
        encode = tokenizer.encode
        persona, turns = [encode("I ski."), encode("I sing.")], [encode("hi"), encode("so so"), encode("it's 7:30")]
        tokenizer.template.context(persona[::-1], turns)
        spy = Mock(wraps=tokenizer._plain.encode)
        monkeypatch.setattr(tokenizer._plain, "encode", spy)
        for history in (turns, turns[::-1], turns):
            tokenizer.template.context(persona, history)
        assert spy.call_count == n_encoded


def test_sentences_of_nothing_are_left_out_and_empty_turns_stay():
    tokenizer = load("chatml")
    assert context_of(tokenizer, ["", "so", ""], ["hi"]) == context_of(tokenizer, ["so"], ["hi"])
    assert context_of(tokenizer, [""], ["hi"]) == context_of(tokenizer, [], ["hi"])
    text = tokenizer._plain.decode(context_of(tokenizer, ["so"], ["hi", "", "ho"]))
    assert "<|im_start|>assistant\n<|im_end|>\n<|im_start|>user\nho" in text


def test_histories_far_longer_than_the_probes():
    for family in ("chatml-qwen", "gemma", "llama2-legacy"):
        tokenizer = load(family)
        persona, history = [f"so {n}." for n in range(15)], [f"hi {n} !" for n in range(40)]
        expected = of_template(tokenizer, expected_messages(family, persona, history), add_generation_prompt=True)
        assert context_of(tokenizer, persona, history) == expected


def test_a_template_that_can_think_is_asked_not_to_here_and_elsewhere(tmp_path):
    hybrid = load("hybrid")
    context = context_of(hybrid, [], ["hi"])
    assert hybrid._plain.decode(context).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    asking = {"conversation": [{"role": "user", "content": "hi"}], "add_generation_prompt": True, "return_dict": False}
    assert backend("hybrid").apply_chat_template(**asking, enable_thinking=False) == context
    assert backend("hybrid").apply_chat_template(**asking) != context  # the premise
    hybrid.save(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.apply_chat_template(**asking) == context
    thinking = backend("hybrid").apply_chat_template(**asking, enable_thinking=True)
    assert saved.apply_chat_template(**asking, enable_thinking=True) == thinking
    assert PretrainedTokenizer(saved, "llama", "chat").backend.chat_template == hybrid.backend.chat_template

    told = "\n  {{ 'think' if enable_thinking | default(true) else 'no' }}\n  {% if 1 %}so{% endif %}\n" + DROPS_SYSTEM
    asking["tokenize"] = False
    alone = chatml(told).apply_chat_template(**asking, enable_thinking=False)
    assert PretrainedTokenizer(chatml(told), "llama", "chat").backend.apply_chat_template(**asking) == alone
    assert load("chatml").backend.chat_template == CHATML


def test_a_template_whose_prompt_begins_a_thought_is_read_as_in_dialogs(caplog):
    with caplog.at_level(logging.WARNING):
        PretrainedTokenizer(chatml(), "llama", "chat")
        assert not caplog.records
        tokenizer = PretrainedTokenizer(chatml(THINKS), "llama", "chat")
    assert "asks for a reply otherwise" in caplog.text
    assert context_of(tokenizer, [], ["hi"]) == context_of(load("chatml"), [], ["hi"])


RAISES = "{{ raise_exception('No user query found.\nReally none.') }}"
REFUSED = {
    "changes what is said": (LOWERS, "it leaves out or changes what is said"),
    "changes marks only": (QUOTES, "cannot be built from persona and turns"),
    "ends no reply": (NO_END, "does not end a reply by a special token"),
    "takes nothing": (RAISES, "No user query found. Really none"),
    "is no template": ("{% for m in messages %}", "takes no dialog of"),
    "says nothing": ("<|im_start|>", "it leaves out or changes"),
    "says things twice": (CHATML.replace("+ m['content'] +", "+ m['content'] + ' ' + m['content'] +"), "leaves out or"),
    "takes parts alone": (CHATML.replace("m['content']", "m['content'][0]['text']"), "takes no dialog of"),
    "forgets long histories": (CHATML.replace("in messages %}", "in messages[-2:] %}"), "it leaves out"),
}


@pytest.mark.parametrize(("template", "reason"), REFUSED.values(), ids=REFUSED)
def test_templates_that_cannot_be_used_are_refused_in_one_line(template, reason):
    with pytest.raises(UserError) as error:
        PretrainedTokenizer(chatml(template), "llama", "chat")
    message = str(error.value)
    assert reason in message and message.endswith("give --layout speakers.") and "\n" not in message


def test_a_dialog_longer_than_the_template_takes_is_refused_when_it_comes():
    limited = "{% if messages | length > 12 %}{{ raise_exception('too long') }}{% endif %}" + CHATML
    tokenizer = PretrainedTokenizer(chatml(limited), "llama", "chat")
    assert context_of(tokenizer, [], ["hi"] * 11) == context_of(load("chatml"), [], ["hi"] * 11)
    with pytest.raises(UserError, match=r"takes no dialog of 12 turns and 0 sentences of persona \(too long\)"):
        context_of(tokenizer, [], ["hi"] * 12)


def test_a_vocabulary_that_cannot_be_built_from_parts_is_refused():
    """Characters that the vocabulary lacks are lost where text must be encoded anew out of ids."""
    tokenizer = pieces(["<unk>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>"], "legacy")
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    lossy = GEMMA.replace("'<start_of_turn>'", "'so '").replace("m['content'] | trim", "'so ' + m['content'] | trim")
    assert PretrainedTokenizer(chat_tokenizer(tokenizer, lossy, **roles), "gemma", "chat")
    tokenizer.model.byte_fallback = False
    with pytest.raises(UserError, match="cannot be built from persona and turns"):
        PretrainedTokenizer(chat_tokenizer(tokenizer, lossy, **roles), "gemma", "chat")
