"""Plain implementations of what this project computes, to check it against and to measure it by.

They do the obvious: every candidate is a sequence of its own, padded to a common length; language-model logits come out
at every position; a reply costs one pass over the full sequence per token, and word perplexity one pass per word. The
models are transformers' own. Shapes: B examples, C candidates, T padded length, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from store import Example
from utils import IGNORED_LABEL, build_input_from_segments


def load_reference_model(folder: Path) -> torch.nn.Module:
    """Load a checkpoint folder as transformers' double-heads model of its family, in evaluation mode."""
    from transformers import AutoConfig, GPT2DoubleHeadsModel, OpenAIGPTDoubleHeadsModel

    family = AutoConfig.from_pretrained(folder).model_type
    model_class = GPT2DoubleHeadsModel if family == "gpt2" else OpenAIGPTDoubleHeadsModel
    return model_class.from_pretrained(folder).eval()


def pad_candidates(examples: Sequence[Example], tokenizer, length: int = 0) -> dict[str, Tensor]:
    """Return every candidate as its own sequence: input_ids, token_type_ids, labels (B, C, T), mc_token_ids (B, C).

    Only the gold, which is last, has language-model labels. Sequences are padded to the longest one, or to `length`.
    """
    built = [
        [
            build_input_from_segments(persona, history, reply, tokenizer, lm_labels=reply is candidates[-1])
            for reply in candidates
        ]
        for persona, history, candidates in examples
    ]
    length = max(length, *(len(one["input_ids"]) for row in built for one in row))

    def padded(key: str, value: int) -> Tensor:
        return torch.tensor([[one[key] + [value] * (length - len(one[key])) for one in row] for row in built])

    return {
        "input_ids": padded("input_ids", tokenizer.pad_id),
        "token_type_ids": padded("token_type_ids", tokenizer.pad_id),
        "labels": padded("lm_labels", IGNORED_LABEL),
        "mc_token_ids": torch.tensor([[one["mc_token_ids"] for one in row] for row in built]),
    }


def score_candidates(model: torch.nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return logits at every position (B, C, T, V) and each candidate's score (B, C)."""
    names = ("input_ids", "token_type_ids", "mc_token_ids")
    # Padding stands on the right of causal sequences, so it needs no mask.
    lm_logits, mc_logits = model(**{name: batch[name] for name in names})[:2]
    return lm_logits, mc_logits.view(batch["mc_token_ids"].shape)


def joint_loss(lm_logits: Tensor, mc_logits: Tensor, labels: Tensor, lm_coef: float, mc_coef: float) -> Tensor:
    """Return lm_coef x mean loss per gold target token + mc_coef x mean loss of choosing the gold, the last."""
    lm_loss = F.cross_entropy(lm_logits[..., :-1, :].flatten(0, -2), labels[..., 1:].flatten(), ignore_index=-100)
    gold = torch.full((len(mc_logits),), mc_logits.shape[1] - 1)
    return lm_coef * lm_loss + mc_coef * F.cross_entropy(mc_logits, gold)


def next_token_logits(model: torch.nn.Module, example_input: dict) -> Tensor:
    """Return the logits (V,) of what follows one built input, from a pass over the full sequence."""
    ids, types = (torch.tensor([[example_input[key]]]) for key in ("input_ids", "token_type_ids"))
    return model(input_ids=ids, token_type_ids=types, mc_token_ids=torch.zeros(1, 1, dtype=torch.long))[0][0, 0, -1]


@torch.inference_mode()
def greedy_reply(model: torch.nn.Module, persona, history, tokenizer, max_length: int) -> list[int]:
    """Return the most likely reply, token by token, at most `max_length`; each costs a pass over everything."""
    reply: list[int] = []
    while len(reply) < max_length:
        built = build_input_from_segments(persona, history, reply, tokenizer, with_eos=False)
        token = int(next_token_logits(model, built).argmax())
        if token == tokenizer.eos_id:
            break
        reply.append(token)
    return reply


@torch.inference_mode()
def word_logits(model: torch.nn.Module, persona, history, words: Sequence[Sequence[int]], tokenizer) -> Tensor:
    """Return the logits (n_words, V) before each word of a reply, given as the token ids of its words; a pass each."""
    said: list[int] = []
    rows = []
    for word in words:
        built = build_input_from_segments(persona, history, said, tokenizer, with_eos=False)
        rows.append(next_token_logits(model, built))
        said = [*said, *word]
    return torch.stack(rows)
