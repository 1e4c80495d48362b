"""Decoding against slow, obvious versions of itself: filters, sampling, greedy, beams, the key/value cache."""

import math
from itertools import pairwise, product

import pytest
import torch
from conftest import TEXTS, tiny_model
from torch import Tensor
from transformers import DynamicCache

from bench import reference
from convai.data.inputs import InputBuilder, Prompt
from convai.dialog.decoding import DecodingSettings, Generator, _DrawByPrompt, filter_logits, generate_replies
from convai.model.double_heads import save_model
from convai.model.tokenization import UNKNOWN_TOKEN, train_vocabulary

GREEDY = DecodingSettings(no_sample=True, max_length=12, min_length=0)


def prompt_of(tokenizer, *turns: str, persona: str = TEXTS[5]) -> Prompt:
    history = [tokenizer.encode(turn) for turn in turns]
    return InputBuilder(tokenizer, 1000).prompt([tokenizer.encode(persona)], history)


def talkative_model(tokenizer, **options):
    """A random model whose logits depend on what was said rather than on biases, and that seldom ends a reply."""
    model = tiny_model(tokenizer, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ln_" in name:
                parameter.fill_(name.endswith("weight"))
        model.transformer.tokens_embed.weight[list(tokenizer.special_ids.values())] *= 0.5
    return model


@pytest.fixture
def model(tokenizer):
    return talkative_model(tokenizer)


@pytest.fixture
def slow_model(tmp_path, model):
    """transformers' model of the same weights, which knows no cache here."""
    save_model(model, tmp_path)
    return reference.load_reference_model(tmp_path)


@pytest.fixture
def prompts(tokenizer) -> list[Prompt]:
    """Four prompts of unlike length."""
    turns = [TEXTS[:1], TEXTS[:3], [TEXTS[4]], [""]]
    return [prompt_of(tokenizer, *some, persona=TEXTS[5 + i % 3]) for i, some in enumerate(turns)]


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
    draw = _DrawByPrompt([Prompt([i], [0], [0]) for i in range(4000)], seed=0)
    drawn = draw(torch.empty(4000, 0), probabilities.log().expand(4000, -1)).argmax(-1)
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


# Cache and greedy


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


def allowed_logits(slow_model, tokenizer, prompt: Prompt, reply: list[int], settings: DecodingSettings) -> Tensor:
    """The log-probabilities (V,) of what follows a reply so far, by a full pass; -inf for what may not follow."""
    types = [*prompt.token_type_ids, *[tokenizer.speaker1_id] * len(reply)]
    built = {"input_ids": [*prompt.input_ids, *reply], "token_type_ids": types}
    logits = reference.next_token_logits(slow_model, built).detach().log_softmax(-1)
    if UNKNOWN_TOKEN in tokenizer.vocab:
        logits[tokenizer.vocab[UNKNOWN_TOKEN]] = -math.inf
    if len(reply) < settings.min_length:
        logits[list(tokenizer.special_ids.values())] = -math.inf
    n = settings.no_repeat_ngram_size
    for i in range(len(reply) - n + 1 if n else 0):
        if reply[i : i + n - 1] == reply[len(reply) - n + 1 :]:
            logits[reply[i + n - 1]] = -math.inf
    return logits


def slow_greedy(slow_model, tokenizer, prompt: Prompt, settings: DecodingSettings) -> list[int]:
    reply: list[int] = []
    while len(reply) < settings.max_length:
        token = int(allowed_logits(slow_model, tokenizer, prompt, reply, settings).argmax())
        if token in tokenizer.special_ids.values():
            break
        reply.append(token)
    return reply


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


def model_that_ends(tokenizer, model, prompt: Prompt, special: int, at: int) -> list[int]:
    """Let `special` be always a little likelier than the token `at` of the greedy reply, which is returned."""
    reply = generate_replies(model, tokenizer, [prompt], GREEDY)[0]
    with torch.no_grad():
        embedding = model.transformer.tokens_embed.weight
        embedding[special] = 1.01 * embedding[reply[at]]
    return reply


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


# n-grams and beams


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


@pytest.fixture(scope="module")
def abc_tokenizer():
    """Six tokens (<unk>, a and b within and at the end of a word, ab at the end of one) beside the special ones."""
    return train_vocabulary(["a b ab ba"], "openai-gpt", 6)


def test_where_everything_is_blocked_nothing_is(abc_tokenizer):
    model = talkative_model(abc_tokenizer)
    prompt = InputBuilder(abc_tokenizer, 1000).prompt([], [[1]])
    for options in ({}, {"no_sample": True}, {"num_beams": 2}):
        settings = DecodingSettings(no_repeat_ngram_size=1, min_length=20, max_length=20, **options)
        assert len(generate_replies(model, abc_tokenizer, [prompt], settings)[0]) == 20


def sequence_score(
    slow_model, tokenizer, prompt: Prompt, sequence: tuple[int, ...], settings: DecodingSettings
) -> float:
    """Log-probability / length ** penalty of a reply with the special token that ends it, if one does."""
    total = 0.0
    for i, token in enumerate(sequence):
        total += allowed_logits(slow_model, tokenizer, prompt, list(sequence[:i]), settings)[token].item()
    return total / len(sequence) ** settings.length_penalty


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_search_as_wide_as_the_vocabulary_finds_the_best_reply(tmp_path, abc_tokenizer, seed, length_penalty):
    """Of all replies of up to three tokens; so its score cannot be below that of the greedy reply."""
    model = talkative_model(abc_tokenizer, seed=seed)
    save_model(model, tmp_path)
    slow = reference.load_reference_model(tmp_path)
    prompt = InputBuilder(abc_tokenizer, 1000).prompt([[1, 2]], [[3]])
    settings = DecodingSettings(num_beams=64, max_length=3, min_length=0, length_penalty=length_penalty)
    special = list(abc_tokenizer.special_ids.values())
    words = [i for i in range(abc_tokenizer.n_vocab) if i != abc_tokenizer.vocab[UNKNOWN_TOKEN]]
    ended = [(*said, end) for n in range(3) for said in product(words, repeat=n) for end in special]
    sequences = ended + list(product(words, repeat=3))
    scores = {sequence: sequence_score(slow, abc_tokenizer, prompt, sequence, settings) for sequence in sequences}
    best = max(scores, key=scores.get)
    found = generate_replies(model, abc_tokenizer, [prompt], settings)[0]
    assert found == [token for token in best if token not in special]

    greedy = DecodingSettings(no_sample=True, max_length=3, min_length=0)
    said = slow_greedy(slow, abc_tokenizer, prompt, greedy)
    if len(said) < 3:
        said.append(int(allowed_logits(slow, abc_tokenizer, prompt, said, greedy).argmax()))
    assert scores[best] >= scores[tuple(said)]


def slow_beams(slow_model, tokenizer, prompt: Prompt, settings: DecodingSettings) -> list[int]:
    """Beam search by lists: each step keeps the best open replies, and ended ones that are among the best."""
    width, special = settings.num_beams, set(tokenizer.special_ids.values())
    beams, ended = [(0.0, [])], []
    for length in range(1, settings.max_length + 1):
        candidates = []
        for total, said in beams:
            log_probabilities = allowed_logits(slow_model, tokenizer, prompt, said, settings).tolist()
            candidates += [(total + value, [*said, token]) for token, value in enumerate(log_probabilities)]
        candidates.sort(key=lambda candidate: -candidate[0])
        is_last = length == settings.max_length
        for total, said in candidates[:width]:
            if said[-1] in special or is_last:
                ended.append((total / length**settings.length_penalty, said))
        beams = [candidate for candidate in candidates if candidate[1][-1] not in special][:width]
    return [token for token in max(ended)[1] if token not in special]


@pytest.mark.parametrize("options", [{}, {"length_penalty": 0.0}, {"no_repeat_ngram_size": 1, "min_length": 4}])
def test_beam_search_equals_a_slow_one(tokenizer, model, slow_model, prompts, options):
    settings = DecodingSettings(**{"num_beams": 3, "max_length": 8, "min_length": 0} | options)
    # Ends must be likely enough to compete.
    model_that_ends(tokenizer, model, prompts[0], tokenizer.eos_id, at=5)
    slow_model.transformer.get_input_embeddings().weight.data.copy_(model.transformer.tokens_embed.weight.data)
    replies = generate_replies(model, tokenizer, prompts, settings)
    assert replies == [slow_beams(slow_model, tokenizer, prompt, settings) for prompt in prompts]
    assert replies != generate_replies(model, tokenizer, prompts, GREEDY)


def test_one_beam_is_greedy(tokenizer, model, prompts):
    settings = DecodingSettings(num_beams=1, no_sample=True, max_length=12, min_length=0, length_penalty=0.3)
    assert generate_replies(model, tokenizer, prompts, settings) == generate_replies(model, tokenizer, prompts, GREEDY)


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
