"""Double-heads GPT and GPT-2: next-token logits where a reply is predicted, one score for each candidate reply.

Both read candidate trees (utils.build_candidate_tree): the context once, then every candidate as a branch that sees the
context and itself. Weights and config.json follow the Hugging Face layout, so checkpoints go both ways between
`DoubleHeadsModel` and transformers' `OpenAIGPTDoubleHeadsModel` and `GPT2DoubleHeadsModel`.

Shapes: B examples, T positions of the longest tree, P tokens of all trees (no padding among them), C candidates,
D width, V vocabulary, N rows with a target token.
"""

import json
import logging
import math
import os
import pickle
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from errors import UserError
from model_config import ModelConfig
from pretrained import read_config
from tokenization import DialogTokenizer
from transformer import Dropout, Mask, Transformer, embed_tokens, tree_mask

logger = logging.getLogger(__name__)

# Each family's published names of the two embeddings; the other names are the same in both.
_EMBEDDING_NAMES = {
    "openai-gpt": {},
    "gpt2": {"transformer.wte.": "transformer.tokens_embed.", "transformer.wpe.": "transformer.positions_embed."},
}


class MultipleChoiceHead(nn.Module):
    """Scores a candidate by one linear map of its last position's hidden state."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.first_dropout = Dropout(config.summary_first_dropout)
        self.summary = nn.Linear(config.n_embd, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the scores (R,) of hidden states (R, D)."""
        # Always in fp32: with 8 bits candidates would tie by the dozen, and a tie with the gold is no hit.
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = self.first_dropout(hidden.float())
            return F.linear(hidden, self.summary.weight.float(), self.summary.bias.float()).squeeze(-1)


class DoubleHeadsOutput(NamedTuple):
    lm_logits: Tensor  # (N, V)
    mc_logits: Tensor  # (B, C), -inf where an example has fewer candidates


class DoubleHeadsModel(nn.Module):
    """TransferTransfo: a GPT with a language-modelling head, tied to the embedding, and a next-utterance head."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.multiple_choice_head = MultipleChoiceHead(config)
        self.lm_head: nn.Module | None = None  # None: tied to the embedding; quantization puts a copy here

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        slots: Tensor,
        branch_ids: Tensor,
        lm_rows: Tensor,
        mc_rows: Tensor,
    ) -> DoubleHeadsOutput:
        """Run a batch of candidate trees (see utils.TreeBatch), P tokens together.

        The first four are (P,), branch_ids (B, T); `lm_rows` (N,) and `mc_rows` (B, C) point into the P tokens, at
        those that predict a target token and at each candidate's last one, -1 for a candidate that is not there.
        """
        present = mc_rows >= 0
        rows = torch.cat([lm_rows, mc_rows.clamp(min=0).flatten()])
        # Token types share the token embedding: <speaker1> and <speaker2> mark who speaks at every position.
        x, weight = embed_tokens(self.transformer.tokens_embed.weight, input_ids, token_type_ids)
        hidden = self.transformer(x, position_ids, slots, tree_mask(branch_ids), rows)
        scores = self.multiple_choice_head(hidden[len(lm_rows) :]).view(mc_rows.shape)
        lm_logits = self._lm_logits(hidden[: len(lm_rows)], weight)
        return DoubleHeadsOutput(lm_logits, scores.masked_fill(~present, -math.inf))

    def next_token_logits(
        self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor, mask: Mask, cache=None
    ) -> Tensor:
        """Return the logits (B, V) of what follows ids (B, T) under a mask of T rows; `cache` as in Transformer."""
        slots = torch.arange(input_ids.numel(), device=self.device)
        last_rows = slots.view(input_ids.shape)[:, -1]
        x, weight = embed_tokens(self.transformer.tokens_embed.weight, input_ids.flatten(), token_type_ids.flatten())
        hidden = self.transformer(x, position_ids.flatten(), slots, mask, last_rows, cache)
        return self._lm_logits(hidden, weight)

    def _lm_logits(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.linear(hidden, weight) if self.lm_head is None else self.lm_head(hidden)

    @property
    def device(self) -> torch.device:
        return self.transformer.tokens_embed.weight.device

    def resize_embeddings(self, n_tokens: int) -> None:
        """Give the embedding `n_tokens` rows; new ones start near the mean of the old, so none stands out at first."""
        old = self.transformer.tokens_embed.weight.data
        n_new = n_tokens - len(old)
        if n_new > 0:
            noise = torch.randn(n_new, old.shape[1], dtype=old.dtype, device=old.device)
            old = torch.cat([old, old.mean(0) + self.config.initializer_range * noise])
        self.transformer.tokens_embed = nn.Embedding.from_pretrained(old[:n_tokens].clone(), freeze=False)
        self.config.vocab_size = n_tokens

    def init_weights(self) -> None:
        """Draw fresh weights as GPT did: normal with `initializer_range`, biases zero; GPT-2 scales by depth."""
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue  # biases start at zero and norms at one already
            residual = self.config.family == "gpt2" and name.endswith("c_proj.weight")
            nn.init.normal_(parameter, std=std / math.sqrt(2 * self.config.n_layer) if residual else std)
        nn.init.zeros_(self.multiple_choice_head.summary.bias)


def load_model(folder: Path, tokenizer: DialogTokenizer, *, from_scratch: bool = False) -> DoubleHeadsModel:
    """Load a checkpoint folder: config.json and model.safetensors, or pytorch_model.bin (weights only, no code).

    The embedding is enlarged where the weights have no rows for the tokenizer's dialog tokens. `from_scratch` draws new
    weights and reads config.json only. Raises UserError where files are missing or do not belong together.
    """
    n_vocab, n_tokens = tokenizer.n_vocab, len(tokenizer)
    config = ModelConfig.from_dict(read_config(folder), str(folder / "config.json"))
    if from_scratch:
        config.vocab_size = n_tokens
        model = DoubleHeadsModel(config)
        model.init_weights()
        return model
    weights = _rename(read_weights(folder), _EMBEDDING_NAMES[config.family])
    embedding = weights.get("transformer.tokens_embed.weight")
    if embedding is None:
        raise UserError(f"{folder}: the weights hold no token embedding; they are not those of a {config.family}.")
    if len(embedding) not in (n_vocab, n_tokens):
        raise UserError(f"{folder}: the vocabulary has {n_vocab} entries ({n_tokens} with the dialog tokens), but the "
                        f"weights have {len(embedding)} rows; they do not belong together.")  # fmt: skip
    config.vocab_size = len(embedding)
    model = DoubleHeadsModel(config)
    _load_weights(model, weights, folder)
    if len(embedding) != n_tokens:
        model.resize_embeddings(n_tokens)
    return model


def save_model(model: DoubleHeadsModel, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write config.json and model.safetensors in the Hugging Face layout, each in one step. Raises OSError.

    `weights`, by default the model's own, are a state_dict such as a copy of them in full precision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {ours: theirs for theirs, ours in _EMBEDDING_NAMES[model.config.family].items()}
    weights = _rename(model.state_dict() if weights is None else weights, names)
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    aside = folder / "model.safetensors.tmp"
    save_file(weights, aside, metadata={"format": "pt"})
    os.replace(aside, folder / "model.safetensors")
    aside = folder / "config.json.tmp"
    aside.write_text(json.dumps(model.config.to_dict(), indent=2) + "\n", encoding="utf-8")
    os.replace(aside, folder / "config.json")


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return a checkpoint's tensors under their published names, always with the `transformer.` prefix."""
    path = folder / "model.safetensors"
    try:
        if path.is_file():
            weights = load_file(path)
        else:
            path = folder / "pytorch_model.bin"
            if not path.is_file():
                raise UserError(f"{folder} holds no weights (model.safetensors or pytorch_model.bin); give another "
                                "folder, or --from_scratch to start without.")  # fmt: skip
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than weights, which could run code; it is not opened.") from error
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        raise UserError(f"{path} is damaged ({str(error).splitlines()[0]}); fetch or train it again.") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path} is no plain dictionary of weights.")
    if not any(name.startswith("transformer.") for name in weights):  # a base model without heads
        weights = {f"transformer.{name}": value for name, value in weights.items()}
    return weights


def _load_weights(model: DoubleHeadsModel, weights: dict[str, Tensor], folder: Path) -> None:
    """Copy `weights` into the model; the multiple-choice head may be missing (a checkpoint from pre-training)."""
    own = model.state_dict()
    head = {name for name in own if name.startswith("multiple_choice_head.")}
    if missing := [name for name in own if name not in weights and name not in head]:
        raise UserError(f"{folder}: {len(missing)} weights that config.json calls for are missing ({missing[0]}, ...).")
    for name in own.keys() & weights.keys():
        if own[name].shape != weights[name].shape:
            raise UserError(f"{folder}: {name} has shape {tuple(weights[name].shape)}, but config.json calls for "
                            f"{tuple(own[name].shape)}.")  # fmt: skip
    if not head <= weights.keys():
        logger.info("%s has no multiple-choice head; a new one is drawn", folder)
        nn.init.normal_(model.multiple_choice_head.summary.weight, std=model.config.initializer_range)
        nn.init.zeros_(model.multiple_choice_head.summary.bias)
    model.load_state_dict({name: weights[name] for name in own.keys() & weights.keys()}, strict=False)


def _rename(weights: dict[str, Tensor], prefixes: dict[str, str]) -> dict[str, Tensor]:
    """Return `weights` with the first matching prefix of each name replaced."""
    renamed = {}
    for name, tensor in weights.items():
        old = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        renamed[prefixes.get(old, "") + name[len(old) :]] = tensor
    return renamed
