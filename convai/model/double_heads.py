"""Double-heads GPT and GPT-2: next-token logits where a reply is predicted, one score for each candidate reply.

Both read candidate trees (data.inputs.CandidateTree): the context once, then every candidate as a branch that sees the
context and itself. Weights and config.json follow the Hugging Face layout, so checkpoints go both ways between
`DoubleHeadsModel` and transformers' `OpenAIGPTDoubleHeadsModel` and `GPT2DoubleHeadsModel`.

Shapes: B examples, T positions of the longest tree, P tokens of all trees (no padding among them), C candidates,
D width, V vocabulary, N gold target tokens.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from convai.errors import UserError, argument
from convai.io.files import atomic_write, write_json
from convai.io.pretrained import read_config, recorded_max_history
from convai.model.config import ModelConfig
from convai.model.cpu_kernels import embed_tokens
from convai.model.heads import DoubleHeads, MultipleChoiceHead
from convai.model.row_cache import RowCache
from convai.model.tokenization import DialogTokenizer
from convai.model.transformer import Mask, PackedTrees, Transformer, tree_mask
from convai.model.vocabulary import SPECIAL_TOKENS
from convai.model.weights import (
    EMBEDDING,
    EMBEDDING_NAMES,
    RANKING_HEAD,
    describe_names,
    read_weights,
    rename,
)

logger = logging.getLogger(__name__)

TOKEN_ID_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")


class DoubleHeadsModel(DoubleHeads):
    """TransferTransfo: a GPT with a language-modelling head, tied to the embedding, and a next-utterance head."""

    config: ModelConfig

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.multiple_choice_head = MultipleChoiceHead(config.n_embd, config.summary_first_dropout)
        self.lm_head: nn.Module | None = None  # None: tied to the embedding; quantization puts a copy here

    def read_trees(self, trees: PackedTrees, lm_indices: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return what DoubleHeads.read_trees does."""
        # Token types share the token embedding: <speaker1> and <speaker2> mark who speaks at every position.
        assert trees.token_type_ids is not None, "GPT and GPT-2 have token types"
        x, weight = embed_tokens(self.transformer.tokens_embed.weight, trees.input_ids, trees.token_type_ids)
        read = torch.cat([lm_indices, rows])
        hidden = self.transformer(x, trees.position_ids, trees.grid_indices, tree_mask(trees.branch_ids), read)
        return self._lm_logits(hidden[: len(lm_indices)], weight), hidden[len(lm_indices) :]

    def next_token_logits(
        self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor, attention_mask: Tensor, cache: Any = None
    ) -> Tensor:
        """Return what DoubleHeads.next_token_logits does."""
        n_rows, n_queries = input_ids.shape
        if n_queries == 1:
            mask = Mask(attention_mask.bool()[:, None, None])
            grid_indices = last_rows = torch.arange(n_rows, device=self.device)
        else:
            # Real positions are one context, and padding, which sees only itself, is -1; it is not computed.
            mask = tree_mask(attention_mask - 1, n_queries)
            is_real = attention_mask[:, -n_queries:] > 0
            grid_indices = is_real.flatten().nonzero().squeeze(1)
            last_rows = is_real.sum(1).cumsum(0) - 1
        ids, types, positions = (
            x.flatten().index_select(0, grid_indices) for x in (input_ids, token_type_ids, position_ids)
        )
        x, weight = embed_tokens(self.transformer.tokens_embed.weight, ids, types)
        hidden = self.transformer(x, positions, grid_indices, mask, last_rows, cache)
        return self._lm_logits(hidden, weight)

    def new_cache(self) -> RowCache:
        """Return what DoubleHeads.new_cache does."""
        return RowCache()

    def _lm_logits(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.linear(hidden, weight) if self.lm_head is None else self.lm_head(hidden)

    @property
    def device(self) -> torch.device:
        return self.transformer.tokens_embed.weight.device

    def keep_less(self) -> None:
        self.transformer.gradient_checkpointing = True

    def compile_layers(self, backend: str = "inductor") -> None:
        self.transformer.compile_blocks(backend)

    def resize_embeddings(self, n_tokens: int, redrawn: Sequence[int] = ()) -> None:
        """Give the embedding `n_tokens` rows; new ones, and those `redrawn`, start near the mean of the others, so that
        none stands out at first."""
        old = self.transformer.tokens_embed.weight.data
        is_kept = torch.arange(n_tokens) < len(old)
        is_kept[list(redrawn)] = False
        kept = old[:n_tokens][is_kept[: len(old)]]
        resized = old.new_empty(n_tokens, old.shape[1])
        resized[is_kept] = kept
        noise = torch.randn(int((~is_kept).sum()), old.shape[1], dtype=old.dtype, device=old.device)
        resized[~is_kept] = kept.mean(0) + self.config.initializer_range * noise
        self.transformer.tokens_embed = nn.Embedding(n_tokens, old.shape[1], _weight=resized)
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


def load_gpt(
    folder: Path, tokenizer: DialogTokenizer, *, from_scratch: bool = False, for_training: bool = False, seed: int = 42
) -> DoubleHeadsModel:
    """Load a checkpoint folder: config.json and its weights, in any of their published forms (see weights).

    Where the weights have no rows for the tokenizer's dialog tokens, or no ranking head, these are drawn by `seed` and
    said to be untrained; `for_training` they may be. `from_scratch` draws all weights, from torch's own generator, and
    reads config.json only. Raises UserError where files are missing or do not belong together.
    """
    config = ModelConfig.from_dict(read_config(folder), str(folder / "config.json"))
    config.extra |= dict(zip(TOKEN_ID_KEYS, (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id), strict=True))
    if config.max_history is None:  # written before config.json had it
        config.max_history = recorded_max_history(folder)
    if from_scratch:
        config.vocab_size = len(tokenizer)
        config.ranking_is_trained = False
        model = DoubleHeadsModel(config)
        model.init_weights()
        return model
    advice = (
        f"give another folder, or {argument('from_scratch')} to start without"
        if for_training
        else "give another folder"
    )
    weights = read_weights(folder, config, advice)
    n_rows = len(weights[EMBEDDING])
    new_tokens = tokenizer.new_tokens
    if (
        new_tokens == SPECIAL_TOKENS
        and config.extra.get("n_special") == len(SPECIAL_TOKENS) == n_rows - tokenizer.n_vocab
    ):
        # pytorch_pretrained_bert's record of how many tokens follow the vocabulary; which, the published script says.
        logger.info("%s does not name its %d special tokens; they are taken for the published script's, in its order",
                    folder, len(SPECIAL_TOKENS))  # fmt: skip
        new_tokens = ()
    _check_rows(folder, tokenizer, new_tokens, n_rows, for_training)
    config.vocab_size = n_rows
    model = DoubleHeadsModel(config)
    _load_weights(model, weights, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _draw_missing(model, weights, tokenizer, new_tokens, folder)
    return model


def _check_rows(folder: Path, tokenizer: DialogTokenizer, new: Sequence[str], n_rows: int, for_training: bool) -> None:
    """Raise UserError where the embedding's rows are not those of the vocabulary, or it is unknown which are."""
    n_needed = len(tokenizer)
    if n_rows not in (tokenizer.n_vocab, tokenizer.n_recorded) and n_rows < tokenizer.n_recorded:
        raise UserError(f"{folder}: the vocabulary has {tokenizer.n_vocab} entries ({n_needed} with the dialog "
                        f"tokens), but the weights have {n_rows} rows; they do not belong together.")  # fmt: skip
    if new and (n_rows == n_needed or (n_rows > n_needed and not for_training)):
        raise UserError(f"{folder}: the weights have rows for {', '.join(new)}, but nothing records which; say it with "
                        f"{argument('dialog_token_ids')} BOS EOS SPEAKER1 SPEAKER2 PAD (the published script's are "
                        f"{' '.join(str(tokenizer.n_vocab + n) for n in range(len(SPECIAL_TOKENS)))}).")  # fmt: skip
    if new and len(new) < len(SPECIAL_TOKENS) and not for_training:
        raise UserError(f"{folder} knows only some of the dialog tokens, so it has not been fine-tuned; "
                        f"{', '.join(sorted(new))} are missing from added_tokens.json.")  # fmt: skip


def _draw_missing(
    model: DoubleHeadsModel,
    weights: dict[str, Tensor],
    tokenizer: DialogTokenizer,
    new_tokens: Sequence[str],
    folder: Path,
) -> None:
    """Draw what a checkpoint does not have: rows of dialog tokens, the ranking head; say so."""
    n_rows = len(weights[EMBEDDING])
    new_ids = {*range(n_rows, len(tokenizer)), *(tokenizer.special_ids[token] for token in new_tokens)}
    if new_ids:
        logger.info("%s has no %s; their embeddings are new", folder,
                    ", ".join(token for token, i in tokenizer.special_ids.items() if i in new_ids))  # fmt: skip
        model.resize_embeddings(max(n_rows, len(tokenizer)), redrawn=sorted(i for i in new_ids if i < n_rows))
    if n_rows > len(tokenizer):
        logger.info("%s: the embedding has %d rows more than there are tokens", folder, n_rows - len(tokenizer))
    if not any(name.startswith(RANKING_HEAD) for name in weights):
        logger.info("%s has no ranking head; a new one is drawn", folder)
        model.config.ranking_is_trained = False
        model.multiple_choice_head.draw(model.config.initializer_range)


def save_gpt(model: DoubleHeadsModel, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write config.json, generation_config.json and model.safetensors in the Hugging Face layout, each in one step.

    `weights`, by default the model's own, are a state_dict such as a copy of them in full precision. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {ours: theirs for theirs, ours in EMBEDDING_NAMES[model.config.family].items()}
    weights = rename(model.state_dict() if weights is None else weights, names)
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    with atomic_write(folder / "model.safetensors") as temporary:
        save_file(weights, temporary, metadata={"format": "pt"})
    write_json(folder / "config.json", model.config.to_dict(), ensure_ascii=True)
    # What ends a text, for transformers' own generation.
    ids = {key: model.config.extra[key] for key in TOKEN_ID_KEYS if key in model.config.extra}
    write_json(folder / "generation_config.json", ids)


def _load_weights(model: DoubleHeadsModel, weights: dict[str, Tensor], folder: Path) -> None:
    """Copy `weights` into the model; the ranking head may be missing (a checkpoint from pre-training)."""
    own = model.state_dict()
    head = {name for name in own if name.startswith(RANKING_HEAD)}
    n_head = len(head & weights.keys())
    if missing := [name for name in own if name not in weights and (name not in head or n_head)]:
        raise UserError(f"{folder}: {len(missing)} weights that config.json calls for are missing ({missing[0]}, ...).")
    for name in own.keys() & weights.keys():
        if own[name].shape != weights[name].shape:
            raise UserError(f"{folder}: {name} has shape {tuple(weights[name].shape)}, but config.json calls for "
                            f"{tuple(own[name].shape)}.")  # fmt: skip
    if unused := sorted(weights.keys() - own.keys()):
        logger.warning("%s: %d tensors are not used, as the model has no place for them: %s",
                       folder, len(unused), describe_names(unused))  # fmt: skip
    model.load_state_dict({name: weights[name] for name in own.keys() & weights.keys()}, strict=False)
