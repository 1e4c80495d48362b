"""The classes of options and the parsers made of them; options that are alike in several scripts: paths, devices."""

import argparse
import subprocess
import sys
from dataclasses import MISSING, FrozenInstanceError, dataclass, fields
from typing import ClassVar

import pytest
from conftest import ROOT

from bench.__main__ import parser as bench_parser
from bench.options import BenchOptions
from convai import options
from convai.device import choose_device
from convai.errors import UserError
from convai.training.distributed import process_group

PARSERS = [
    options.training_parser,
    options.chat_parser,
    options.evaluation_parser,
    options.new_model_parser,
    options.inspection_parser,
    options.serve_parser,
]
# What stands for a path in --help. MODEL and DATA may be more than a path; who reads them expands `~` in its parts.
PATHS = {"DIR", "FILE", "PREFIX", "RUN"}


def path_options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.metavar in PATHS or action.dest == "folder"]


@pytest.mark.parametrize("make_parser", PARSERS)
def test_home_is_expanded_in_every_path(make_parser, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    found = path_options(make_parser())
    assert found
    required = {options.new_model_parser: ["folder"], options.inspection_parser: ["example"]}.get(make_parser, [])
    for action in found:
        arguments = [f"{action.option_strings[0]}=~/a,~/b", *required] if action.option_strings else ["~/a,~/b"]
        assert getattr(make_parser().parse_args(arguments), action.dest) == "/home/someone/a,~/b", action.dest


def test_the_paths_are_all_that_there_are():
    names = {action.dest for make_parser in PARSERS for action in path_options(make_parser())}
    assert names == {"dataset_cache", "output_dir", "resume", "output", "folder", "vocabulary", "plot", "api_key_file",
                     "log_dialogs"}  # fmt: skip


@pytest.mark.parametrize("name", ["", "auto"])
def test_what_is_no_path_stays(name):
    assert options.training_parser().parse_args(["--resume", name, "--dataset_cache", name]).resume == name


WRONG_DEVICES = ["foo", "cuda:99", "cuda:x", "meta", "mps", "cpu:x", "CPU", "hpu", " ", "1"]


@pytest.mark.parametrize("name", WRONG_DEVICES)
@pytest.mark.parametrize("is_launched", [False, True])
def test_a_device_that_does_not_exist_is_one_line(name, is_launched, monkeypatch):
    for variable in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(variable, raising=False)
        if is_launched:
            monkeypatch.setenv(variable, "1")
    with pytest.raises(UserError) as refusal, process_group(name):
        pass
    assert str(refusal.value).startswith(f"--device {name} cannot be used (") and "\n" not in str(refusal.value)


def test_devices_that_exist():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("").type in ("cpu", "cuda")


CLASSES = {
    options.TrainingOptions: options.training_parser,
    options.ChatOptions: options.chat_parser,
    options.ServeOptions: options.serve_parser,
    options.EvaluationOptions: options.evaluation_parser,
    options.NewModelOptions: options.new_model_parser,
    options.InspectionOptions: options.inspection_parser,
    BenchOptions: bench_parser,
}
by_class = pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)


def required_of(kind: type) -> tuple[list[str], dict]:
    """Return what cannot be left out, as arguments and as fields."""
    if kind is options.NewModelOptions:
        return ["models/new"], {"folder": "models/new"}
    if kind is options.InspectionOptions:
        return ["example"], {"dataset_path": "example"}
    return (["train"], {"names": ["train"]}) if kind is BenchOptions else ([], {})


@by_class
def test_every_field_is_an_option_once_and_in_its_order(kind):
    actions = [action for action in CLASSES[kind]()._actions if action.dest != "help"]
    assert [action.dest for action in actions] == [field.name for field in fields(kind)]
    assert all(action.help for action in actions)


@by_class
def test_no_arguments_are_the_defaults(kind):
    arguments, values = required_of(kind)
    parsed = CLASSES[kind]().parse_args(arguments)
    assert type(parsed) is kind and parsed == kind(**values)
    assert list(vars(parsed)) == [field.name for field in fields(kind)]


@by_class
def test_options_stay_as_they_were_given(kind):
    with pytest.raises(FrozenInstanceError):
        kind(**required_of(kind)[1]).seed = 1


def test_lists_are_not_shared():
    one, other = (options.evaluation_parser().parse_args([]) for _ in range(2))
    one.eval_type.append("ppl")
    assert other.eval_type == options.EvaluationOptions().eval_type == ["hits@1"]


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (options.TrainingOptions, ["--lr", "0"], "argument --lr: '0' is not a number above 0 (see "),
        (options.TrainingOptions, ["--max_history", "-1"], "'-1' is not a whole number of at least 0 (see "),
        (options.TrainingOptions, ["--n_epochs", "1.5"], "'1.5' is not a whole number of at least 1 (see "),
        (options.TrainingOptions, ["--fp16", "O4"], "argument --fp16: invalid choice: 'O4'"),
        (options.ChatOptions, ["--top_p", "nan"], "argument --top_p: 'nan' is not a number from 0 to 1 (see "),
        (options.ChatOptions, ["--bf16", "--int8"], "argument --int8: not allowed with argument --bf16 (see "),
        (
            options.ChatOptions,
            ["--temperature", "0.001"],
            "temperature must be from 0.01 to 100, not 0.001; see ",
        ),
        (options.EvaluationOptions, ["--max_length", "20000"], "max_length must be from 1 to 10000, not 20000; see "),
        (options.EvaluationOptions, ["--min_length", "30"], "min_length 30 is above max_length 20; see --help"),
        (
            options.InspectionOptions,
            ["a", "--to", "csv", "b"],
            "--to csv: there is no such form; give messages, ",
        ),
        (options.NewModelOptions, [], "the following arguments are required: folder (see "),
        (BenchOptions, ["tarin"], "invalid choice: 'tarin'"),
    ],
)
def test_a_value_out_of_range_is_one_line(kind, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        CLASSES[kind]().parse_args(arguments)
    assert stopped.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and message in line and line.count("\n") == 1


def test_decoding_options_are_the_settings_and_a_seed():
    chat = options.chat_parser().parse_args(["--top_k", "5", "--no_sample", "--bf16"])
    assert chat.decoding_settings() == options.DecodingSettings(top_k=5, no_sample=True)
    assert (chat.sampling_seed, chat.precision) == (42, "bf16")
    assert options.ChatOptions(seed=0).sampling_seed == 0


def test_an_agent_s_options_are_picked_out_of_others():
    given = options.evaluation_parser().parse_args(["--num_beams", "3", "--max_history", "1"])
    picked = options.AgentOptions.of(vars(given) | {"model": "convai_evaluation:TransformerAgent"})
    assert picked == options.AgentOptions(num_beams=3, max_history=1)
    with pytest.raises(UserError, match=r"top_p must be from 0 to 1, not 2; see --help\."):
        options.AgentOptions.of(vars(given) | {"top_p": 2})


def test_another_parser_takes_the_same_options():
    parser = argparse.ArgumentParser()
    options.add_options(parser.add_argument_group("agent"), options.ParlaiOptions)
    found = parser.parse_args(["--eval_type", "f1", "ppl", "--int8"])
    assert options.ParlaiOptions(**vars(found)) == options.ParlaiOptions(eval_type=["f1", "ppl"], int8=True)


def test_a_stored_option_that_is_gone_is_passed_over():
    parser = options.training_parser()
    parser.set_defaults(lr=1e-3, momentum=0.9)
    assert parser.parse_args(["--seed", "1"]) == options.TrainingOptions(lr=1e-3, seed=1)


def test_spellings_positions_and_lists():
    @dataclass(frozen=True)
    class BakeOptions:
        description: ClassVar[str] = "Bake."
        oven: str = options.option(MISSING, "which one")
        loaves: int = options.option(1, "how many", kind=options.positive_int, names=["-n", "--number"])
        seeds: list[str] = options.option([], "what is on top", nargs="*", choices=["poppy", "sesame"])
        is_hot: bool = options.option(False, "do not preheat")

    parse = options.parser_of(BakeOptions).parse_args
    assert parse(["big"]) == BakeOptions("big")
    assert parse(["big", "--number", "2", "--is_hot", "--seeds", "poppy"]) == BakeOptions("big", 2, ["poppy"], True)


def test_options_need_none_of_the_slow_packages():
    slow = {"torch", "transformers", "ignite", "spacy", "numpy"}
    code = f"import sys, convai.options, bench.options; print(sorted(sys.modules.keys() & {slow}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
