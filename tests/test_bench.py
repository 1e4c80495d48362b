"""Each benchmark runs on tiny sizes, both sides compute the same numbers, and a disagreement would be noticed."""

import json
from argparse import Namespace

import pytest
import torch

from bench import reference
from bench.__main__ import MODULE_OF, main, parser
from bench.measure import compare, ratio
from bench.setting import Disagreement, Setting
from tests.conftest import TEXTS

TINY = ["--small", "--repeats", "1", "--examples", "3", "--reference_examples", "2", "--batch_size", "2"]


def run(names, dataset_file, capsys, *more):
    main([*names, *TINY, "--data", str(dataset_file), *more])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("name", MODULE_OF)
def test_benchmark_runs_and_reports_both_sides(name, family, dataset_file, capsys):
    reports = run([name], dataset_file, capsys, "--family", family)
    assert [report["name"].split("-")[0] for report in reports] == [name] * len(reports)
    for report in reports:
        assert report["ours"] > 0 and report["reference"] > 0 and report["ratio"] > 0
        assert report["model"].startswith(family) and report["threads"] >= 1 and report["command"]
        assert report.get("difference", 0) < 1e-4


@pytest.mark.parametrize("name", ["train", "hits", "ppl", "reply"])
def test_bf16_runs_beside_a_reference_in_fp32(name, dataset_file, capsys):
    report = run([name], dataset_file, capsys, "--dtype", "bf16")[0]
    assert report["dtype"] == "bf16"
    assert ("reference_bf16" in report) == (name == "train")


def test_vocabulary_and_sizes_come_from_a_folder(checkpoint, dataset_file, capsys, tokenizer):
    report = run(["hits"], dataset_file, capsys, "--tokenizer", str(checkpoint))[0]
    assert f"{len(tokenizer)} tokens" in report["model"]


def test_other_numbers_are_a_disagreement():
    setting = Setting(Namespace(dtype="fp32"))
    assert setting.check_same("scores", [1.0, 200.0], [1.0, 200.01]) == pytest.approx(0.01 / 200.01, rel=1e-6)
    with pytest.raises(Disagreement, match="scores"):
        setting.check_same("scores", [1.0, 2.0], [1.0, 2.1])
    with pytest.raises(Disagreement):
        setting.check_same("scores", [float("nan")], [1.0])


def test_ways_take_turns_and_are_compared_turn_by_turn():
    turns = []

    def way(name, n):
        return lambda: turns.append(name) or n

    measured = compare({"ours": way("ours", 8), "reference": way("reference", 2)}, 3)
    assert turns == ["ours", "reference"] * 3
    expected = [a / b for a, b in zip(measured["ours"].rates, measured["reference"].rates, strict=True)]
    assert ratio(measured["ours"], measured["reference"]) == sorted(expected)[1]


def test_memory_of_the_work_is_seen():
    def work():
        torch.ones(50_000_000 // 4).sum()
        return 1

    peak = compare({"ours": work}, 1)["ours"].peak_mb
    assert peak is None or 45 < peak < 120


def test_plain_encoder_gives_the_tokenizers_ids(tokenizer):
    encode = reference.plain_encoder(tokenizer)
    texts = [*TEXTS, "I’m “here” … &amp; there—ok??", "", "  two  spaces\tand\na line "]
    nested = {"a": texts, "b": [{"c": TEXTS[0]}]}
    assert reference.tokenize_strings(nested, encode) == {
        "a": [tokenizer.encode(text) for text in texts],
        "b": [{"c": tokenizer.encode(TEXTS[0])}],
    }


def test_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit) as exit_info:
        parser().parse_args(["tarin"])
    assert exit_info.value.code == 2 and "tarin" in capsys.readouterr().err
