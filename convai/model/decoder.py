"""Any decoder of transformers with a next-utterance head: its model class, and its checkpoints.

A checkpoint is a folder in AutoModelForCausalLM's layout, with heads.safetensors (the ranking head) beside it, and in
config.json what this project records (see decoder_config): any other program that runs such models can read it.
"""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig
from transformers.utils.logging import disable_progress_bar

from convai.errors import UserError, argument
from convai.io.files import atomic_writes
from convai.io.pretrained import HEADS_FILE, locate_checkpoint
from convai.model.backbone import Backbone, CausalLM
from convai.model.decoder_cache import DecoderCache
from convai.model.decoder_config import DecoderConfig, read_decoder_config
from convai.model.heads import DoubleHeads, MultipleChoiceHead
from convai.model.lora import (
    ADAPTER_CONFIG,
    add_lora,
    check_base,
    load_adapter,
    merge_lora,
    merged_weights,
    read_base,
    save_adapter,
    train_rows,
)
from convai.model.probe import check_real_weights, check_type
from convai.model.tokenization import DialogTokenizer
from convai.model.transformer import PackedTrees
from convai.model.weights import describe_names
from convai.options import DecodingSettings

_LM, _HEAD = "backbone.causal_lm.", "multiple_choice_head."

_AutoModel: Any = AutoModelForCausalLM
_GenerationConfig: Any = GenerationConfig

logger = logging.getLogger(__name__)


class DecoderModel(DoubleHeads):
    """A decoder of transformers behind the seam of backbone.py, with a ranking head."""

    config: DecoderConfig

    def __init__(self, config: DecoderConfig, causal_lm: CausalLM):
        super().__init__()
        self.config = config
        self.backbone = Backbone(causal_lm)
        self.multiple_choice_head = MultipleChoiceHead(config.n_embd, config.summary_first_dropout)
        self.base: dict[str, Any] = {}  # with adapters: the model that they are for, and its rows trained in full

    @property
    def causal_lm(self) -> CausalLM:
        """transformers' model, for all that concerns it alone."""
        return self.backbone.causal_lm

    def read_trees(self, trees: PackedTrees, lm_indices: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return what DoubleHeads.read_trees does."""
        trees = trees if self.config.token_types else trees._replace(token_type_ids=None)
        logits, hidden = self.backbone(trees, lm_indices)
        return logits, hidden.index_select(0, rows)

    def next_token_logits(
        self, input_ids: Tensor, token_type_ids: Tensor, position_ids: Tensor, attention_mask: Tensor, cache: Any = None
    ) -> Tensor:
        """Return what DoubleHeads.next_token_logits does."""
        types = token_type_ids if self.config.token_types else None
        return self.backbone.next_token_logits(input_ids, types, position_ids, attention_mask, cache)

    def new_cache(self) -> DecoderCache:
        """Return what DoubleHeads.new_cache does."""
        return DecoderCache()

    def add_adapters(
        self, rank: int, alpha: float, dropout: float, new_ids: Sequence[int], base: dict[str, str]
    ) -> None:
        """Freeze the backbone but for adapters and the embedding's rows `new_ids`; `base` is its record (see lora)."""
        add_lora(self.causal_lm, rank, alpha, dropout)
        train_rows(self.causal_lm, new_ids)
        self.base = {**base, "new_ids": list(new_ids)}

    @property
    def device(self) -> torch.device:
        return self.multiple_choice_head.summary.weight.device

    def keep_less(self) -> None:
        self.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
        if not any(parameter.requires_grad for parameter in self.causal_lm.get_input_embeddings().parameters()):
            self.causal_lm.enable_input_require_grads()  # or a frozen embedding would end the backward pass

    def compile_layers(self, backend: str = "inductor") -> None:
        self.causal_lm.compile(dynamic=True, backend=backend)


def load_decoder(
    folder: Path,
    tokenizer: DialogTokenizer,
    *,
    token_types: bool | None = None,
    from_scratch: bool = False,
    keeps_adapter: bool = False,
    seed: int = 42,
) -> DecoderModel:
    """Load a checkpoint folder of any decoder of transformers, checked by the probe.

    Its adapter, if it has one, is merged into the weights, unless it is to be trained on (`keeps_adapter`). Dialog
    tokens without rows and a missing ranking head are drawn by `seed`, and said to be. `token_types` where the
    checkpoint does not record whether it has them (None: none). Raises UserError for a model that cannot be had, or
    that does not compute for a candidate in a tree what it would for that candidate alone.
    """
    settings = read_decoder_config(folder)
    config = DecoderConfig.of(settings, tokenizer.layout, bool(token_types))
    if token_types is not None and token_types != config.token_types:
        raise UserError(f"{folder} was trained {'with' if config.token_types else 'without'} token types; leave out "
                        f"{argument('token_types')}.")  # fmt: skip
    check_type(settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        record: dict[str, Any] = {}
        if from_scratch:
            settings.vocab_size = len(tokenizer)
            causal_lm = _AutoModel.from_config(settings, dtype=torch.float32)
        elif (folder / ADAPTER_CONFIG).is_file():
            record = read_base(folder)
            causal_lm = _load_base(folder, record, config.vocab_size)
        else:
            causal_lm = _load_causal_lm(folder, settings)
            _add_rows(causal_lm, tokenizer, folder)
        model = DecoderModel(config, causal_lm)
        _load_head(model, folder, from_scratch)
    if not from_scratch:
        check_real_weights(model.backbone, folder)
    if record:
        load_adapter(causal_lm, folder)
        if keeps_adapter:
            train_rows(causal_lm, record["new_ids"])
            model.base = record
        else:
            merge_lora(causal_lm)
    config.vocab_size = causal_lm.get_input_embeddings().weight.shape[0]
    _set_generation(causal_lm, tokenizer)
    return model


def _load_base(folder: Path, record: dict[str, Any], n_rows: int) -> CausalLM:
    """Load the model that the adapter in a checkpoint is for, and give it the rows of tokens that were trained."""
    base = locate_checkpoint(record["model_checkpoint"])
    check_base(record, base, folder)
    causal_lm = _load_causal_lm(base, read_decoder_config(base))
    if record["new_ids"]:
        causal_lm.resize_token_embeddings(n_rows, mean_resizing=False)
        rows = load_file(folder / HEADS_FILE)
        with torch.no_grad():
            for name, weight in _token_weights(causal_lm).items():
                weight[record["new_ids"]] = rows[f"{name}.rows"]
    return causal_lm


def _load_causal_lm(folder: Path, settings: PretrainedConfig) -> CausalLM:
    if not (sys.stderr and sys.stderr.isatty()):
        disable_progress_bar()  # type: ignore[no-untyped-call] # else transformers draws into logs and pipes
    try:
        model, report = _AutoModel.from_pretrained(
            str(folder), config=settings, dtype=torch.float32, trust_remote_code=False, weights_only=True,
            local_files_only=True, output_loading_info=True,
        )  # fmt: skip
    except Exception as error:  # of transformers, safetensors, pickle, and what formats of weights need
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise UserError(f"{folder}: its weights cannot be read ({reason}); fetch them again, or use another "
                        "checkpoint.") from error  # fmt: skip
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{folder}: {len(missing)} weights that config.json calls for are missing ({missing[0]}, ...).")
    if report["mismatched_keys"]:
        raise UserError(f"{folder}: the weights are not of the sizes that config.json calls for.")
    if unused := sorted(report["unexpected_keys"]):
        logger.warning("%s: %d tensors are not used, as the model has no place for them: %s",
                       folder, len(unused), describe_names(unused))  # fmt: skip
    return model


def _add_rows(causal_lm: CausalLM, tokenizer: DialogTokenizer, folder: Path) -> None:
    """Give new dialog tokens rows in embedding and output matrix, near the mean of the others."""
    matrices = [causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings()]
    n_rows = len(matrices[0].weight)
    new = sorted(tokenizer.special_ids[token] for token in tokenizer.new_tokens)
    if n_rows < tokenizer.n_recorded:
        raise UserError(f"{folder}: the vocabulary has {tokenizer.n_recorded} entries, but the weights have {n_rows} "
                        "rows; they do not belong together.")  # fmt: skip
    if not new:
        return
    logger.info("%s has no %s; their embeddings are new", folder, ", ".join(tokenizer.new_tokens))
    if n_rows <= new[-1]:
        causal_lm.resize_token_embeddings(new[-1] + 1, mean_resizing=False)
        matrices = [causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings()]
    std = getattr(causal_lm.config.get_text_config(decoder=True), "initializer_range", 0.02)
    with torch.no_grad():
        for weight in {id(matrix.weight): matrix.weight for matrix in matrices}.values():
            mean = weight[: tokenizer.n_recorded].mean(0)
            weight[new] = mean + std * torch.randn(len(new), weight.shape[1])


def _token_weights(causal_lm: CausalLM) -> dict[str, Tensor]:
    """Return embedding and output matrix; where they are one, it alone."""
    embedding, output = causal_lm.get_input_embeddings().weight, causal_lm.get_output_embeddings().weight
    return {"embedding": embedding} | ({} if output is embedding else {"output": output})


def _load_head(model: DecoderModel, folder: Path, from_scratch: bool) -> None:
    path, head = folder / HEADS_FILE, model.multiple_choice_head
    if from_scratch or not path.is_file():
        if not from_scratch:
            logger.info("%s has no ranking head; a new one is drawn", folder)
        model.config.ranking_is_trained = False
        head.draw(model.config.initializer_range)
        return
    try:
        weights = {n.removeprefix(_HEAD): t for n, t in load_file(path).items() if n.startswith(_HEAD)}
        head.load_state_dict(weights)
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path} is damaged or of another model ({reason}); fetch or train it again.") from error


def _set_generation(causal_lm: CausalLM, tokenizer: DialogTokenizer) -> None:
    """Have generation_config.json say what ends a reply, and how interact.py chooses one by default."""
    defaults = DecodingSettings()
    causal_lm.generation_config = _GenerationConfig(
        bos_token_id=causal_lm.config.bos_token_id,
        eos_token_id=sorted(tokenizer.ending_ids),
        pad_token_id=tokenizer.pad_id,
        do_sample=True,
        temperature=defaults.temperature,
        top_k=defaults.top_k,
        top_p=defaults.top_p,
        max_new_tokens=defaults.max_length,
    )


def save_decoder(model: DecoderModel, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write the model, adapters merged into it, in AutoModelForCausalLM's layout, and its ranking head. Raises OSError.

    `weights`, by default the model's own, are a state_dict such as a copy of them in full precision.
    """
    weights = model.state_dict() if weights is None else weights
    own = {name.removeprefix(_LM): tensor for name, tensor in weights.items() if name.startswith(_LM)}
    head = {name: tensor.contiguous() for name, tensor in weights.items() if name.startswith(_HEAD)}
    causal_lm = model.causal_lm
    _record(model)
    with atomic_writes(folder) as temporary:
        causal_lm.save_pretrained(temporary, state_dict=merged_weights(causal_lm, own), max_shard_size="1000GB")
        save_file(head, temporary / HEADS_FILE, metadata={"format": "pt"})


def save_adapted(model: DecoderModel, folder: Path, weights: dict[str, Tensor]) -> None:
    """Write a model's adapter, its ranking head and the rows trained in full, and what they are for. Raises OSError."""
    own = {name.removeprefix(_LM): tensor for name, tensor in weights.items() if name.startswith(_LM)}
    head = {name: tensor.contiguous() for name, tensor in weights.items() if name.startswith(_HEAD)}
    for name, weight in _token_weights(model.causal_lm).items():
        if new_ids := model.base["new_ids"]:
            head[f"{name}.rows"] = weight.detach()[new_ids]
    _record(model)
    with atomic_writes(folder) as temporary:
        model.causal_lm.config.save_pretrained(temporary)
        save_adapter(model.causal_lm, own, temporary, model.base)
        save_file(head, temporary / HEADS_FILE, metadata={"format": "pt"})


def _record(model: DecoderModel) -> None:
    for key, value in model.config.own().items():
        setattr(model.causal_lm.config, key, value)
