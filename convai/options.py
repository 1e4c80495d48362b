"""The command-line options of the scripts: names and defaults as published, additions marked where they differ.

Light on purpose: --help and a mistyped option must answer before torch is imported.
"""

import argparse
import os
from collections.abc import Mapping
from typing import Any

MAX_SEED = 2**63 - 1  # what torch takes
DATA_HELP = (
    "file, folder, TRAIN,VALID, URL or hub:OWNER/NAME; JSON, ParlAI text or parquet; "
    '"" downloads PersonaChat, "example" is the embedded set'
)


def training_parser() -> argparse.ArgumentParser:
    """Options of train.py."""
    parser = _parser("Fine-tune GPT or GPT-2 into a dialog agent with a persona (TransferTransfo).")
    data = parser.add_argument_group("data")
    add_data_options(data)
    data.add_argument(
        "--num_candidates",
        type=positive_int,
        default=2,
        help="candidate replies per training example, gold included; validation uses all",
    )
    data.add_argument(
        "--max_history",
        type=non_negative_int,
        default=2,
        help="exchanges kept before the turn to answer (2 * max_history + 1 utterances)",
    )
    data.add_argument(
        "--personality_permutations",
        type=positive_int,
        default=1,
        help="times each training dialog is seen an epoch, its persona sentences rotated",
    )
    data.add_argument(
        "--align_history",
        action="store_true",
        help="number positions so that the history starts at the same one however long the persona is",
    )
    data.add_argument(
        "--history_start",
        type=non_negative_int,
        default=0,
        help="that position; longer personas are cut (default: the length of the longest training persona)",
    )
    data.add_argument(
        "--num_workers",
        type=non_negative_int,
        default=None,
        help="processes that prepare batches ahead (default: 2 with a GPU, 0 without)",
    )

    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        "--model_checkpoint",
        dest="model_checkpoint",
        default="openai-gpt",
        metavar="MODEL",
        help="folder, URL of an archive, short name (openai-gpt, gpt2, gpt2-medium, ...) or hub name",
    )
    model.add_argument(
        "--from_scratch", action="store_true", help="draw new weights; MODEL then needs config.json and vocabulary only"
    )
    add_tokenization_options(model)

    training = parser.add_argument_group("training")
    training.add_argument("--train_batch_size", type=positive_int, default=4, help="examples per forward pass")
    training.add_argument("--valid_batch_size", type=positive_int, default=4, help="examples per forward pass")
    training.add_argument(
        "--gradient_accumulation_steps", type=positive_int, default=8, help="forward passes per update"
    )
    training.add_argument("--lr", type=positive_float, default=6.25e-5, help="learning rate at its highest")
    training.add_argument(
        "--warmup",
        type=non_negative_int,
        default=0,
        help="updates during which the learning rate rises; after them it falls to zero",
    )
    training.add_argument("--lm_coef", type=non_negative_float, default=1.0, help="weight of the language-model loss")
    training.add_argument("--mc_coef", type=non_negative_float, default=1.0, help="weight of the candidate loss")
    training.add_argument("--max_norm", type=positive_float, default=1.0, help="gradients of an update are cut to it")
    training.add_argument("--n_epochs", type=positive_int, default=3, help="passes over the training data")
    training.add_argument(
        "--max_updates",
        type=non_negative_int,
        default=0,
        help="stop after so many updates, 0: no limit; the learning rate falls to zero there",
    )
    training.add_argument(
        "--patience",
        type=non_negative_int,
        default=0,
        help="stop after so many validations in a row without a better one; 0: never",
    )
    training.add_argument(
        "--best_metric",
        choices=["hits@1", "perplexity"],
        default="hits@1",
        help="what decides which checkpoint is the best; the other one breaks ties",
    )
    training.add_argument("--eval_before_start", action="store_true", help="validate once before the first update")
    training.add_argument("--seed", type=int, default=42, help="of weights, dropout and the order of the examples")

    machine = parser.add_argument_group("machine and output")
    add_device_option(machine)
    machine.add_argument(
        "--fp16",
        default="",
        choices=["", "O0", "O1", "O2", "O3"],
        help="half precision by apex's levels: O1 mixed, O2 mixed with fp16 weights, O3 fp16 throughout",
    )
    machine.add_argument("--bf16", action="store_true", help="mixed precision in bfloat16, where the hardware has it")
    machine.add_argument(
        "--gradient_checkpointing",
        action="store_true",
        help="keep less for the backward pass and compute it again: less memory, about a third more time",
    )
    machine.add_argument(
        "--compile",
        action="store_true",
        help="let torch.compile fuse the layers' operations: a minute at the start; of use on GPUs",
    )
    machine.add_argument(
        "--local_rank",
        "--local-rank",
        type=int,
        default=-1,
        help="set by torch.distributed.launch; LOCAL_RANK in the environment does the same",
    )
    machine.add_argument(
        "--output_dir",
        type=path,
        default="",
        metavar="DIR",
        help="run folder, without another run in it (default: runs/<date>_<time>_<host>_<model>)",
    )
    machine.add_argument(
        "--set_aside", action="store_true", help="rename what is in the run folder to <name>.1, .2, ... and start"
    )
    machine.add_argument(
        "--save_every",
        type=non_negative_int,
        default=1000,
        help="updates between checkpoints, beside the one after every epoch; 0: those only",
    )
    machine.add_argument("--n_saved", type=positive_int, default=3, help="last checkpoints that are kept")
    machine.add_argument(
        "--resume",
        type=path,
        default="",
        metavar="RUN",
        help="go on with this run, its options being the defaults; auto: with the newest run of the same options",
    )
    return parser


def chat_parser() -> argparse.ArgumentParser:
    """Options of interact.py."""
    parser = _parser("Chat in the terminal with a fine-tuned dialog agent.")
    model = parser.add_argument_group("model and persona")
    add_checkpoint_options(model)
    add_device_option(model)
    add_precision_options(model)
    add_data_options(
        model, "draw the persona from this data set; if not given, from the sample that is stored with the model"
    )
    model.add_argument(
        "--personality",
        nargs="+",
        default=[],
        metavar="SENTENCE",
        help="the persona, a sentence each, or a file: a sentence a line, ParlAI's persona lines, or JSON",
    )
    model.add_argument("--no_personality", action="store_true", help="chat without a persona")
    add_decoding_options(parser.add_argument_group("decoding"))
    return parser


EVAL_TYPES = ["hits@1", "ppl", "f1"]


def evaluation_options() -> tuple[argparse.Namespace, list[str]]:
    """Return the options that convai_evaluation.py was started with, and those that it does not know: ParlAI's."""
    parser = evaluation_parser()
    args, unknown = parser.parse_known_args()
    if unknown and args.dataset_path:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}; with --dataset_path ParlAI, which may know them, "
                     "is not used")  # fmt: skip
    return args, unknown


def evaluation_parser() -> argparse.ArgumentParser:
    """Options of convai_evaluation.py."""
    parser = _parser("Score a checkpoint on the ConvAI2 task: hits@1, perplexity and F1, with ParlAI or without.")
    task = parser.add_argument_group("task")
    task.add_argument("--eval_type", nargs="+", choices=EVAL_TYPES, default=["hits@1"], help="what to measure")
    task.add_argument(
        "--dataset_path",
        default="",
        metavar="DATA",
        help='evaluate on this data without ParlAI (any form that train.py reads); "" is ParlAI\'s convai2 task',
    )
    task.add_argument("--batch_size", type=positive_int, default=16, help="examples at once; does not change results")
    task.add_argument(
        "--output", type=path, default="", metavar="FILE", help="also write the figures to this JSON file"
    )
    model = parser.add_argument_group("model")
    add_checkpoint_options(model)
    add_device_option(model)
    add_precision_options(model)
    add_decoding_options(parser.add_argument_group("decoding (F1)"))
    return parser


def add_checkpoint_options(group) -> None:
    """Add which fine-tuned model is used, and how its input is built."""
    group.add_argument(
        "--model",
        default="openai-gpt",
        metavar="MODEL",
        help='folder of a fine-tuned model; "openai-gpt" is the released one, downloaded once',
    )
    group.add_argument("--model_checkpoint", default="", metavar="MODEL", help="the same; wins over --model")
    add_input_options(group)


def add_precision_options(group) -> None:
    """Add which numbers a fine-tuned model computes with; see `precision_of`."""
    precision = group.add_mutually_exclusive_group()
    precision.add_argument("--bf16", action="store_true", help="compute in bfloat16, where the hardware has it")
    precision.add_argument("--int8", action="store_true", help="8-bit weights, on CPUs: several times as fast in chat")


def precision_of(options: Mapping[str, Any]) -> str:
    """Return what `add_precision_options` were given, as quantization.lower_precision takes it."""
    return next((name for name in ("bf16", "int8") if options[name]), "fp32")


def chosen_seed(options: Mapping[str, Any]) -> int:
    """Return the seed that replies are sampled with: without one of `--seed` they are the same every time, too."""
    return 42 if options["seed"] is None else options["seed"]


def add_input_options(group) -> None:
    """Add how a fine-tuned model's input is built."""
    add_tokenization_options(group)
    group.add_argument(
        "--max_history",
        type=non_negative_int,
        default=None,
        help="exchanges kept before the turn to answer (2 * max_history + 1 utterances; default: as many as in the "
        "model's training, 2 where that is unknown)",
    )


def add_tokenization_options(group) -> None:
    """Add what a checkpoint may not record about its tokens."""
    group.add_argument(
        "--tokenization",
        choices=["spacy", "bert", "prefix_space", "no_prefix_space"],
        help="for a checkpoint that does not record it: how GPT splits words (default: spacy), whether GPT-2's "
        "utterances start with a space (default: prefix_space)",
    )
    group.add_argument(
        "--dialog_token_ids",
        type=non_negative_int,
        nargs=5,
        metavar=("BOS", "EOS", "SPEAKER1", "SPEAKER2", "PAD"),
        help="the dialog tokens' ids, for a fine-tuned checkpoint that does not record them",
    )


def add_decoding_options(group) -> None:
    """Add how replies are chosen; the values are checked by decoding.DecodingSettings."""
    group.add_argument("--no_sample", action="store_true", help="always take the likeliest token (greedy)")
    group.add_argument("--max_length", type=positive_int, default=20, help="longest reply, in tokens")
    group.add_argument("--min_length", type=non_negative_int, default=1, help="shortest reply, in tokens")
    group.add_argument("--temperature", type=positive_float, default=0.7, help="below 1 sharpens, above flattens")
    group.add_argument("--top_k", type=non_negative_int, default=0, help="sample among the k likeliest; 0: no limit")
    group.add_argument(
        "--top_p",
        type=probability,
        default=0.9,
        help="sample among the likeliest that make up this probability; 0: no limit",
    )
    group.add_argument("--num_beams", type=positive_int, default=1, help="beam search where above 1")
    group.add_argument(
        "--no_repeat_ngram_size",
        type=non_negative_int,
        default=0,
        help="no n-gram of this length twice in a reply; 0: no limit",
    )
    group.add_argument(
        "--length_penalty",
        type=non_negative_float,
        default=1.0,
        help="beams are compared by log-probability / length ** this",
    )
    group.add_argument(
        "--seed", type=seed, default=None, help="of sampled replies (if not given, 42) and of the persona drawn"
    )


def new_model_parser() -> argparse.ArgumentParser:
    """Options of new_model.py."""
    parser = _parser("Write config.json and a vocabulary for a model to be trained from scratch.")
    parser.add_argument("folder", type=path, help="where to write them")
    parser.add_argument("--family", choices=["openai-gpt", "gpt2"], default="openai-gpt", help="kind of model")
    parser.add_argument("--dataset_path", default="", metavar="DATA", help="what the vocabulary is learned from")
    parser.add_argument("--vocab_size", type=positive_int, default=10_000, help="entries of the vocabulary at most")
    parser.add_argument(
        "--vocabulary", type=path, default="", metavar="DIR", help="take this folder's vocabulary instead"
    )
    parser.add_argument("--n_layer", type=positive_int, default=4, help="layers")
    parser.add_argument("--n_embd", type=positive_int, default=256, help="width")
    parser.add_argument("--n_head", type=positive_int, default=4, help="attention heads")
    parser.add_argument("--n_positions", type=positive_int, default=512, help="longest input, in tokens")
    parser.add_argument("--dropout", type=non_negative_float, default=0.1, help="dropout everywhere")
    parser.add_argument(
        "--initializer_range",
        type=positive_float,
        default=0.02,
        help="standard deviation of new weights; narrow models learn faster with about 1 / sqrt(n_embd)",
    )
    return parser


def add_data_options(group, path_help: str = DATA_HELP) -> None:
    """Add where dialogs come from and where their tokens are kept."""
    group.add_argument("--dataset_path", default="", metavar="DATA", help=path_help)
    group.add_argument(
        "--dataset_cache",
        type=path,
        default="./dataset_cache.bin",
        metavar="PREFIX",
        help='path prefix of the token cache; "" keeps it in memory',
    )


def add_device_option(group) -> None:
    group.add_argument("--device", default="", help='"cuda", "cpu", ... (default: cuda where there is one)')


def path(text: str) -> str:
    """Return a path with `~` expanded, which shells leave as it is in `--option=~/file`; "" and names stay."""
    return os.path.expanduser(text)


def non_negative_int(text: str) -> int:
    return _number(text, int, "a whole number of at least 0", lambda value: value >= 0)


def positive_int(text: str) -> int:
    return _number(text, int, "a whole number of at least 1", lambda value: value >= 1)


def non_negative_float(text: str) -> float:
    return _number(text, float, "a number of at least 0", lambda value: 0 <= value < float("inf"))


def probability(text: str) -> float:
    return _number(text, float, "a number from 0 to 1", lambda value: 0 <= value <= 1)


def seed(text: str) -> int:
    return _number(text, int, f"a whole number from 0 to {MAX_SEED}", lambda value: 0 <= value <= MAX_SEED)


def positive_float(text: str) -> float:
    return _number(text, float, "a number above 0", lambda value: 0 < value < float("inf"))


def _number(text: str, kind: type, wanted: str, holds):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not holds(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return value


class OneLineParser(argparse.ArgumentParser):
    """Reports a wrong option in one line, without the usage of dozens of options around it."""

    def error(self, message: str):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the defaults, but not "(default: )" and its like."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_worth_telling = action.default not in (None, "", []) and action.default is not False
        return super()._get_help_string(action) if is_worth_telling else action.help


def _parser(description: str) -> argparse.ArgumentParser:
    return OneLineParser(description=description, formatter_class=_HelpFormatter)
