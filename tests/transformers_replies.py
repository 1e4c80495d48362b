"""Replies by transformers' generation and its own processors, one way for all settings, to compare ours with."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from convai.data.inputs import Prompt
from convai.dialog.beam_search import Generator, _NoRepeatNGramInReply, generation_config
from convai.options import DecodingSettings


class DrawByPrompt(LogitsProcessor):
    """Samples each row's next token itself, from a generator of its own, and leaves only that one possible."""

    def __init__(self, prompts: Sequence[Prompt], seed: int):
        self.generators = [random.Random(f"{seed} {prompt.input_ids}") for prompt in prompts]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cumulative = scores.float().softmax(-1).cumsum(-1)
        draws = torch.tensor([[1 - generator.random()] for generator in self.generators])
        drawn = (cumulative < draws * cumulative[:, -1:]).sum(-1, keepdim=True)
        return torch.full_like(scores, -float("inf")).scatter(1, drawn, 0.0)


def warpers(settings: DecodingSettings) -> list[LogitsProcessor]:
    """transformers' own way from logits to the distribution that is drawn from."""
    found: list[LogitsProcessor] = [TemperatureLogitsWarper(float(settings.temperature))]
    found += [TopKLogitsWarper(settings.top_k)] if settings.top_k else []
    return found + ([TopPLogitsWarper(settings.top_p)] if settings.top_p else [])


def config(model, tokenizer, settings: DecodingSettings, samples: bool) -> GenerationConfig:
    options = generation_config(settings, tokenizer, model.config.vocab_size).to_dict()
    options |= {"do_sample": samples, "length_penalty": None, "early_stopping": None}
    if samples:  # one warper after the other, as transformers itself puts them together
        options |= {"temperature": float(settings.temperature), "top_k": settings.top_k, "top_p": settings.top_p or 1.0}
    return GenerationConfig.from_dict(options)


@torch.inference_mode()
def transformers_replies(
    model, tokenizer, prompts: Sequence[Prompt], settings: DecodingSettings, seed: int | None = None
) -> list[list[int]]:
    """What generate_replies returns, for greedy replies and sampled ones."""
    length = max(len(prompt.input_ids) for prompt in prompts)

    def padded(key: str, padding: int) -> Tensor:
        rows = [getattr(prompt, key) for prompt in prompts]
        return torch.tensor([[padding] * (length - len(row)) + row for row in rows])

    processors: list[LogitsProcessor] = []
    if settings.no_repeat_ngram_size:
        processors.append(_NoRepeatNGramInReply(settings.no_repeat_ngram_size, length))
    if seed is not None and settings.samples:
        processors += [*warpers(settings), DrawByPrompt(prompts, seed)]
    positions = padded("position_ids", -1)
    sequences = Generator(model).generate(
        input_ids=padded("input_ids", tokenizer.pad_id),
        token_type_ids=padded("token_type_ids", tokenizer.pad_id),
        position_ids=positions.clamp(min=0),
        attention_mask=(positions >= 0).long(),
        generation_config=config(model, tokenizer, settings, settings.samples and seed is None),
        logits_processor=LogitsProcessorList(processors),
    )
    replies = []
    for reply in sequences[:, length:].tolist():
        end = next((i for i, token in enumerate(reply) if token in tokenizer.ending_ids), len(reply))
        replies.append(reply[:end])
    return replies
