"""Options are declared once, as fields of a dataclass; the parser that reads them is made from these.

    @dataclass(frozen=True)
    class Options:
        description: ClassVar[str] = "Bake bread."
        loaves: int = option(1, "how many", kind=positive_int)

    parser_of(Options).parse_args(["--loaves", "2"])  # Options(loaves=2)

Classes whose options several scripts share are bases of theirs. Of several bases Python puts the last one's fields
first, so they are listed from the last group of options to the first.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, field, fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


def option(
    default: Any,
    help: str,
    *,
    kind: Callable[[str], Any] | None = None,
    limits: tuple[float, float] | None = None,
    choices: Sequence[str] | None = None,
    nargs: str | int | None = None,
    metavar: str | tuple[str, ...] | None = None,
    names: Sequence[str] = (),
    exclusive: str = "",
) -> Any:
    """Return a dataclass field that is an option of the command line; `MISSING` as default: a required argument.

    `kind` makes the value of the text (see values.py), `limits` are those of the value in a class that calls
    `check_limits`. `names` are the spellings where there are others than --NAME; options with the same `exclusive` rule
    each other out. A default of False makes a switch.
    """
    argument = {"type": kind, "choices": choices, "nargs": nargs, "metavar": metavar}
    metadata = {
        "argument": {"help": help} | {key: value for key, value in argument.items() if value is not None},
        "limits": limits,
        "names": names,
        "exclusive": exclusive,
    }
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def check_limits(options) -> None:
    """Raise ValueError for a value outside the `limits` that its field declares."""
    for declared in fields(options):
        if limits := declared.metadata.get("limits"):
            lowest, highest = limits
            value = getattr(options, declared.name)
            if not lowest <= value <= highest:
                raise ValueError(f"{declared.name} must be from {lowest} to {highest}, not {value}")


def parser_of(options_class: type[Options], prog: str | None = None) -> "OptionsParser[Options]":
    """Return the parser of a class of options, described by its `description`.

    Its `groups`, if any, name in their order the classes whose options stand under a title of their own.
    """
    parser = OptionsParser(options_class, prog)
    for title, part in getattr(options_class, "groups", {}).items():
        own = {declared.name for declared in fields(part)}
        _add(parser.add_argument_group(title), [one for one in fields(options_class) if one.name in own])
    if not hasattr(options_class, "groups"):
        add_options(parser, options_class)
    return parser


def add_options(parser, options_class: type) -> None:
    """Add a class of options to a parser, or to one of its groups; ParlAI's will do, too."""
    _add(parser, fields(options_class))


def _add(parser, declared: Sequence[Field]) -> None:
    groups: dict[str, Any] = {}
    for one in declared:
        name = one.metadata["exclusive"]
        if name and name not in groups:
            groups[name] = parser.add_mutually_exclusive_group()
        _add_one(groups.get(name, parser), one)


def _add_one(parser, declared: Field) -> None:
    default = declared.default if declared.default_factory is MISSING else declared.default_factory()
    argument = declared.metadata["argument"]
    if default is MISSING:
        parser.add_argument(declared.name, **argument)
        return
    names = declared.metadata["names"] or [f"--{declared.name}"]
    if names[0] != f"--{declared.name}":
        argument = {"dest": declared.name} | argument
    if default is False:
        parser.add_argument(*names, action="store_true", **argument)
    else:
        parser.add_argument(*names, default=default, **argument)


class OneLineParser(argparse.ArgumentParser):
    """Reports a wrong option in one line, without the usage of dozens of options around it."""

    def error(self, message: str):
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


class OptionsParser(OneLineParser, Generic[Options]):
    """Makes of the command line an instance of a class of options."""

    def __init__(self, options_class: type[Options], prog: str | None = None):
        description = getattr(options_class, "description", None)
        super().__init__(prog=prog, description=description, formatter_class=_HelpFormatter)
        self.options_class = options_class

    if TYPE_CHECKING:

        def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> Options: ...  # type: ignore[override]

    def parse_known_args(  # type: ignore[override] # argparse knows of namespaces only
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> tuple[Options, list[str]]:
        """Return the options and what is none of them; ends with status 2 where the class refuses their values."""
        found, unknown = super().parse_known_args(args, namespace)
        # Defaults that were set from an older run may be of options that there are no more.
        values = {one.name: getattr(found, one.name) for one in fields(self.options_class)}
        try:
            return self.options_class(**values), unknown
        except ValueError as error:
            self.exit(2, f"error: {error}; see --help.\n")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the defaults, but not "(default: )" and its like."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_worth_telling = action.default not in (None, "", []) and action.default is not False
        return super()._get_help_string(action) if is_worth_telling else action.help
