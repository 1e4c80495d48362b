"""The options of each script: names and defaults as published, additions marked where they differ."""

from dataclasses import MISSING, dataclass, fields
from typing import ClassVar

from convai.options.declare import OptionsParser, option, parser_of
from convai.options.shared import (
    DEFAULT_MAX_HISTORY,
    EVAL_TYPES,
    FORM_NAMES,
    AgentOptions,
    CheckpointOptions,
    DataOptions,
    DecodingOptions,
    DeviceOptions,
    DistractorOptions,
    InputOptions,
    MeasureOptions,
    PrecisionOptions,
    ReadingOptions,
    TokenOptions,
)
from convai.options.values import (
    non_negative_float,
    non_negative_int,
    path,
    positive_float,
    positive_int,
    probability,
)


@dataclass(frozen=True)
class TrainingDataOptions(DistractorOptions, DataOptions):
    """Which examples are made of the dialogs, and how."""

    num_candidates: int = option(
        2, "candidate replies per training example, gold included; validation uses all", kind=positive_int
    )
    max_history: int = option(
        DEFAULT_MAX_HISTORY,
        "exchanges kept before the turn to answer (2 * max_history + 1 utterances)",
        kind=non_negative_int,
    )
    personality_permutations: int = option(
        1, "times each training dialog is seen an epoch, its persona sentences rotated", kind=positive_int
    )
    align_history: bool = option(
        False, "number positions so that the history starts at the same one however long the persona is"
    )
    history_start: int = option(
        0,
        "that position; longer personas are cut (default: the length of the longest training persona)",
        kind=non_negative_int,
    )
    num_workers: int | None = option(
        None, "processes that prepare batches ahead (default: 2 with a GPU, 0 without)", kind=non_negative_int
    )


@dataclass(frozen=True)
class StartOptions:
    """What training starts from."""

    model_checkpoint: str = option(
        "openai-gpt",
        "folder, .gguf file, URL of an archive, short name (openai-gpt, gpt2, gpt2-medium, ...) or hub name",
        names=["--model", "--model_checkpoint"],
        metavar="MODEL",
    )
    from_scratch: bool = option(False, "draw new weights; MODEL then needs config.json and vocabulary only")
    layout: str | None = option(
        None,
        "how persona and turns make one input: by the model's own chat template, or with the paper's speaker tokens "
        "(default: chat where there is a template, else speakers)",
        choices=["chat", "speakers"],
    )
    token_types: str | None = option(
        None,
        "whether the speaker's token is added to every token's embedding (default: on for GPT and GPT-2, else off)",
        choices=["on", "off"],
    )
    lora_rank: int = option(
        0, "train adapters of this rank on all linear layers instead of all weights; 0: all weights",
        kind=non_negative_int,
    )  # fmt: skip
    lora_alpha: float = option(32.0, "adapters' results are scaled by this / rank", kind=positive_float)
    lora_dropout: float = option(0.0, "dropout before the adapters", kind=probability)


@dataclass(frozen=True)
class StartModelOptions(TokenOptions, StartOptions):
    """What training starts from, and its tokens."""


@dataclass(frozen=True)
class RecipeOptions:
    """How training goes."""

    train_batch_size: int = option(4, "examples per forward pass", kind=positive_int)
    valid_batch_size: int = option(4, "examples per forward pass", kind=positive_int)
    gradient_accumulation_steps: int = option(8, "forward passes per update", kind=positive_int)
    lr: float = option(6.25e-5, "learning rate at its highest", kind=positive_float)
    head_lr: float = option(
        0.0, "that of the ranking head; 0: --lr for GPT and GPT-2, 1e-3 for others", kind=non_negative_float
    )
    warmup: int = option(
        0, "updates during which the learning rate rises; after them it falls to zero", kind=non_negative_int
    )
    lm_coef: float = option(1.0, "weight of the language-model loss", kind=non_negative_float)
    mc_coef: float = option(1.0, "weight of the candidate loss", kind=non_negative_float)
    max_norm: float = option(1.0, "gradients of an update are cut to it", kind=positive_float)
    n_epochs: int = option(3, "passes over the training data", kind=positive_int)
    max_updates: int = option(
        0, "stop after so many updates, 0: no limit; the learning rate falls to zero there", kind=non_negative_int
    )
    patience: int = option(
        0, "stop after so many validations in a row without a better one; 0: never", kind=non_negative_int
    )
    best_metric: str = option(
        "hits@1",
        "what decides which checkpoint is the best; the other one breaks ties",
        choices=["hits@1", "perplexity"],
    )
    eval_before_start: bool = option(False, "validate once before the first update")
    seed: int = option(42, "random seed for weights, dropout and the order of the examples", kind=int)


@dataclass(frozen=True)
class RunOptions(DeviceOptions):
    """What training computes with, and what it leaves behind."""

    fp16: str = option(
        "",
        "half precision by apex's levels: O1 mixed, O2 mixed with fp16 weights, O3 fp16 throughout",
        choices=["", "O0", "O1", "O2", "O3"],
    )
    bf16: bool = option(False, "mixed precision in bfloat16, where the hardware has it")
    gradient_checkpointing: bool = option(
        False, "keep less for the backward pass and compute it again: less memory, about a third more time"
    )
    compile: bool = option(
        False, "let torch.compile fuse the layers' operations: a minute at the start; of use on GPUs"
    )
    local_rank: int = option(
        -1,
        "set by torch.distributed.launch; LOCAL_RANK in the environment does the same",
        kind=int,
        names=["--local_rank", "--local-rank"],
    )
    output_dir: str = option(
        "",
        "run folder, without another run in it (default: runs/<date>_<time>_<host>_<model>)",
        kind=path,
        metavar="DIR",
    )
    set_aside: bool = option(False, "rename what is in the run folder to <name>.1, .2, ... and start")
    save_every: int = option(
        1000,
        "updates between checkpoints, beside the one after every epoch; 0: those only",
        kind=non_negative_int,
    )
    n_saved: int = option(3, "last checkpoints that are kept", kind=positive_int)
    resume: str = option(
        "",
        "go on with this run, its options being the defaults; auto: with the newest run of the same options",
        kind=path,
        metavar="RUN",
    )


@dataclass(frozen=True)
class TrainingOptions(RunOptions, RecipeOptions, StartModelOptions, TrainingDataOptions):
    """Options of train.py."""

    description: ClassVar[str] = (
        "Fine-tune GPT, GPT-2 or any other decoder into a dialog agent with a persona (TransferTransfo)."
    )
    groups: ClassVar[dict[str, type]] = {
        "data": TrainingDataOptions,
        "model": StartModelOptions,
        "training": RecipeOptions,
        "machine and output": RunOptions,
    }


@dataclass(frozen=True)
class PersonaOptions(DataOptions, PrecisionOptions, DeviceOptions, InputOptions, CheckpointOptions):
    """Whom one chats with: a model, and a persona for it."""

    dataset_path: str = option(
        "",
        "draw the persona from this data set; if not given, from the sample that is stored with the model",
        metavar="DATA",
    )
    personality: list[str] = option(
        [],
        "the persona, a sentence each, or a file: a sentence a line, ParlAI's persona lines, JSON, or a character card "
        "(JSON or PNG)",
        nargs="+",
        metavar="SENTENCE",
    )
    no_personality: bool = option(False, "chat without a persona")


@dataclass(frozen=True)
class ChatOptions(AgentOptions, PersonaOptions):
    """Options of interact.py."""

    description: ClassVar[str] = "Chat in the terminal with a fine-tuned dialog agent."
    groups: ClassVar[dict[str, type]] = {"model and persona": PersonaOptions, "decoding": DecodingOptions}


@dataclass(frozen=True)
class EvaluatedDataOptions(MeasureOptions):
    """What is measured, and on what."""

    dataset_path: str = option(
        "",
        'evaluate on this data without ParlAI (any form that train.py reads); "" is ParlAI\'s convai2 task',
        metavar="DATA",
    )
    batch_size: int = option(16, "examples at once; does not change results", kind=positive_int)
    output: str = option("", "also write the figures to this JSON file", kind=path, metavar="FILE")


@dataclass(frozen=True)
class TaskOptions(DistractorOptions, ReadingOptions, EvaluatedDataOptions):
    """What is measured, on what, and how that is read."""


@dataclass(frozen=True)
class EvaluatedModelOptions(PrecisionOptions, DeviceOptions, InputOptions, CheckpointOptions):
    """Which model is measured."""


@dataclass(frozen=True)
class EvaluationOptions(AgentOptions, EvaluatedModelOptions, TaskOptions):
    """Options of convai_evaluation.py."""

    description: ClassVar[str] = (
        "Score a checkpoint on the ConvAI2 task: hits@1, perplexity and F1, with ParlAI or without."
    )
    groups: ClassVar[dict[str, type]] = {
        "task": TaskOptions,
        "model": EvaluatedModelOptions,
        "decoding (F1)": DecodingOptions,
    }


@dataclass(frozen=True)
class ParlaiTaskOptions(MeasureOptions):
    """What the agent does, and its model, in ParlAI's own commands."""

    eval_type: list[str] = option(
        ["hits@1"],
        "rank the candidates, score the gold reply's words, generate a reply; where neither of the first two "
        "is possible, a reply is generated",
        nargs="+",
        choices=EVAL_TYPES,
    )
    model_checkpoint: str = option("", "folder of a fine-tuned model (default: released)", metavar="MODEL")


@dataclass(frozen=True)
class ParlaiOptions(AgentOptions, ParlaiTaskOptions):
    """Options that ParlAI's own commands take for our agent."""


@dataclass(frozen=True)
class NewFolderOptions:
    """The new folder: its vocabulary and the sizes of its model."""

    folder: str = option(MISSING, "where to write them", kind=path)
    family: str = option("openai-gpt", "kind of model", choices=["openai-gpt", "gpt2"])
    dataset_path: str = option("", "what the vocabulary is learned from", metavar="DATA")
    vocab_size: int = option(10_000, "entries of the vocabulary at most", kind=positive_int)
    vocabulary: str = option("", "take this folder's vocabulary instead", kind=path, metavar="DIR")
    n_layer: int = option(4, "layers", kind=positive_int)
    n_embd: int = option(256, "width", kind=positive_int)
    n_head: int = option(4, "attention heads", kind=positive_int)
    n_positions: int = option(512, "longest input, in tokens", kind=positive_int)
    dropout: float = option(0.1, "dropout everywhere", kind=non_negative_float)
    initializer_range: float = option(
        0.02,
        "standard deviation of new weights; narrow models learn faster with about 1 / sqrt(n_embd)",
        kind=positive_float,
    )


@dataclass(frozen=True)
class NewModelOptions(ReadingOptions, NewFolderOptions):
    """Options of new_model.py."""

    description: ClassVar[str] = "Write config.json and a vocabulary for a model to be trained from scratch."


@dataclass(frozen=True)
class LookedAtOptions:
    """What is looked at."""

    dataset_path: str = option(
        MISSING, 'any form that train.py reads; "" is PersonaChat, "example" the embedded set', metavar="DATA"
    )


@dataclass(frozen=True)
class InspectionOptions(InputOptions, ReadingOptions, LookedAtOptions):
    """Options of data.py."""

    description: ClassVar[str] = "Look into data before training on it, or convert it."

    model_checkpoint: str = option(
        "openai-gpt",
        'whose tokens are counted, and whose input is shown, as for train.py; "" counts words',
        names=["--model", "--model_checkpoint"],
        metavar="MODEL",
    )
    layout: str | None = option(None, "as for train.py", choices=["chat", "speakers"])
    plot: str = option("", "also draw the lengths into this image (needs matplotlib)", kind=path, metavar="FILE")
    json: bool = option(False, "write the figures as JSON instead")
    to: list[str] | None = option(
        None,
        f"only write the dialogs in another form, which is {', '.join(FORM_NAMES[:-1])} or {FORM_NAMES[-1]}; "
        "packed where the file's name ends in .gz",
        kind=path,
        nargs=2,
        metavar=("FORM", "FILE"),
    )

    def __post_init__(self) -> None:
        """Raise ValueError for a form that there is not, or for options that rule each other out."""
        if not self.to:
            return
        if self.to[0] not in FORM_NAMES:
            raise ValueError(f"--to {self.to[0]}: there is no such form; give {', '.join(FORM_NAMES)}")
        if self.plot or self.json:
            raise ValueError("--to writes dialogs only; leave out --plot and --json")


def training_parser() -> OptionsParser[TrainingOptions]:
    return parser_of(TrainingOptions)


def chat_parser() -> OptionsParser[ChatOptions]:
    return parser_of(ChatOptions)


def evaluation_parser() -> OptionsParser[EvaluationOptions]:
    return parser_of(EvaluationOptions)


def new_model_parser() -> OptionsParser[NewModelOptions]:
    return parser_of(NewModelOptions)


def inspection_parser() -> OptionsParser[InspectionOptions]:
    return parser_of(InspectionOptions)


def evaluation_options() -> tuple[EvaluationOptions, list[str]]:
    """Return the options that convai_evaluation.py was started with, and those that it does not know: ParlAI's."""
    parser = evaluation_parser()
    options, unknown = parser.parse_known_args()
    if unknown and options.dataset_path:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}; with --dataset_path ParlAI, which may know them, "
                     "is not used")  # fmt: skip
    for one in [*fields(ReadingOptions), *fields(DistractorOptions)]:
        if not options.dataset_path and getattr(options, one.name) != one.default:
            parser.error(f"--{one.name} is for data of your own, --dataset_path, not for ParlAI's tasks; leave it out")
    return options, unknown
