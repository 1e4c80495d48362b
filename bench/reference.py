"""Plain implementations of what this project computes, to check it against and to measure it by.

They do the obvious: every candidate is a sequence of its own, padded to a common length; language-model logits come out
at every position; a reply costs one pass over the full sequence per token, and word perplexity one pass per word; every
string of the data is tokenized where it stands. The models are transformers' own.

Shapes: B examples, C candidates, T padded length, V vocabulary.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from convai.data.store import Example
from convai.model.tokenization import DialogTokenizer, GptTokenizer
from convai.model.word_splitting import standardize_text
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
    gold = torch.full((len(mc_logits),), mc_logits.shape[1] - 1, device=mc_logits.device)
    return lm_coef * lm_loss + mc_coef * F.cross_entropy(mc_logits, gold)


def next_token_logits(model: torch.nn.Module, example_input: dict) -> Tensor:
    """Return the logits (V,) of what follows one built input, from a pass over the full sequence."""
    device = model.device
    ids, types = (torch.tensor([[example_input[key]]], device=device) for key in ("input_ids", "token_type_ids"))
    ends = torch.zeros(1, 1, dtype=torch.long, device=device)
    return model(input_ids=ids, token_type_ids=types, mc_token_ids=ends)[0][0, 0, -1]


@torch.inference_mode()
def greedy_reply(
    model: torch.nn.Module, persona, history, tokenizer, max_length: int, unsayable: Sequence[int] = ()
) -> list[int]:
    """Return the most likely reply, token by token, at most `max_length`; each costs a pass over everything.

    Tokens that are `unsayable` are passed over.
    """
    reply: list[int] = []
    while len(reply) < max_length:
        built = build_input_from_segments(persona, history, reply, tokenizer, with_eos=False)
        logits = next_token_logits(model, built)
        logits[list(unsayable)] = -torch.inf
        token = int(logits.argmax())
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


def plain_encoder(tokenizer: DialogTokenizer) -> Callable[[str], list[int]]:
    """Return a function from a text to its token ids that goes all the way for each text.

    For GPT: ftfy, the replacements and spaCy, then each word's BPE, which even the published code looked up in a cache.
    """
    if not isinstance(tokenizer, GptTokenizer) or tokenizer.pre_tokenization != "spacy":
        return tokenizer.encode
    from ftfy import fix_text
    from spacy.lang.en import English
    from tokenizers import models

    split = English().tokenizer
    unknown = "<unk>" if "<unk>" in tokenizer.vocab else None
    bpe = models.BPE(tokenizer.vocab, tokenizer.merges, unk_token=unknown, end_of_word_suffix="</w>")

    @cache
    def ids_of_word(word: str) -> list[int]:
        return [token.id for token in bpe.tokenize(word)]

    def encode(text: str) -> list[int]:
        words = [token.text.lower().rstrip(" ") for token in split(standardize_text(fix_text(text)))]
        return [token for word in words for token in ids_of_word(word)]

    return encode


def tokenize_strings(value, encode: Callable[[str], list[int]]):
    """Return nested lists and dicts with every string in them replaced by its token ids."""
    if isinstance(value, str):
        return encode(value)
    if isinstance(value, dict):
        return {key: tokenize_strings(child, encode) for key, child in value.items()}
    return [tokenize_strings(child, encode) for child in value]
