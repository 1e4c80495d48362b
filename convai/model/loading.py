"""Checkpoint folders of every kind: GPT and GPT-2 in their own implementation, any other decoder by transformers'.

What decides is config.json's model_type. transformers' models are imported only where one of them is loaded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from convai.errors import UserError, argument
from convai.io.pretrained import read_config
from convai.model.config import ARCHITECTURES, ModelConfig
from convai.model.double_heads import DoubleHeadsModel, load_gpt, save_gpt
from convai.model.heads import DialogConfig, DoubleHeads
from convai.model.tokenization import DialogTokenizer, load_gpt_tokenizer


def is_own_family(config: dict[str, Any]) -> bool:
    """Whether config.json is of GPT or GPT-2, by `model_type` or, in files older than that key, by its absence."""
    return (config.get("model_type") or "gpt2") in ARCHITECTURES


def load_tokenizer(
    folder: str | Path,
    tokenization: str | None = None,
    dialog_token_ids: Sequence[int] | None = None,
    layout: str | None = None,
) -> DialogTokenizer:
    """Load the tokenizer in a checkpoint folder; `layout` is one of pretrained_tokenizer.LAYOUTS.

    By default it is the one that the checkpoint was trained with, else "chat" where there is a chat template. The other
    arguments are as for load_gpt_tokenizer. Raises UserError where the files or the arguments do not fit.
    """
    folder = Path(folder)
    config = read_config(folder) if (folder / "config.json").is_file() else {}
    if is_own_family(config):
        if layout == "chat":
            raise UserError(f"{argument('layout')} chat: {folder} is a GPT or GPT-2, which have no chat template; "
                            "leave it out.")  # fmt: skip
        return load_gpt_tokenizer(folder, tokenization, dialog_token_ids)
    for name, value in (("tokenization", tokenization), ("dialog_token_ids", dialog_token_ids)):
        if value:
            raise UserError(f"{argument(name)} is for GPT and GPT-2, but {folder} is a {config['model_type']}; leave "
                            "it out.")  # fmt: skip
    recorded = config.get("layout")
    if recorded and layout and recorded != layout:
        raise UserError(f"{folder} was trained with {argument('layout')} {recorded}; leave out {argument('layout')} "
                        f"{layout}, or start from another checkpoint.")  # fmt: skip
    from convai.model.pretrained_tokenizer import load_pretrained_tokenizer

    return load_pretrained_tokenizer(folder, config["model_type"], recorded or layout)


def read_dialog_config(folder: Path, layout: str) -> DialogConfig:
    """Return what a checkpoint folder says of its model, without loading that; UserError where it cannot be had."""
    config = read_config(folder)
    if is_own_family(config):
        return ModelConfig.from_dict(config, str(folder / "config.json"))
    from convai.model.decoder_config import DecoderConfig, read_decoder_config

    return DecoderConfig.of(read_decoder_config(folder), layout, token_types=False)


def load_model(
    folder: Path,
    tokenizer: DialogTokenizer,
    *,
    token_types: bool | None = None,
    from_scratch: bool = False,
    for_training: bool = False,
    keeps_adapter: bool = False,
    seed: int = 42,
) -> DoubleHeads:
    """Load a checkpoint folder (see load_gpt and load_decoder); UserError where it cannot be had."""
    if is_own_family(read_config(folder)):
        if token_types is False:
            raise UserError(
                f"{argument('token_types')} off: GPT and GPT-2 have token types, as published; leave it out."
            )
        return load_gpt(folder, tokenizer, from_scratch=from_scratch, for_training=for_training, seed=seed)
    from convai.model.decoder import load_decoder

    return load_decoder(
        folder, tokenizer, token_types=token_types, from_scratch=from_scratch, keeps_adapter=keeps_adapter, seed=seed
    )


def save_model(model: DoubleHeads, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write a checkpoint folder's config.json, generation_config.json and weights, each in one step. Raises OSError.

    `weights`, by default the model's own, are a state_dict such as a copy of them in full precision.
    """
    if isinstance(model, DoubleHeadsModel):
        save_gpt(model, folder, weights)
    else:
        from convai.model.decoder import DecoderModel, save_decoder

        assert isinstance(model, DecoderModel), type(model)
        save_decoder(model, folder, weights)


def save_checkpoint(model: DoubleHeads, folder: Path, weights: dict[str, Tensor]) -> None:
    """Write what a run goes on from: as save_model does, but of a model with adapters these alone. Raises OSError."""
    if isinstance(model, DoubleHeadsModel):
        save_gpt(model, folder, weights)
        return
    from convai.model.decoder import DecoderModel, save_adapted, save_decoder

    assert isinstance(model, DecoderModel), type(model)
    (save_adapted if model.base else save_decoder)(model, folder, weights)


def base_record(path_or_name: str, folder: Path) -> dict[str, str]:
    """Return what checkpoints record of the base model in `folder`, which was given as `path_or_name`."""
    from convai.model.lora import weights_hash

    return {"model_checkpoint": path_or_name, "sha256": weights_hash(folder)}


def add_adapters(
    model: DoubleHeads, tokenizer: DialogTokenizer, rank: int, alpha: float, dropout: float, base: dict[str, str]
) -> None:
    """Freeze a decoder but for adapters of this rank on its linear layers, its ranking head and new rows of tokens."""
    if isinstance(model, DoubleHeadsModel):
        raise UserError(f"{argument('lora_rank')}: adapters are for other models than GPT and GPT-2, all of whose "
                        "weights fit any machine; leave it out.")  # fmt: skip
    from convai.model.decoder import DecoderModel

    assert isinstance(model, DecoderModel), type(model)
    model.add_adapters(
        rank, alpha, dropout, sorted(tokenizer.special_ids[token] for token in tokenizer.new_tokens), base
    )
