"""Beam search by transformers' generation over our models; it takes seconds to import, so only where beams are wanted.

What is ours is the choice of what may be said: a special token ends a reply, and none comes before `min_length`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.generation import (
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from convai.data.inputs import Prompt
from convai.model.heads import DoubleHeads
from convai.model.tokenization import DialogTokenizer
from convai.options import DecodingSettings


def generation_config(settings: DecodingSettings, tokenizer: DialogTokenizer, vocab_size: int = 0) -> GenerationConfig:
    """Translate settings into transformers' terms, for a model of `vocab_size` output rows."""
    options: dict[str, Any] = {
        "max_new_tokens": settings.max_length,
        "min_new_tokens": settings.min_length,
        "num_beams": settings.num_beams,
        "length_penalty": settings.length_penalty,
        # Search on while any beam could still beat the best; other rules stop at a guess.
        "early_stopping": "never",
        "do_sample": False,
        # Any special token ends a reply, as published: after it the turn would be another's.
        "eos_token_id": list(tokenizer.ending_ids),
        "pad_token_id": tokenizer.pad_id,
    }
    # What stands for text without a token would show as "<unk>"; rows without one only pad the matrix.
    unsayable = [] if tokenizer.unknown_id is None else [tokenizer.unknown_id]
    if unsayable := [*unsayable, *range(len(tokenizer), vocab_size)]:
        options["suppress_tokens"] = unsayable
    return GenerationConfig(**options)


class Generator(PreTrainedModel, GenerationMixin):
    """Our language-model head in the shape that transformers' generation drives: one sequence a row, padded left."""

    def __init__(self, model: DoubleHeads):
        config = model.config
        shape: dict[str, Any] = {
            "vocab_size": config.vocab_size,
            "hidden_size": config.n_embd,
            "num_hidden_layers": config.n_layer,
            "num_attention_heads": 1,  # of which a cache that grows makes no use
            "is_decoder": True,
        }
        super().__init__(PretrainedConfig(**shape))
        self.model = model

    @property
    def device(self) -> torch.device:
        return self.model.device

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values=None,
        **_,
    ) -> CausalLMOutputWithPast:
        """Return the logits (B, 1, V) of what follows ids (B, Q), the last Q of K in attention_mask (B, K)."""
        if attention_mask is None:  # how generation says that nothing is padding
            n_past = past_key_values.get_seq_length() if past_key_values is not None else 0
            attention_mask = input_ids.new_ones(len(input_ids), n_past + input_ids.shape[1])
        logits = self.model.next_token_logits(input_ids, token_type_ids, position_ids, attention_mask, past_key_values)
        return CausalLMOutputWithPast(logits=logits[:, None], past_key_values=past_key_values)


class _NoRepeatNGramInReply(NoRepeatNGramLogitsProcessor):
    """Blocks n-grams that the reply has already; the prompt's own must stay sayable, or no persona could be quoted."""

    def __init__(self, ngram_size: int, prompt_length: int):
        super().__init__(ngram_size)
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        blocked = super().__call__(input_ids[:, self.prompt_length :], scores)
        # A reply that has used up all it may say goes on unblocked.
        return torch.where(blocked.isneginf().all(dim=-1, keepdim=True), scores, blocked)


class _StopWhen(StoppingCriteria):
    """Ends generation where a function says so."""

    def __init__(self, should_stop: Callable[[], bool]):
        self.should_stop = should_stop

    def __call__(self, input_ids: Tensor, scores: Tensor, **_) -> Tensor:
        return torch.full((len(input_ids),), self.should_stop(), device=input_ids.device)


@torch.inference_mode()
def search_replies(
    model: DoubleHeads,
    tokenizer: DialogTokenizer,
    prompts: Sequence[Prompt],
    settings: DecodingSettings,
    should_stop: Callable[[], bool] | None = None,
) -> list[list[int]]:
    """Return what decoding.generate_replies does, by a search with `settings.num_beams`."""
    model.eval()
    device = model.device
    length = max(len(prompt.input_ids) for prompt in prompts)
    paddings = [length - len(prompt.input_ids) for prompt in prompts]

    def padded(key: str) -> Tensor:
        rows = [[tokenizer.pad_id] * n + getattr(prompt, key) for n, prompt in zip(paddings, prompts, strict=True)]
        return torch.tensor(rows, device=device)

    n_used = 1 + max(prompt.position_ids[-1] for prompt in prompts)
    rows = [[-1] * n + prompt.position_ids for n, prompt in zip(paddings, prompts, strict=True)]
    positions = torch.tensor(rows, device=device)
    assert n_used <= model.config.n_positions, f"{n_used} tokens exceed {model.config.n_positions} positions"
    room = model.config.n_positions - n_used + 1  # the last token is read by nobody and needs no position
    settings = replace(settings, max_length=min(settings.max_length, room), min_length=min(settings.min_length, room))
    ngram_size = settings.no_repeat_ngram_size
    processors: list[LogitsProcessor] = [_NoRepeatNGramInReply(ngram_size, length)] if ngram_size else []
    # transformers describes what generates by a protocol of more attributes than generation uses.
    sequences = Generator(model).generate(  # type: ignore[misc]
        input_ids=padded("input_ids"),
        token_type_ids=padded("token_type_ids"),  # generation continues the last one, <speaker1>
        position_ids=positions.clamp(min=0),
        attention_mask=(positions >= 0).long(),
        generation_config=generation_config(settings, tokenizer, model.config.vocab_size),
        logits_processor=LogitsProcessorList(processors),
        stopping_criteria=StoppingCriteriaList([_StopWhen(should_stop)] if should_stop else []),
    )
    return [_until_special(reply, tokenizer) for reply in sequences[:, length:].tolist()]


def _until_special(reply: list[int], tokenizer: DialogTokenizer) -> list[int]:
    ending = tokenizer.ending_ids
    end = next((i for i, token in enumerate(reply) if token in ending), len(reply))
    return reply[:end]
