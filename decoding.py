"""Replies from a prompt: sampling, greedy and beam search by transformers' generation over our models.

`generate_replies` takes built inputs (utils.build_input_from_segments without <eos>) and returns token ids. What is
ours is the choice of what may be said: a special token ends a reply, and none comes before `min_length`.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.generation import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import CausalLMOutputWithPast

from model import DoubleHeadsModel, tree_mask
from tokenization import DialogTokenizer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DecodingSettings:
    """How replies are chosen; names and defaults as published, beams beside them."""

    no_sample: bool = False  # greedy instead of sampling
    max_length: int = 20  # tokens
    min_length: int = 1  # tokens before the reply may end
    temperature: float = 0.7
    top_k: int = 0  # sample among the k likeliest; 0: no limit
    top_p: float = 0.9  # sample among the likeliest that make up this probability (Holtzman et al., 2019); 0: no limit
    num_beams: int = 1  # beam search where above 1
    no_repeat_ngram_size: int = 0  # no n-gram of this length twice in a reply; 0: no limit
    length_penalty: float = 1.0  # beams are compared by log-probability / length ** this

    def __post_init__(self):
        """Raise ValueError for a setting out of its range."""
        positive = {"max_length": self.max_length, "num_beams": self.num_beams, "temperature": self.temperature}
        not_negative = {"top_k": self.top_k, "min_length": self.min_length, "top_p": self.top_p}
        not_negative["no_repeat_ngram_size"] = self.no_repeat_ngram_size
        for name, value in positive.items():
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be above 0, not {value}")
        for name, value in not_negative.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be at least 0, not {value}")
        if self.top_p > 1:
            raise ValueError(f"top_p must be at most 1, not {self.top_p}")
        if self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} is above max_length {self.max_length}")

    def generation_config(self, tokenizer: DialogTokenizer) -> GenerationConfig:
        """Translate into transformers' terms."""
        sampling = not self.no_sample and self.num_beams == 1
        options = {
            "max_new_tokens": self.max_length,
            "min_new_tokens": self.min_length,
            "num_beams": self.num_beams,
            "do_sample": sampling,
            # Any special token ends a reply, as published: after it the turn would be another's.
            "eos_token_id": list(tokenizer.special_ids.values()),
            "pad_token_id": tokenizer.pad_id,
        }
        if self.num_beams > 1:
            options |= {"length_penalty": self.length_penalty, "early_stopping": False}
        if sampling:
            options |= {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p or 1.0}
        return GenerationConfig(**options)


def filter_logits(logits: Tensor, *, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """Return a copy of logits (..., V) with -inf outside the `top_k` likeliest and the nucleus of `top_p`.

    The nucleus is the smallest set of likeliest tokens whose probability reaches `top_p`; 0 sets no limit. Both warpers
    are those that sampling applies.
    """
    warpers = LogitsProcessorList()
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p:
        warpers.append(TopPLogitsWarper(top_p))
    flat = logits.reshape(-1, logits.shape[-1]).clone()
    return warpers(torch.empty(len(flat), 0, dtype=torch.long), flat).view(logits.shape)


class Generator(PreTrainedModel, GenerationMixin):
    """Our language-model head in the shape that transformers' generation drives: one sequence a row, padded left."""

    def __init__(self, model: DoubleHeadsModel):
        config = model.config
        super().__init__(
            PretrainedConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.n_embd,
                num_hidden_layers=config.n_layer,
                num_attention_heads=config.n_head,
                is_decoder=True,
            )
        )
        self.model = model

    @property
    def device(self) -> torch.device:
        return self.model.transformer.tokens_embed.weight.device

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
        # Real positions are one context, and padding, which sees only itself, is -1.
        mask = tree_mask(attention_mask - 1, input_ids.shape[1])
        last_rows = torch.arange(1, len(input_ids) + 1, device=input_ids.device) * input_ids.shape[1] - 1
        hidden = self.model.transformer(
            input_ids, token_type_ids, position_ids, mask, rows=last_rows, cache=past_key_values
        )
        return CausalLMOutputWithPast(logits=self.model.lm_head(hidden)[:, None], past_key_values=past_key_values)


class _NoRepeatNGramInReply(NoRepeatNGramLogitsProcessor):
    """Blocks n-grams that the reply has already; the prompt's own must stay sayable, or no persona could be quoted."""

    def __init__(self, ngram_size: int, prompt_length: int):
        super().__init__(ngram_size)
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return super().__call__(input_ids[:, self.prompt_length :], scores)


class _TokenStream(BaseStreamer):
    """Hands each new token to a function; generation calls it with the prompt first."""

    def __init__(self, on_token: Callable[[int], None]):
        self.on_token = on_token
        self.prompt_seen = False

    def put(self, value: Tensor) -> None:
        if self.prompt_seen:
            self.on_token(int(value.flatten()[-1]))
        self.prompt_seen = True

    def end(self) -> None:
        pass


class _StopWhen(StoppingCriteria):
    """Ends generation where a function says so."""

    def __init__(self, should_stop: Callable[[], bool]):
        self.should_stop = should_stop

    def __call__(self, input_ids: Tensor, scores: Tensor, **_) -> Tensor:
        return torch.full((len(input_ids),), self.should_stop(), device=input_ids.device)


@torch.inference_mode()
def generate_replies(
    model: DoubleHeadsModel,
    tokenizer: DialogTokenizer,
    prompts: Sequence[dict],
    settings: DecodingSettings,
    on_token: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[list[int]]:
    """Return a reply's token ids, without special tokens, for each prompt (a built input that is open at its end).

    Sampling draws from torch's global generator: seed it for repeatable replies. `on_token`, for one prompt without
    beams, is called with each token id as it is chosen; `should_stop` is asked after each and ends the reply early. A
    reply also ends at the model's last position.
    """
    model.eval()
    device = model.transformer.tokens_embed.weight.device
    length = max(len(prompt["input_ids"]) for prompt in prompts)
    paddings = [length - len(prompt["input_ids"]) for prompt in prompts]

    def padded(key: str) -> Tensor:
        rows = [[tokenizer.pad_id] * n + prompt[key] for n, prompt in zip(paddings, prompts, strict=True)]
        return torch.tensor(rows, device=device)

    positions = torch.arange(length, device=device)[None] - torch.tensor(paddings, device=device)[:, None]
    room = model.config.n_positions - length
    settings = replace(settings, max_length=min(settings.max_length, room), min_length=min(settings.min_length, room))
    ngram_size = settings.no_repeat_ngram_size
    blocking = [_NoRepeatNGramInReply(ngram_size, length)] if ngram_size else []
    sequences = Generator(model).generate(
        input_ids=padded("input_ids"),
        token_type_ids=padded("token_type_ids"),  # generation continues the last one, <speaker1>
        position_ids=positions.clamp(min=0),
        attention_mask=(positions >= 0).long(),
        generation_config=settings.generation_config(tokenizer),
        logits_processor=LogitsProcessorList(blocking),
        streamer=_TokenStream(on_token) if on_token else None,
        stopping_criteria=StoppingCriteriaList([_StopWhen(should_stop)] if should_stop else []),
    )
    return [_until_special(reply, tokenizer) for reply in sequences[:, length:].tolist()]


def _until_special(reply: list[int], tokenizer: DialogTokenizer) -> list[int]:
    special = set(tokenizer.special_ids.values())
    end = next((i for i, token in enumerate(reply) if token in special), len(reply))
    return reply[:end]
