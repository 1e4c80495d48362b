"""Sampled replies: the filters top_k and top_p, and draws that follow the filtered distribution."""

import math
import random

import pytest
import slow_decoding
import torch
from conftest import TEXTS
from slow_decoding import prompt_of
from torch import Tensor
from transformers_replies import warpers

from bench import reference
from convai.dialog.decoding import DecodingSettings, filter_logits, generate_replies
from convai.dialog.sampling import draw
from convai.model.tokenization import UNKNOWN_TOKEN

model = slow_decoding.model
slow_model = slow_decoding.slow_model
prompts = slow_decoding.prompts


# Filters


def slow_filter(logits: list[float], top_k: int, top_p: float) -> list[float]:
    """The logits that stay, highest first: those not below the k-th, of these the fewest that reach `top_p`."""
    ranked = sorted(logits, reverse=True)
    if top_k:
        ranked = [logit for logit in ranked if logit >= ranked[min(top_k, len(ranked)) - 1]]
    weights = [math.exp(logit - ranked[0]) for logit in ranked]
    reached, kept = 0.0, []
    for logit, weight in zip(ranked, weights, strict=True):
        if top_p and reached >= top_p * sum(weights):
            break
        kept.append(logit)
        reached += weight
    return kept


def draw_logits(kind: str, generator: torch.Generator) -> Tensor:
    logits = 3 * torch.randn(40, generator=generator)
    if kind == "ties":
        return logits.round()
    if kind == "all equal":
        return torch.full_like(logits, 0.25)
    if kind == "one-hot":
        return torch.zeros(40).index_fill(0, torch.randint(40, (1,), generator=generator), 1000.0)
    return logits


@pytest.mark.parametrize("kind", ["random", "ties", "all equal", "one-hot"])
def test_filtering_equals_a_slow_walk_over_sorted_probabilities(kind):
    generator = torch.Generator().manual_seed(0)
    for trial in range(100):
        logits = draw_logits(kind, generator)
        top_k = [0, 1, 5, 39, 60][trial % 5]
        top_p = [0.0, 1.0, *torch.rand(8, generator=generator).tolist()][trial % 10]
        filtered = filter_logits(logits, top_k=top_k, top_p=top_p)
        kept = filtered > -math.inf
        assert torch.equal(filtered[kept], logits[kept])
        assert sorted(filtered[kept].tolist(), reverse=True) == slow_filter(logits.tolist(), top_k, top_p)


@pytest.mark.parametrize("kind", ["random", "ties", "all equal", "one-hot"])
def test_filtering_is_that_of_transformers_bit_by_bit(kind):
    """Ties at an edge and tokens that may not be said included; a batch is filtered row by row."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.stack([draw_logits(kind, generator) for _ in range(50)])
    rows[torch.rand(rows.shape, generator=generator) < 0.1] = -math.inf
    for top_k, top_p in ((0, 0.9), (7, 0.5), (5, 0.0), (60, 0.05), (0, 0.999)):
        settings = DecodingSettings(temperature=0.7, top_k=top_k, top_p=top_p)
        expected = rows
        for warper in warpers(settings):
            expected = warper(None, expected)
        found = filter_logits(rows / 0.7, top_k=top_k, top_p=top_p)
        assert torch.equal(found, expected)
        assert torch.equal(found[3], filter_logits(rows[3] / 0.7, top_k=top_k, top_p=top_p))


def test_filters_by_hand():
    logits = torch.tensor([0.2, 0.5, 0.2, 0.1]).log()
    assert filter_logits(logits, top_k=1).exp().tolist() == pytest.approx([0, 0.5, 0, 0])
    assert filter_logits(logits, top_k=2).exp().tolist() == pytest.approx([0.2, 0.5, 0.2, 0])  # a tie stays whole
    assert filter_logits(logits, top_p=0.45).exp().tolist() == pytest.approx([0, 0.5, 0, 0])
    assert filter_logits(logits, top_p=0.85).exp().tolist() == pytest.approx([0.2, 0.5, 0.2, 0])
    assert filter_logits(torch.zeros(10), top_p=0.45).isfinite().sum() == 5
    # The nucleus is taken of what top_k leaves: of 5/9, 2/9, 2/9 the first two reach 0.7.
    assert filter_logits(logits, top_k=2, top_p=0.7).isfinite().sum() == 2


def test_filtering_leaves_the_callers_logits_alone():
    logits = torch.randn(2, 3, 40)
    before = logits.clone()
    assert filter_logits(logits, top_k=3, top_p=0.5).shape == (2, 3, 40)
    assert torch.equal(logits, before)


# Sampling


def chi_square(counts: Tensor, probabilities: Tensor) -> tuple[float, float]:
    """Return the statistic of draws against expected probabilities, and what it exceeds once in 10,000 times."""
    expected = probabilities * counts.sum()
    frequent = expected >= 5
    expected = torch.cat([expected[frequent], expected[~frequent].sum()[None]])
    counts = torch.cat([counts[frequent], counts[~frequent].sum()[None]])
    expected, counts = expected[expected > 0], counts[expected > 0]
    freedom = len(expected) - 1
    critical = freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3  # Wilson and Hilferty
    return ((counts - expected) ** 2 / expected).sum().item(), critical


@pytest.mark.parametrize(
    "settings",
    [
        DecodingSettings(temperature=0.3, top_k=30, top_p=0.9, max_length=1),
        DecodingSettings(temperature=0.9, top_p=0, max_length=1),
    ],
    ids=["filtered", "unfiltered"],
)
def test_replies_are_drawn_from_the_filtered_distribution(tokenizer, model, slow_model, settings):
    prompt = prompt_of(tokenizer, TEXTS[0])
    logits = reference.next_token_logits(slow_model, prompt._asdict()).detach()
    logits[list(tokenizer.special_ids.values())] = -math.inf  # before min_length
    logits[tokenizer.vocab.get(UNKNOWN_TOKEN, tokenizer.eos_id)] = -math.inf

    def expected(temperature: float) -> Tensor:
        return filter_logits(logits / temperature, top_k=settings.top_k, top_p=settings.top_p).softmax(-1)

    torch.manual_seed(1)
    drawn = torch.tensor(generate_replies(model, tokenizer, [prompt] * 4000, settings)).flatten()
    counts = drawn.bincount(minlength=len(logits)).float()
    assert counts[expected(settings.temperature) == 0].sum() == 0
    statistic, critical = chi_square(counts, expected(settings.temperature))
    assert statistic < critical
    statistic, critical = chi_square(counts, expected(1.5 * settings.temperature))
    assert statistic > critical  # that is what these draws could tell


def test_draws_by_prompt_follow_the_distribution():
    probabilities = torch.tensor([0.0, 0.4, 0.25, 0.0, 0.2, 0.1, 0.05])
    generators = [random.Random(f"0 [{i}]") for i in range(4000)]
    drawn = torch.tensor(draw(probabilities.expand(4000, -1), generators))
    counts = drawn.bincount(minlength=7).float()
    assert counts[probabilities == 0].sum() == 0
    statistic, critical = chi_square(counts, probabilities)
    assert statistic < critical


def test_same_seed_same_replies(tokenizer, model, prompts):
    def sample(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        return [generate_replies(model, tokenizer, [prompt], DecodingSettings())[0] for prompt in prompts]

    assert sample(3) == sample(3)
    assert sample(3) != sample(4)


def test_draws_by_prompt_depend_neither_on_the_batch_nor_on_what_came_before(tokenizer, model, prompts):
    def sample(some: list[dict], seed: int) -> list[list[int]]:
        return generate_replies(model, tokenizer, some, DecodingSettings(), seed=seed)

    together = sample(prompts, 7)
    assert [sample([prompt], 7)[0] for prompt in reversed(prompts)] == together[::-1]
    assert sample(prompts, 8) != together


def test_no_special_token_is_ever_in_a_reply(tokenizer, model):
    wild = DecodingSettings(temperature=100, top_p=0, max_length=30, min_length=0)
    replies = generate_replies(model, tokenizer, [prompt_of(tokenizer, TEXTS[2])] * 200, wild)
    unwanted = {*tokenizer.special_ids.values(), tokenizer.vocab.get(UNKNOWN_TOKEN)}
    assert not unwanted & {token for reply in replies for token in reply}
    assert min(map(len, replies)) < 3 and max(map(len, replies)) == 30  # many were ended by one
