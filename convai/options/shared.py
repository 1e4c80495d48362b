"""Options that several scripts share: data, device, and what a dialog agent is set up by."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from convai.errors import UserError
from convai.options.declare import check_limits, option
from convai.options.values import (
    non_negative_float,
    non_negative_int,
    path,
    positive_float,
    positive_int,
    probability,
    seed_number,
)

DEFAULT_MAX_HISTORY = 2  # exchanges, as published
EVAL_TYPES = ["hits@1", "ppl", "f1"]
FORM_NAMES = ["messages", "personachat", "parlai"]
RANKINGS = ["head", "likelihood", "pmi", "head+pmi"]
DISTRACTORS = ["random", "same_speaker_other_turn", "similar"]


@dataclass(frozen=True)
class ReadingOptions:
    """What is made of the rows that data hold."""

    persona_from: str = option(
        "system",
        "what gives chat messages their persona: the system's message, or nothing",
        choices=["system", "none"],
    )
    sides: str = option(
        "both",
        "whose replies are learned in conversations of two with a persona each",
        choices=["first", "second", "both"],
    )
    on_bad_row: str = option(
        "stop",
        "what a row of data that is no dialog does: stop with its place and the remedy, or be skipped and counted",
        choices=["stop", "skip"],
    )

    def reading(self) -> "ReadingOptions":
        """Return these options without the others that a script may have."""
        return ReadingOptions(**{one.name: getattr(self, one.name) for one in fields(ReadingOptions)})

    def unlike_defaults(self) -> list[str]:
        """Return "name=value" for each of these options that is not as it is by default."""
        named = [(one.name, getattr(self, one.name), one.default) for one in fields(ReadingOptions)]
        return [f"{name}={value}" for name, value, default in named if value != default]


@dataclass(frozen=True)
class DistractorOptions:
    distractors: str = option(
        "random",
        "wrong candidates where data have only the right one: replies of other dialogs, of the same speaker in the "
        "same dialog, or of other dialogs and most like it in words",
        choices=DISTRACTORS,
    )


@dataclass(frozen=True)
class SourceOptions:
    """Where dialogs come from and where their tokens are kept."""

    dataset_path: str = option(
        "",
        "file, folder, TRAIN,VALID, URL or hub:OWNER/NAME; JSON, CSV, ParlAI text or parquet; "
        '"" downloads PersonaChat, "example" is the embedded set; or several, as "A + B*2"',
        metavar="DATA",
    )
    dataset_cache: str = option(
        "./dataset_cache.bin", 'path prefix of the token cache; "" keeps none', kind=path, metavar="PREFIX"
    )


@dataclass(frozen=True)
class DataOptions(ReadingOptions, SourceOptions):
    """Where dialogs come from, how they are read, and where their tokens are kept."""


@dataclass(frozen=True)
class DeviceOptions:
    device: str = option("", '"cuda", "cpu", ... (default: cuda where there is one)')


@dataclass(frozen=True)
class TokenOptions:
    """What a checkpoint may not record about its tokens."""

    tokenization: str | None = option(
        None,
        "for a checkpoint that does not record it: how GPT splits words (default: spacy), whether GPT-2's "
        "utterances start with a space (default: prefix_space)",
        choices=["spacy", "bert", "prefix_space", "no_prefix_space"],
    )
    dialog_token_ids: list[int] | None = option(
        None,
        "the dialog tokens' ids, for a fine-tuned checkpoint that does not record them",
        kind=non_negative_int,
        nargs=5,
        metavar=("BOS", "EOS", "SPEAKER1", "SPEAKER2", "PAD"),
    )


@dataclass(frozen=True)
class InputOptions(TokenOptions):
    """How a fine-tuned model's input is built."""

    max_history: int | None = option(
        None,
        "exchanges kept before the turn to answer (2 * max_history + 1 utterances; default: as many as in the "
        "model's training, 2 where that is unknown)",
        kind=non_negative_int,
    )


@dataclass(frozen=True)
class CheckpointOptions:
    """Which fine-tuned model is used."""

    model: str = option(
        "openai-gpt",
        'folder of a fine-tuned model; "openai-gpt" is the released one, downloaded once',
        metavar="MODEL",
    )
    model_checkpoint: str = option("", "the same; wins over --model", metavar="MODEL")


@dataclass(frozen=True)
class MeasureOptions:
    """What an evaluation measures, and by what it ranks."""

    eval_type: list[str] = option(["hits@1"], "what to measure", nargs="+", choices=EVAL_TYPES)
    rank_by: str = option(
        "head",
        "what candidates are ranked by: the ranking head; their log-probability per token; that less the one without "
        "a context (pmi); or head and pmi, each standardized among an example's candidates",
        choices=RANKINGS,
    )


@dataclass(frozen=True)
class PrecisionOptions:
    """Which numbers a fine-tuned model computes with."""

    bf16: bool = option(False, "compute in bfloat16, where the hardware has it", exclusive="precision")
    int8: bool = option(False, "8-bit weights, on CPUs: several times as fast in chat", exclusive="precision")

    @property
    def precision(self) -> str:
        return precision_of(vars(self))


def precision_of(options: Mapping[str, Any]) -> str:
    """Return what PrecisionOptions say, as quantization.lower_precision takes it."""
    return next((name for name in ("bf16", "int8") if options[name]), "fp32")


@dataclass(frozen=True)
class DecodingSettings:
    """How replies are chosen; names and defaults as published, beams beside them."""

    no_sample: bool = option(False, "always take the likeliest token (greedy)")
    max_length: int = option(20, "longest reply, in tokens", kind=positive_int, limits=(1, 10_000))
    min_length: int = option(1, "shortest reply, in tokens", kind=non_negative_int, limits=(0, 10_000))
    temperature: float = option(
        0.7,
        "below 1 sharpens, above flattens",
        kind=positive_float,
        limits=(0.01, 100),  # far below, logits overflow; no_sample is the limit
    )
    top_k: int = option(0, "sample among the k likeliest; 0: no limit", kind=non_negative_int, limits=(0, 1_000_000))
    top_p: float = option(  # Holtzman et al., 2019, arXiv 1904.09751
        0.9,
        "sample among the likeliest that make up this probability; 0: no limit",
        kind=probability,
        limits=(0, 1),
    )
    num_beams: int = option(1, "beam search where above 1", kind=positive_int, limits=(1, 100))
    no_repeat_ngram_size: int = option(
        0, "no n-gram of this length twice in a reply; 0: no limit", kind=non_negative_int, limits=(0, 10_000)
    )
    length_penalty: float = option(
        1.0, "beams are compared by log-probability / length ** this", kind=non_negative_float, limits=(0, 10)
    )

    def __post_init__(self):
        """Raise ValueError for a setting out of its range."""
        check_limits(self)
        if self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} is above max_length {self.max_length}")

    @property
    def samples(self) -> bool:
        """Whether chance decides: neither greedy nor beams."""
        return not self.no_sample and self.num_beams == 1


@dataclass(frozen=True)
class DecodingOptions(DecodingSettings):
    """How replies are chosen, and the seed of those that chance decides."""

    seed: int | None = option(
        None,
        "random seed for sampled replies (if not given, 42) and for the persona drawn",
        kind=seed_number,
    )

    def decoding_settings(self) -> DecodingSettings:
        return DecodingSettings(**{one.name: getattr(self, one.name) for one in fields(DecodingSettings)})

    @property
    def sampling_seed(self) -> int:
        return chosen_seed(vars(self))


def chosen_seed(options: Mapping[str, Any]) -> int:
    """Return the seed that replies are sampled with: without one of `--seed` they are the same every time, too."""
    return 42 if options["seed"] is None else options["seed"]


@dataclass(frozen=True)
class AgentOptions(DecodingOptions, PrecisionOptions, DeviceOptions, InputOptions):
    """What a dialog agent is set up by, beside its folder."""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """Pick them out of others, such as ParlAI's; UserError for a value out of its range."""
        try:
            return cls(**{one.name: options[one.name] for one in fields(cls)})
        except ValueError as error:
            raise UserError(f"{error}; see --help.") from error
