"""The options of serve.py."""

import argparse
from dataclasses import dataclass
from typing import ClassVar

from convai.options.declare import OptionsParser, option, parser_of
from convai.options.shared import (
    AgentOptions,
    CheckpointOptions,
    DataOptions,
    DecodingOptions,
    DeviceOptions,
    InputOptions,
    PrecisionOptions,
)
from convai.options.values import non_negative_int, path, positive_float, positive_int, seed_number


def port_number(text: str) -> int:
    number = non_negative_int(text)
    if number > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: they end at 65535")
    return number


@dataclass(frozen=True)
class LimitOptions:
    """What one request, and all together, may ask for."""

    max_batch: int = option(32, "replies that are generated at once", kind=positive_int)
    max_waiting: int = option(64, "requests that may wait; further ones are answered 429", kind=positive_int)
    deadline: float = option(60.0, "seconds that a request may take in all, waiting included", kind=positive_float)
    send_timeout: float = option(15.0, "seconds that a client may take to send a request", kind=positive_float)
    max_body: int = option(1_000_000, "bytes of a request", kind=positive_int)
    max_messages: int = option(1000, "messages of a request", kind=positive_int)
    max_characters: int = option(100_000, "characters of all texts of a request together", kind=positive_int)
    max_tokens: int = option(
        256, "longest reply, in tokens, whatever a request asks for; at most half the model's positions",
        kind=positive_int,
    )  # fmt: skip
    max_choices: int = option(8, "replies to one request (n)", kind=positive_int)
    max_documents: int = option(100, "candidates that one request may have ranked", kind=positive_int)


@dataclass(frozen=True)
class AddressOptions:
    """Who may ask."""

    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0 or :: lets other machines in", metavar="ADDRESS")
    port: int = option(8000, "port to listen at; 0: any that is free", kind=port_number)
    allowed_hosts: list[str] = option(
        [],
        "names by which clients may call this server, beside localhost and --host, as behind a proxy; *.example.org "
        "allows all below example.org, * any",
        nargs="+",
        metavar="NAME",
    )
    cors_origins: list[str] = option(
        [], "other sites whose pages may use the API, as https://example.org", nargs="+", metavar="ORIGIN"
    )
    api_key_file: str = option(
        "",
        "file with the key that requests must bring, one a line where there are several; else CONVAI_API_KEY in the "
        "environment; without either, no key is asked for",
        kind=path,
        metavar="FILE",
    )
    log_dialogs: str = option(
        "",
        "append dialogs to this file, as chat messages that training reads; else nothing that is said is kept",
        kind=path,
        metavar="FILE",
    )


@dataclass(frozen=True)
class ServedModelOptions(DataOptions, PrecisionOptions, DeviceOptions, InputOptions, CheckpointOptions):
    """Whom one talks to: a model, and personas to shuffle."""

    dataset_path: str = option(
        "",
        "the page's personas come from this data set; if not given, from the sample that is stored with the model",
        metavar="DATA",
    )


@dataclass(frozen=True)
class ServeOptions(AgentOptions, LimitOptions, AddressOptions, ServedModelOptions):
    """Options of serve.py."""

    description: ClassVar[str] = "Serve a fine-tuned dialog agent: a web page and an API."
    groups: ClassVar[dict[str, type]] = {
        "model": ServedModelOptions,
        "address and access": AddressOptions,
        "limits": LimitOptions,
        "decoding, where a request does not say": DecodingOptions,
    }

    seed: int | None = option(
        None,
        "sampled replies are drawn from this seed on, so that the same requests in the same order get the same; if not "
        "given, each request draws anew",
        kind=seed_number,
    )


def serve_parser() -> OptionsParser[ServeOptions]:
    return parser_of(ServeOptions)
