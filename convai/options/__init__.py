"""The command-line options: a frozen dataclass for each script, which its parser is made from.

Light on purpose: --help and a mistyped option must answer before torch is imported.

    values.py       numbers and paths, as typed
    declare.py      how an option is declared, and a parser made of a class of them
    shared.py       what several scripts share, the decoding settings among it
    scripts.py      the options of each script
    serving.py      those of serve.py
"""

from convai.options.declare import OneLineParser, OptionsParser, add_options, option, parser_of
from convai.options.scripts import (
    ChatOptions,
    EvaluationOptions,
    InspectionOptions,
    NewModelOptions,
    ParlaiOptions,
    TrainingOptions,
    chat_parser,
    evaluation_options,
    evaluation_parser,
    inspection_parser,
    new_model_parser,
    training_parser,
)
from convai.options.serving import ServeOptions, serve_parser
from convai.options.shared import (
    DEFAULT_MAX_HISTORY,
    EVAL_TYPES,
    FORM_NAMES,
    RANKINGS,
    AgentOptions,
    DecodingSettings,
    DeviceOptions,
    ReadingOptions,
    chosen_seed,
    precision_of,
)
from convai.options.values import MAX_SEED, non_negative_float, non_negative_int, path, positive_float, positive_int

__all__ = [
    "DEFAULT_MAX_HISTORY",
    "EVAL_TYPES",
    "FORM_NAMES",
    "MAX_SEED",
    "RANKINGS",
    "AgentOptions",
    "ChatOptions",
    "DecodingSettings",
    "DeviceOptions",
    "EvaluationOptions",
    "InspectionOptions",
    "NewModelOptions",
    "OneLineParser",
    "OptionsParser",
    "ParlaiOptions",
    "ReadingOptions",
    "ServeOptions",
    "TrainingOptions",
    "add_options",
    "chat_parser",
    "chosen_seed",
    "evaluation_options",
    "evaluation_parser",
    "inspection_parser",
    "new_model_parser",
    "non_negative_float",
    "non_negative_int",
    "option",
    "parser_of",
    "path",
    "positive_float",
    "positive_int",
    "precision_of",
    "serve_parser",
    "training_parser",
]
