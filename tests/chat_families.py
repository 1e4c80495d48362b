"""Tiny tokenizers and chat templates in the style of the families that people use, for the tests of layouts."""

import json
from functools import cache

from conftest import TEXTS
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# Qwen's and, but for the number of digits, Llama 3's: marks take the line breaks behind them along.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

_TURN = "'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'"
_ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ " + _TURN + " }}{% endfor %}" + _ASK
)
DROPS_SYSTEM = "{% for m in messages if m['role'] != 'system' %}{{ " + _TURN + " }}{% endfor %}" + _ASK
LOWERS = CHATML.replace("m['content']", "m['content'] | lower")
LOWERS_SYSTEM = CHATML.replace("m['content']", "(m['content'] | lower if m['role'] == 'system' else m['content'])")
QUOTES = CHATML.replace("m['content']", "m['content'] | replace('\"', \"''\")")
QWEN3 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and not loop.last %}"
    "{{ '<|im_start|>assistant\n' + m['content'].split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}"
    "{% else %}{{ " + _TURN + " }}{% endif %}{% endfor %}" + _ASK
)
# The last reply has an empty thought, and so has the prompt where thinking is switched off.
HYBRID = (
    "{% for m in messages %}{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + m['content'] + '<|im_end|>\n' }}"
    "{% else %}{{ " + _TURN + " }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
THINKS = CHATML.replace("'<|im_start|>assistant\n' }}{% endif %}", "'<|im_start|>assistant\n<think>\n' }}{% endif %}")
_ALTERNATES = (
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/...') }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}" + _ALTERNATES + "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set others = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set others = messages %}{% set system = false %}{% endif %}"
    "{% for m in others %}" + _ALTERNATES + "{% set content = m['content'] %}{% if loop.first and system %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + content %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' %}{{ bos_token + content if loop.first else content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ZEPHYR = (  # as TinyLlama's: roles are no tokens, the end of text ends every turn
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
PHI3 = (  # whose tokens swallow the white space behind them
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
SPACED = (  # a space before what the agent says, none in its prompt
    "{% for m in messages %}{{ ' ' + m['content'] + '<|endoftext|>' if m['role'] == 'assistant' else "
    "'[INST]' + m['content'] + '[/INST]' }}{% endfor %}"
)
NO_END = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def _corpus() -> list[str]:
    """Few texts over and over, so that marks and the line breaks behind them become one token."""
    return [
        *TEXTS,
        "user\nassistant\nsystem\n",
        "so.\nso!\nso?\n so )\nso.\n\nhi.\n\n",
        "I like it.\nI'm 42!\nWhy?\n",
    ] * 4


def byte_level(special: list[str], pattern: str | None = None, add_prefix_space: bool = False) -> Tokenizer:
    """Bytes as in GPT-2 and SmolLM2, or with words by `pattern` as in Qwen and Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    if pattern:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, by_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


def pieces(special: list[str | AddedToken], scheme: str) -> Tokenizer:
    """SentencePiece's: by `scheme` ▁ begins an input ("first"), text behind any token ("legacy"), or none ("never")."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    lines = [line for text in _corpus() for line in text.splitlines()]  # a line break is a byte, never part of a word
    trained.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if scheme == "first":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        begin = [normalizers.Prepend("▁")] if scheme == "legacy" else []
        tokenizer.normalizer = normalizers.Sequence([*begin, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if scheme != "never" else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.add_special_tokens(special)
    return tokenizer


def chat_tokenizer(tokenizer: Tokenizer, template: str | None, **roles: str) -> PreTrainedTokenizerFast:
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles)
    wrapped.chat_template = template
    return wrapped


def chatml(template: str | None = CHATML, pattern: str | None = None, **roles: str) -> PreTrainedTokenizerFast:
    roles = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"} | roles
    return chat_tokenizer(byte_level(CHATML_TOKENS, pattern), template, **roles)


def thinking(template: str) -> PreTrainedTokenizerFast:
    tokenizer = byte_level(CHATML_TOKENS, QWEN_WORDS)
    tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    return chat_tokenizer(tokenizer, template, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def llama2(scheme: str, template: str = LLAMA2) -> PreTrainedTokenizerFast:
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return chat_tokenizer(pieces(["<unk>", "<s>", "</s>"], scheme), template, **roles)


def gemma() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = pieces(special, "never")
    tokenizer.add_tokens([AddedToken("\n" * n, normalized=False) for n in (1, 2, 3)])
    roles = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return chat_tokenizer(tokenizer, GEMMA, **roles)


def llama3() -> PreTrainedTokenizerFast:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    roles = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    return chat_tokenizer(byte_level(special, QWEN_WORDS), LLAMA3, **roles)


def phi3() -> PreTrainedTokenizerFast:
    turns = [AddedToken(token, rstrip=True) for token in ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")]
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return chat_tokenizer(pieces(["<unk>", "<s>", "</s>", *turns], "legacy"), PHI3, **roles)


_MAKERS = {
    "chatml": chatml,
    "chatml-qwen": lambda: chatml(pattern=QWEN_WORDS),
    "drops-system": lambda: chatml(DROPS_SYSTEM),
    "lowers-system": lambda: chatml(LOWERS_SYSTEM),
    "gemma": gemma,
    "llama2-first": lambda: llama2("first"),
    "llama2-legacy": lambda: llama2("legacy"),
    "llama3": llama3,
    "qwen3": lambda: thinking(QWEN3),
    "hybrid": lambda: thinking(HYBRID),
    "zephyr-first": lambda: llama2("first", ZEPHYR),
    "zephyr-legacy": lambda: llama2("legacy", ZEPHYR),
    "zephyr-bytes": lambda: chatml(ZEPHYR),
    "phi3": phi3,
    "spaced": lambda: chatml(SPACED),
}
FAMILIES = list(_MAKERS)
WITHOUT_SYSTEM = {"drops-system", "lowers-system", "gemma"}
ALTERNATING = {"gemma", "llama2-first", "llama2-legacy"}


@cache
def _content(family: str) -> tuple[str, dict[str, str]]:
    made = _MAKERS[family]()
    return made.backend_tokenizer.to_str(), dict(made.special_tokens_map) | {"chat_template": made.chat_template}


def backend(family: str) -> PreTrainedTokenizerFast:
    """Return a fresh tokenizer of a family, as tests may change it."""
    pipeline, settings = _content(family)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(pipeline), **settings)
