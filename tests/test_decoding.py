"""Decoding: the key/value cache, batches, where replies end, n-grams that may not come twice, streaming, settings."""

from itertools import pairwise

import pytest
import slow_decoding
import torch
from conftest import TEXTS
from slow_decoding import GREEDY, model_that_ends, prompt_of, slow_greedy, talkative_model
from transformers import DynamicCache

from bench import reference
from convai.data.inputs import InputBuilder
from convai.dialog.beam_search import Generator
from convai.dialog.decoding import DecodingSettings, generate_replies

model = slow_decoding.model
slow_model = slow_decoding.slow_model
prompts = slow_decoding.prompts
abc_tokenizer = slow_decoding.abc_tokenizer


# The cache, batches and ends


def test_cached_logits_equal_those_of_full_passes_over_several_turns(tokenizer, model, slow_model):
    """Two rows, one padded by 3 on the left, on one cache: a prompt, single tokens and whole turns."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(tokenizer.n_vocab, (2, 30), generator=generator)
    types = torch.randint(tokenizer.n_vocab, (2, 30), generator=generator)
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[1, :3] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache, start = DynamicCache(), 0
    for length in (7, 1, 1, 9, 1, 11):
        new, seen = slice(start, start + length), slice(0, start + length)
        with torch.inference_mode():
            cached = Generator(model)(ids[:, new], types[:, new], positions[:, new], mask[:, seen], cache)
            full = Generator(model)(ids[:, seen], types[:, seen], positions[:, seen], mask[:, seen])
        torch.testing.assert_close(cached.logits, full.logits, atol=1e-5, rtol=1e-5)
        for row, n_padding in enumerate((0, 3)):
            alone = {"input_ids": ids[row, n_padding : seen.stop].tolist()}
            alone["token_type_ids"] = types[row, n_padding : seen.stop].tolist()
            slow = reference.next_token_logits(slow_model, alone)
            torch.testing.assert_close(cached.logits[row, 0], slow, atol=1e-4, rtol=1e-4)
        start = seen.stop


def test_greedy_with_the_cache_equals_greedy_without(tokenizer, model, slow_model, prompts):
    replies = [generate_replies(model, tokenizer, [prompt], GREEDY)[0] for prompt in prompts]
    assert replies == [slow_greedy(slow_model, tokenizer, prompt, GREEDY) for prompt in prompts]
    assert len({token for reply in replies for token in reply}) > 4


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "no_repeat_ngram_size": 2}])
def test_batched_replies_equal_single_ones(tokenizer, model, prompts, options):
    settings = DecodingSettings(no_sample=True, **options)
    together = generate_replies(model, tokenizer, prompts, settings)
    assert together == [generate_replies(model, tokenizer, [prompt], settings)[0] for prompt in prompts]
    assert len(set(map(tuple, together))) == len(prompts)


@pytest.mark.parametrize("name", ["<eos>", "<pad>"])
def test_a_special_token_ends_the_reply_but_not_before_min_length(tokenizer, model, name):
    prompt = prompt_of(tokenizer, TEXTS[0])
    free = model_that_ends(tokenizer, model, prompt, tokenizer.special_ids[name], at=4)
    end = free.index(free[4])
    assert generate_replies(model, tokenizer, [prompt], GREEDY)[0] == free[:end]
    longer = DecodingSettings(no_sample=True, max_length=12, min_length=end + 1)
    assert generate_replies(model, tokenizer, [prompt], longer)[0][: end + 1] == free[: end + 1]


@pytest.mark.parametrize("options", [{"no_sample": True}, {}, {"num_beams": 3}])
def test_length_limits(tokenizer, model, prompts, options):
    exact = DecodingSettings(min_length=9, max_length=9, **options)
    assert list(map(len, generate_replies(model, tokenizer, prompts, exact))) == [9] * 4


@pytest.mark.parametrize("options", [{"no_sample": True}, {"num_beams": 2}])
def test_a_reply_ends_at_the_models_last_position(tokenizer, options):
    prompt = prompt_of(tokenizer, TEXTS[0])
    length = len(prompt.input_ids)
    settings = DecodingSettings(min_length=8, **options)
    for n_positions, n_said in ((length, 1), (length + 3, 4)):  # the last token takes no position
        model = talkative_model(tokenizer, n_positions=n_positions)
        assert len(generate_replies(model, tokenizer, [prompt], settings)[0]) == n_said


# n-grams


def ngrams(tokens: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_ngrams_of_the_reply_are_blocked_and_those_of_the_prompt_are_not(tokenizer, model, slow_model, n):
    free = DecodingSettings(no_sample=True, max_length=25, min_length=25)
    blocked = DecodingSettings(no_sample=True, max_length=25, min_length=25, no_repeat_ngram_size=n)
    prompt = next(
        prompt
        for prompt in (prompt_of(tokenizer, text, persona="") for text in TEXTS)
        if len(set(ngrams(generate_replies(model, tokenizer, [prompt], free)[0], n))) < 26 - n
    )
    reply = generate_replies(model, tokenizer, [prompt], blocked)[0]
    assert len(set(ngrams(reply, n))) == 26 - n
    assert reply == slow_greedy(slow_model, tokenizer, prompt, blocked)
    # The same with all of that in the prompt: blocking looks at the reply alone.
    quoting = InputBuilder(tokenizer, 1000).prompt([reply], [tokenizer.encode(TEXTS[0])])
    said = generate_replies(model, tokenizer, [quoting], blocked)[0]
    assert said == slow_greedy(slow_model, tokenizer, quoting, blocked)
    if n == 1:
        assert {*said} & {*quoting.input_ids}


def test_ngrams_are_blocked_in_beams(tokenizer, model, prompts):
    settings = DecodingSettings(num_beams=3, no_repeat_ngram_size=2, min_length=25, max_length=25)
    for reply in generate_replies(model, tokenizer, prompts, settings):
        assert len(set(pairwise(reply))) == 24


def test_where_everything_is_blocked_nothing_is(abc_tokenizer):
    model = talkative_model(abc_tokenizer)
    prompt = InputBuilder(abc_tokenizer, 1000).prompt([], [[1]])
    for options in ({}, {"no_sample": True}, {"num_beams": 2}):
        settings = DecodingSettings(no_repeat_ngram_size=1, min_length=20, max_length=20, **options)
        assert len(generate_replies(model, abc_tokenizer, [prompt], settings)[0]) == 20


# Streaming, stopping, settings


def test_tokens_stream_as_they_are_chosen_and_can_be_stopped(tokenizer, model):
    prompt = prompt_of(tokenizer, TEXTS[0])
    seen: list[int] = []
    whole = generate_replies(model, tokenizer, [prompt], GREEDY, seen.append)[0]
    assert seen == whole
    seen.clear()
    part = generate_replies(model, tokenizer, [prompt], GREEDY, seen.append, should_stop=lambda: len(seen) >= 3)[0]
    assert part == seen == whole[:4]  # asked before the stream sees the token


def test_a_beam_search_can_be_stopped(tokenizer, model, prompts):
    asked = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) == 3

    settings = DecodingSettings(num_beams=2, max_length=50, min_length=50)
    reply = generate_replies(model, tokenizer, prompts[:1], settings, should_stop=should_stop)[0]
    assert len(reply) == len(asked) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature must be from 0.01 to 100, not 0"),
        ({"temperature": float("nan")}, "temperature must be .* not nan"),
        ({"top_p": 1.5}, "top_p must be from 0 to 1, not 1.5"),
        ({"top_k": -1}, "top_k must be .* not -1"),
        ({"num_beams": 0}, "num_beams must be .* not 0"),
        ({"max_length": 0}, "max_length must be .* not 0"),
        ({"length_penalty": float("inf")}, "length_penalty must be .* not inf"),
        ({"min_length": 21}, "min_length 21 is above max_length 20"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DecodingSettings(**options)
