"""Rows in flight: what one says is what transformers' generation says for it alone, whoever comes and goes."""

import copy
import random

import pytest
import speakers
import torch
from conftest import TEXTS
from torch import Tensor
from transformers_replies import transformers_replies

from convai.data.inputs import InputBuilder, Prompt
from convai.dialog.batch_decoder import BatchDecoder, ReplyRequest
from convai.dialog.decoding import generate_replies
from convai.dialog.prefix_memory import PrefixMemory
from convai.model import row_cache
from convai.model.quantization import lower_precision
from convai.options import DecodingSettings

speaker = speakers.speaker
SETTINGS = [
    DecodingSettings(no_sample=True, max_length=12),
    DecodingSettings(max_length=9, min_length=3),
    DecodingSettings(temperature=1.5, top_p=0, top_k=7, max_length=14),
    DecodingSettings(temperature=2, top_p=0.95, top_k=30, max_length=20, no_repeat_ngram_size=1, min_length=20),
    DecodingSettings(no_sample=True, max_length=16, min_length=16, no_repeat_ngram_size=2),
    DecodingSettings(temperature=0.8, top_p=1, max_length=1),
]


@pytest.fixture
def prompts(speaker) -> list[Prompt]:
    """Prompts of unlike length, most of them longer than the window."""
    model, tokenizer = speaker
    builder = InputBuilder(tokenizer, model.config.n_positions)
    turns = [TEXTS[:1], TEXTS[:3], TEXTS[2:3], [""], TEXTS[:5], TEXTS[3:4]]
    encoded = [list(map(tokenizer.encode, some)) for some in turns]
    return [builder.prompt([tokenizer.encode(TEXTS[5 + i % 3])][: i % 4], some) for i, some in enumerate(encoded)]


@pytest.fixture
def requests(prompts) -> list[ReplyRequest]:
    return [
        ReplyRequest(prompt, settings, seed)
        for seed in (1, 2)
        for i, prompt in enumerate(prompts)
        for settings in (SETTINGS[i], SETTINGS[(i + seed) % len(SETTINGS)])
    ]


def alone(speaker, requests: list[ReplyRequest]) -> list[list[int]]:
    return [transformers_replies(*speaker, [one.prompt], one.settings, one.seed)[0] for one in requests]


def run_in_turns(decoder: BatchDecoder, requests: list[ReplyRequest], rng: random.Random) -> list[list[int]]:
    """Admit the requests in random order, a few at a time, between steps; some of them twice, to be dropped again."""
    waiting = rng.sample(range(len(requests)), len(requests))
    number_of: dict[int, int] = {}
    dropped, replies = set(), [[] for _ in requests]
    while waiting or decoder.n_rows:
        if waiting and rng.random() < 0.6:
            some = [waiting.pop() for _ in range(min(len(waiting), rng.randint(1, 4)))]
            number_of |= dict(zip(decoder.admit([requests[i] for i in some]), some, strict=True))
            if rng.random() < 0.5:
                dropped |= set(decoder.admit([requests[i] for i in some]))
        for key in [key for key in dropped if rng.random() < 0.3]:
            decoder.drop(key)
            dropped.remove(key)
        for key, token, end in decoder.step():
            if key in number_of and token is not None:
                replies[number_of[key]].append(token)
            if end:
                dropped.discard(key)
    return replies


@pytest.mark.parametrize("seed", range(4))
def test_what_a_row_says_does_not_depend_on_who_comes_and_goes(speaker, requests, seed, monkeypatch):
    monkeypatch.setattr(row_cache, "ROOM", [2, 64][seed % 2])
    memory = PrefixMemory(4) if seed > 1 else None
    decoder = BatchDecoder(*speaker, memory)
    assert run_in_turns(decoder, requests, random.Random(seed)) == alone(speaker, requests)
    assert decoder.n_rows == 0


def test_replies_without_a_seed_are_drawn_as_by_transformers(speaker, prompts):
    for settings in SETTINGS:
        torch.manual_seed(3)
        expected = transformers_replies(*speaker, prompts[:1], settings)
        torch.manual_seed(3)
        assert generate_replies(*speaker, prompts[:1], settings) == expected


def test_a_prompt_that_comes_many_times_is_read_once(speaker, prompts):
    requests = [ReplyRequest(prompts[i], SETTINGS[3], seed) for i, seed in ((0, 1), (1, 1), (0, 2), (0, 3), (1, 2))]
    decoder = BatchDecoder(*speaker)
    keys = decoder.admit(requests)
    assert decoder.n_tokens_read == sum(len(prompt.input_ids) for prompt in prompts[:2])
    replies = {key: [] for key in keys}
    while decoder.n_rows:
        for key, token, _ in decoder.step():
            replies[key] += [] if token is None else [token]
    assert list(replies.values()) == alone(speaker, requests)


@pytest.mark.gpu
def test_a_gpu_says_what_a_cpu_does(speaker, requests):
    model, tokenizer = speaker
    greedy = [request for request in requests if request.settings.no_sample]
    decoder = BatchDecoder(copy.deepcopy(model).to("cuda"), tokenizer)
    assert run_in_turns(decoder, greedy, random.Random(0)) == alone(speaker, greedy)


def test_a_row_that_has_ended_is_gone(speaker, prompts):
    decoder = BatchDecoder(*speaker)
    (key,) = decoder.admit([ReplyRequest(prompts[0], DecodingSettings(no_sample=True, max_length=2, min_length=2))])
    assert decoder.n_rows == 1
    assert [said.end for said in decoder.step()] == [None]
    assert [said.end for said in decoder.step()] == ["length"]
    assert decoder.n_rows == 0 and decoder.step() == []
    with pytest.raises(KeyError):
        decoder.drop(key)


# By how much of its largest logit a row's may differ in a batch. int8 of GPT and GPT-2 rounds what comes in by a scale
# for the whole batch; that of others does not (see int8_weights.py).
TOLERANCE = {"fp32": 1e-5, "bf16": 0.02, "int8": 0.1}


@pytest.mark.parametrize("precision", TOLERANCE)
def test_logits_in_a_batch_are_those_alone_within_a_tolerance(speaker, prompts, precision):
    model, tokenizer = speaker
    model = lower_precision(copy.deepcopy(model), precision, lambda _: 0.0)
    seen: dict[tuple, Tensor] = {}
    differences = []

    class Recorder(BatchDecoder):
        def _choose(self, logits):
            for row, found in zip(self._batch.rows, logits.float(), strict=True):
                if (said := (id(row.request), *row.reply)) in seen:
                    differences.append(float((found - seen[said]).abs().max() / seen[said].abs().max()))
                elif len(self._batch.rows) == 1:
                    seen[said] = found
            return super()._choose(logits)

    requests = [ReplyRequest(prompt, SETTINGS[4]) for prompt in prompts]
    for some in (*([request] for request in requests), requests):
        decoder = Recorder(model, tokenizer)
        decoder.admit(some)
        while decoder.n_rows:
            decoder.step()
    assert len(differences) > 20
    assert max(differences) < TOLERANCE[precision]
