"""Options that are alike in several scripts: paths and devices."""

import argparse

import pytest

from convai import options
from convai.device import choose_device
from convai.errors import UserError
from convai.training.distributed import process_group

PARSERS = [options.training_parser, options.chat_parser, options.evaluation_parser, options.new_model_parser]
# What stands for a path in --help. MODEL and DATA may be more than a path; who reads them expands `~` in its parts.
PATHS = {"DIR", "FILE", "PREFIX", "RUN"}


def path_options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.metavar in PATHS or action.dest == "folder"]


@pytest.mark.parametrize("make_parser", PARSERS)
def test_home_is_expanded_in_every_path(make_parser, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    found = path_options(make_parser())
    assert found
    required = [] if make_parser is not options.new_model_parser else ["folder"]
    for action in found:
        arguments = [f"{action.option_strings[0]}=~/a,~/b", *required] if action.option_strings else ["~/a,~/b"]
        assert getattr(make_parser().parse_args(arguments), action.dest) == "/home/someone/a,~/b", action.dest


def test_the_paths_are_all_that_there_are():
    names = {action.dest for make_parser in PARSERS for action in path_options(make_parser())}
    assert names == {"dataset_cache", "output_dir", "resume", "output", "folder", "vocabulary"}


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
