"""Beam search against a slow one by lists, and against a search through all replies."""

from itertools import product

import pytest
import slow_decoding
from slow_decoding import GREEDY, allowed_logits, model_that_ends, slow_greedy, talkative_model

from bench import reference
from convai.data.inputs import InputBuilder, Prompt
from convai.dialog.decoding import DecodingSettings, generate_replies
from convai.model.loading import save_model
from convai.model.tokenization import UNKNOWN_TOKEN

model = slow_decoding.model
slow_model = slow_decoding.slow_model
prompts = slow_decoding.prompts
abc_tokenizer = slow_decoding.abc_tokenizer


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
