"""Double-heads GPT and GPT-2: next-token logits where a reply is predicted, one score for each candidate reply.

Both read candidate trees (utils.build_candidate_tree): the context once, then every candidate as a branch that sees the
context and itself. Weights and config.json follow the Hugging Face layout, so checkpoints go both ways between
`DoubleHeadsModel` and transformers' `OpenAIGPTDoubleHeadsModel` and `GPT2DoubleHeadsModel`.

Shapes: B examples, T positions of the padded tree, C candidates, D width, V vocabulary, N rows with a target token.
"""

import json
import logging
import math
import os
import pickle
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from errors import UserError
from pretrained import read_config
from tokenization import DialogTokenizer

logger = logging.getLogger(__name__)

ARCHITECTURES = {"openai-gpt": "OpenAIGPTDoubleHeadsModel", "gpt2": "GPT2DoubleHeadsModel"}
# Each family's published names of the two embeddings; the other names are the same in both.
_EMBEDDING_NAMES = {
    "openai-gpt": {},
    "gpt2": {"transformer.wte.": "transformer.tokens_embed.", "transformer.wpe.": "transformer.positions_embed."},
}
_ACTIVATIONS = {
    "gelu": nn.GELU(),
    "gelu_new": nn.GELU(approximate="tanh"),
    "gelu_pytorch_tanh": nn.GELU(approximate="tanh"),
    "relu": nn.ReLU(),
    "silu": nn.SiLU(),
    "swish": nn.SiLU(),
}


@dataclass
class ModelConfig:
    """The part of config.json that the model reads; `extra` keeps all other keys for writing them back."""

    family: str
    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    activation: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    embd_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    summary_first_dropout: float = 0.1
    initializer_range: float = 0.02
    history_start: int | None = None  # position of the first token after the persona; None: wherever the persona ends
    extra: dict = field(default_factory=dict, repr=False)

    @classmethod
    def from_dict(cls, values: dict, where: str = "config.json") -> "ModelConfig":
        """Read config.json's keys, the family by `model_type` or, in files older than that key, by `afn`.

        Raises UserError for another family, a missing or ill-typed size, or a setting that this model does not have.
        """
        family = values.get("model_type") or ("openai-gpt" if "afn" in values else "gpt2")
        if family not in ARCHITECTURES:
            raise UserError(f"{where}: model_type {family!r} is neither openai-gpt nor gpt2; use another checkpoint.")
        sizes = {}
        for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            sizes[key] = values.get(key)
            if type(sizes[key]) is not int or sizes[key] < 1:
                raise UserError(f"{where}: {key} must be a positive whole number, not {sizes[key]!r}.")
        if sizes["n_embd"] % sizes["n_head"]:
            raise UserError(f"{where}: n_embd {sizes['n_embd']} is not a multiple of n_head {sizes['n_head']}.")
        if values.get("scale_attn_by_inverse_layer_idx") or not values.get("scale_attn_weights", True):
            raise UserError(f"{where}: attention scaled by layer, or not at all, is not supported.")
        # GPT's "gelu" is the tanh form that later configs call "gelu_new".
        afn = values.get("afn", "gelu")
        activation = (
            {"gelu": "gelu_new"}.get(afn, afn)
            if family == "openai-gpt"
            else values.get("activation_function", "gelu_new")
        )
        if activation not in _ACTIVATIONS:
            raise UserError(f"{where}: unknown activation {activation!r}; known are {', '.join(_ACTIVATIONS)}.")
        settings = ("layer_norm_epsilon", "initializer_range", "summary_first_dropout")
        settings += ("embd_pdrop", "resid_pdrop", "attn_pdrop")
        history_start = values.get("history_start")
        allowed = range(1, sizes["n_positions"] - 1)  # a reply needs <speaker1> and <eos>
        if history_start is not None and (type(history_start) is not int or history_start not in allowed):
            raise UserError(f"{where}: history_start must be from 1 to n_positions - 2, not {history_start!r}.")
        optional = {key: values[key] for key in settings if key in values}
        return cls(family, **sizes, activation=activation, **optional, history_start=history_start, extra=dict(values))

    def to_dict(self) -> dict:
        """Return the content of config.json, as transformers reads it."""
        other = ("family", "activation", "extra", *(["history_start"] if self.history_start is None else []))
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in other}
        activation = {"afn": self.extra.get("afn", "gelu")} if self.family == "openai-gpt" else {}
        if self.family == "gpt2":
            activation = {"activation_function": self.activation}
        names = {"model_type": self.family, "architectures": [ARCHITECTURES[self.family]]}
        return self.extra | names | own | activation | {"tie_word_embeddings": True, "num_labels": 1}


class Conv1D(nn.Module):
    """A linear layer whose weight is stored as (inputs, outputs), the published checkpoints' layout."""

    def __init__(self, n_inputs: int, n_outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_inputs, n_outputs))
        self.bias = nn.Parameter(torch.zeros(n_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.t(), self.bias)


class Attention(nn.Module):
    """Multi-head scaled-dot-product attention; `forward` stops before the output projection (see Block)."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.dropout = config.attn_pdrop
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, mask: Tensor, cache=None) -> Tensor:
        """Return the heads' results (B, T, D) for x (B, T, D) where mask (B, 1, T, K) is True for what a row sees.

        K is T, or T and what `cache` (see Transformer) holds already.
        """
        batch, length, width = x.shape
        qkv = self.c_attn(x).view(batch, length, 3, self.n_head, width // self.n_head)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, D / heads)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        dropout = self.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return heads.transpose(1, 2).reshape(batch, length, width)


class MLP(nn.Module):
    """The position-wise feed-forward layer, four times as wide inside."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.c_fc = Conv1D(config.n_embd, 4 * config.n_embd)
        self.act = _ACTIVATIONS[config.activation]
        self.c_proj = Conv1D(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.act(self.c_fc(x)))


class Block(nn.Module):
    """One transformer layer: GPT normalises after each residual sum, GPT-2 before each sub-layer."""

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.norm_first = config.family == "gpt2"
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, mask: Tensor, rows: Tensor | None = None, cache=None) -> Tensor:
        """Map x (B, T, D) to (B, T, D), or, given `rows` (R,) into the flattened B * T, to just those (R, D)."""
        attended = self.attn(self.ln_1(x) if self.norm_first else x, mask, cache)
        if rows is not None:  # beyond attention every row stands alone: skip those nobody reads
            x, attended = x.flatten(0, 1)[rows], attended.flatten(0, 1)[rows]
        x = x + self.dropout(self.attn.c_proj(attended))
        if self.norm_first:
            return x + self.dropout(self.mlp(self.ln_2(x)))
        x = self.ln_1(x)
        return self.ln_2(x + self.dropout(self.mlp(x)))


class Transformer(nn.Module):
    """The stack of blocks on the sum of token, position and token-type embeddings."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.tokens_embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions_embed = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        if config.family == "gpt2":
            self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False  # in training keep each block's input only, and compute the rest again

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        mask: Tensor,
        rows: Tensor | None = None,
        cache=None,
    ) -> Tensor:
        """Return hidden states (B, T, D) of ids (B, T) under mask (B, 1, T, K); only (R, D) where `rows` are given.

        `cache` holds the keys and values of earlier positions and takes in those of these: an object whose
        `update(key, value, layer)` returns all so far, such as transformers' DynamicCache.
        """
        # Token types share the token embedding: <speaker1> and <speaker2> mark who speaks at every position.
        x = self.tokens_embed(input_ids) + self.positions_embed(position_ids) + self.tokens_embed(token_type_ids)
        x = self.drop(x)
        for block in self.h:
            rows_of_block = rows if block is self.h[-1] else None
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, x, mask, rows_of_block, use_reentrant=False)
            else:
                x = block(x, mask, rows_of_block, cache)
        return self.ln_f(x) if hasattr(self, "ln_f") else x


class MultipleChoiceHead(nn.Module):
    """Scores a candidate by one linear map of its last position's hidden state."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.first_dropout = nn.Dropout(config.summary_first_dropout)
        self.summary = nn.Linear(config.n_embd, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.summary(self.first_dropout(hidden)).squeeze(-1)


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

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        branch_ids: Tensor,
        lm_rows: Tensor,
        mc_rows: Tensor,
    ) -> DoubleHeadsOutput:
        """Run a batch of candidate trees (see utils.TreeBatch).

        The first four are (B, T); `lm_rows` (N,) and `mc_rows` (B, C) point into the flattened B * T positions, at
        those that predict a target token and at each candidate's last one, -1 for a candidate that is not there.
        """
        present = mc_rows >= 0
        rows = torch.cat([lm_rows, mc_rows.clamp(min=0).flatten()])
        hidden = self.transformer(input_ids, token_type_ids, position_ids, tree_mask(branch_ids), rows)
        scores = self.multiple_choice_head(hidden[len(lm_rows) :]).view(mc_rows.shape)
        return DoubleHeadsOutput(self.lm_head(hidden[: len(lm_rows)]), scores.masked_fill(~present, -math.inf))

    @property
    def device(self) -> torch.device:
        return self.transformer.tokens_embed.weight.device

    def lm_head(self, hidden: Tensor) -> Tensor:
        """Return next-token logits (..., V) of hidden states (..., D)."""
        return F.linear(hidden, self.transformer.tokens_embed.weight)

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


def tree_mask(branch_ids: Tensor, n_queries: int | None = None) -> Tensor:
    """Return who sees whom, (B, 1, Q, T) bool, for branch_ids (B, T): 0 context, k the k-th candidate, -1 padding.

    The rows are the last `n_queries` positions, by default all: with a cache, those before need no computing. A row
    sees itself and what stands before it that is context or of its own branch. Padding sees padding: a row that sees
    nothing would be NaN.
    """
    length = branch_ids.shape[1]
    n_queries = length if n_queries is None else n_queries
    causal = torch.ones(length, length, dtype=torch.bool, device=branch_ids.device).tril()[length - n_queries :]
    rows, columns = branch_ids[:, length - n_queries :, None], branch_ids[:, None, :]
    visible = (rows == columns) | ((columns == 0) & (rows > 0))
    return (visible & causal)[:, None]


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
