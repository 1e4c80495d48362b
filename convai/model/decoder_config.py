"""config.json of any other decoder: transformers' own settings, and beside them what this project records."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from convai.errors import UserError
from convai.io.pretrained import read_config

SUMMARY_DROPOUT = 0.1  # before the ranking head, as in GPT
# Keys that are ours. They lie flat in config.json, where transformers keeps and ignores them.
OWN_KEYS = ("layout", "token_types", "max_history", "ranking_is_trained", "summary_first_dropout")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_CHANGING_ROPE = ("dynamic", "longrope")
DEFAULT_POSITIONS = 2048  # where a config does not limit them


@dataclass
class DecoderConfig:
    """What the project reads of a decoder's config.json; `extra` is all of it. See heads.DialogConfig."""

    family: str
    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    initializer_range: float = 0.02
    summary_first_dropout: float = SUMMARY_DROPOUT
    max_history: int | None = None
    ranking_is_trained: bool = True
    layout: str = "chat"  # one of pretrained_tokenizer.LAYOUTS
    token_types: bool = False  # whether the speaker's token is added to every token's embedding
    extra: dict[str, Any] = field(default_factory=dict, repr=False)
    history_start: int | None = None  # aligned histories are for GPT and GPT-2

    @classmethod
    def of(cls, settings: PretrainedConfig, layout: str, token_types: bool) -> "DecoderConfig":
        """Read it from transformers' settings, in which what this project recorded wins over the arguments."""
        text = settings.get_text_config(decoder=True)
        return cls(
            family=settings.model_type,
            vocab_size=text.vocab_size,
            n_positions=_n_positions(text),
            n_embd=text.hidden_size,
            n_layer=text.num_hidden_layers,
            initializer_range=getattr(text, "initializer_range", 0.02),
            summary_first_dropout=getattr(settings, "summary_first_dropout", SUMMARY_DROPOUT),
            max_history=getattr(settings, "max_history", None),
            ranking_is_trained=getattr(settings, "ranking_is_trained", False),
            layout=getattr(settings, "layout", layout),
            token_types=getattr(settings, "token_types", token_types),
            extra=settings.to_dict(),
        )

    def own(self) -> dict[str, Any]:
        """Return what this project records, by OWN_KEYS."""
        return {key: getattr(self, key) for key in OWN_KEYS}


def _n_positions(text: PretrainedConfig) -> int:
    """Return how many positions a model is used for."""
    given = (getattr(text, key, None) for key in _POSITIONS)
    n_positions = next((n for n in given if isinstance(n, int) and n > 0), DEFAULT_POSITIONS)
    rope = getattr(text, "rope_parameters", None) or {}
    parts = [part for part in rope.values() if isinstance(part, dict)] or [rope]
    if any(part.get("rope_type") in _CHANGING_ROPE for part in parts):
        # Beyond them all positions get another table of angles, as soon as one sequence of a batch is so long.
        originals = [part.get("original_max_position_embeddings") for part in parts]
        originals.append(getattr(text, "original_max_position_embeddings", None))
        n_positions = min([n for n in originals if isinstance(n, int)], default=n_positions)
    return n_positions


def read_decoder_config(folder: Path) -> PretrainedConfig:
    """Return transformers' settings in a checkpoint folder; UserError for a model that it does not have.

    Code that a checkpoint brings along never runs.
    """
    content = read_config(folder)
    family = content.get("model_type", "(none)")
    if content.get("quantization_config"):
        raise UserError(f"{folder}: its weights are quantized, which cannot be trained on nor probed; use the "
                        "checkpoint in full precision.")  # fmt: skip
    try:
        settings: PretrainedConfig = AutoConfig.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
        return settings
    except Exception as error:  # whatever a config's own checks raise
        has_code = "auto_map" in content
        reason = "it needs code of its own, which is never run" if has_code else _first_line(error)
        raise UserError(f"{folder}: transformers has no model for model_type {family!r} here ({reason}); use another "
                        "checkpoint.") from error  # fmt: skip


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
