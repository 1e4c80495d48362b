"""Small models that talk much, and greedy decoding written slowly, to compare the real one with."""

import math

import pytest
import torch
from conftest import TEXTS, tiny_model
from torch import Tensor

from bench import reference
from convai.data.inputs import InputBuilder, Prompt
from convai.dialog.decoding import DecodingSettings, generate_replies
from convai.model.loading import save_model
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


@pytest.fixture(scope="module")
def abc_tokenizer():
    """Six tokens (<unk>, a and b within and at the end of a word, ab at the end of one) beside the special ones."""
    return train_vocabulary(["a b ab ba"], "openai-gpt", 6)


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


def model_that_ends(tokenizer, model, prompt: Prompt, special: int, at: int) -> list[int]:
    """Let `special` be always a little likelier than the token `at` of the greedy reply, which is returned."""
    reply = generate_replies(model, tokenizer, [prompt], GREEDY)[0]
    with torch.no_grad():
        embedding = model.transformer.tokens_embed.weight
        embedding[special] = 1.01 * embedding[reply[at]]
    return reply
