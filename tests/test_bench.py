"""Each benchmark runs on tiny sizes, both sides compute the same numbers, and a disagreement would be noticed."""

import json
import subprocess
import sys
from argparse import Namespace

import pytest
import torch

from bench import building, data, reference
from bench.__main__ import MODULE_OF, main, parser
from bench.enlarge import enlarged
from bench.measure import compare, ratio
from bench.setting import Disagreement, Setting
from tests.conftest import ROOT, TEXTS, make_dialogs
from tests.decoder_folders import make_decoder

TINY = ["--small", "--repeats", "1", "--examples", "3", "--reference_examples", "2", "--batch_size", "2"]


def run(names, dataset_file, capsys, *more):
    main([*names, *TINY, "--data", str(dataset_file), *more])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("name", MODULE_OF)
def test_benchmark_runs_and_reports_both_sides(name, family, dataset_file, capsys):
    reports = run([name], dataset_file, capsys, "--family", family)
    assert [report["name"].split("-")[0] for report in reports] == [name] * len(reports)
    for report in [report for report in reports if "ours" in report]:
        assert report["ours"] > 0 and report["reference"] > 0 and report["ratio"] > 0
        assert report["model"].startswith(family) and report["threads"] >= 1 and report["command"]
        assert report.get("difference", 0) < 1e-4


@pytest.mark.parametrize("name", ["train", "hits", "ppl", "reply"])
def test_bf16_runs_beside_a_reference_in_fp32(name, dataset_file, capsys):
    report = run([name], dataset_file, capsys, "--dtype", "bf16")[0]
    assert report["dtype"] == "bf16"
    assert ("reference_bf16" in report) == (name == "train")


def test_data_of_personachats_size_are_made_of_small_ones(dataset_file, capsys, monkeypatch):
    monkeypatch.setattr(data, "PERSONACHAT_DIALOGS", {"train": 40, "valid": 6})
    tokenizing, cache = run(["data"], dataset_file, capsys, "--personachat_size")
    assert tokenizing["examples"] == 46 and tokenizing["strings"] > 5 * tokenizing["unique"]
    assert cache["cache_mb"] > 0 and cache["reopen_ms"] > 0 and cache["loader_mb"] is not None


def test_enlarged_data_repeat_as_personachat_does():
    dialogs = enlarged(make_dialogs(10), 21, seed=1)
    assert len(dialogs) == 21
    assert [len(dialog["utterances"]) for dialog in dialogs[:2]] == [7, 8]  # both sides of one conversation
    assert dialogs[0]["utterances"][-1]["history"] == dialogs[1]["utterances"][-1]["history"][:-1]
    assert {len(utterance["candidates"]) for dialog in dialogs for utterance in dialog["utterances"]} == {20}
    assert enlarged(make_dialogs(10), 21, seed=1) == dialogs != enlarged(make_dialogs(10), 21, seed=2)


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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_memory_of_the_work_is_seen():
    def work():
        torch.ones(50_000_000 // 4).sum()
        return 1

    peak = compare({"ours": work}, 1)["ours"].peak_mb
    assert peak is not None and 45 < peak < 120


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


def test_the_kernels_are_compared_with_torchs_own():
    command = [sys.executable, "-m", "bench.kernels", "--small", "--repeats", "1", "--examples", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" times as long without (bf16, 4 candidates)") == 3


@pytest.mark.parametrize("is_decoder", [False, True])
def test_long_chats_are_read_with_and_without_earlier_readings(is_decoder, tmp_path, monkeypatch, dataset_file, capsys):
    from bench import long_chats

    monkeypatch.setenv("CONVAI_CACHE", str(tmp_path / "cache"))
    model = ["--tokenizer", str(make_decoder(tmp_path / "model"))] if is_decoder else ["--small"]
    long_chats.main([*model, "--data", str(dataset_file), "--turns", "4", "--repeats", "1"])
    reports = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [report["max_history"] for report in reports] == ["2", "8", "whole"]
    for report in reports:
        read, read_anew = report["tokens_read_with"], report["tokens_read_without"]
        assert read[0] == read_anew[0] and read[1] < read_anew[1] / 2
        assert len(report["first_token_ms_with"]) == len(report["first_token_ms_without"]) == 4
    assert reports[-1]["tokens_read_with"][-1] < reports[-1]["tokens_read_without"][-1] / 4


def test_a_decoders_tree_against_padded_candidates(tmp_path, monkeypatch, dataset_file, capsys):
    from bench import decoders

    monkeypatch.setenv("CONVAI_CACHE", str(tmp_path / "cache"))
    folder = make_decoder(tmp_path / "model")
    decoders.main([str(folder), "--data", str(dataset_file), "--examples", "3", "--repeats", "1"])
    report = json.loads(capsys.readouterr().out)
    assert report["ratio"] > 0
    assert report["padded tokens an example"] > 2 * report["tree tokens an example"]
    # Scores of another attention would not be those of the trees, and then nothing is timed.
    monkeypatch.setattr(decoders, "padded", lambda tree: (torch.ones(4, 9, dtype=torch.long),) * 2)
    with pytest.raises(Disagreement):
        decoders.main([str(folder), "--data", str(dataset_file), "--examples", "3", "--repeats", "1"])


def test_rankings_are_those_of_the_evaluation(tmp_path, monkeypatch, dataset_file, capsys):
    import convai_evaluation
    from bench import rankings

    monkeypatch.setenv("CONVAI_CACHE", str(tmp_path / "cache"))
    folder = make_decoder(tmp_path / "model")
    rankings.main([str(folder), "--data", str(dataset_file)])
    report = json.loads(capsys.readouterr().out)
    assert not {"head", "head+pmi"} & report.keys()  # its head has never been trained
    output = tmp_path / "figures.json"
    for by in ("likelihood", "pmi"):
        monkeypatch.setattr("sys.argv", ["convai_evaluation.py", "--model_checkpoint", str(folder), "--rank_by", by,
                                         "--dataset_path", str(dataset_file), "--output", str(output)])  # fmt: skip
        convai_evaluation.main()
        assert json.loads(output.read_text())["results"]["hits@1"]["hits@1"] == report[by]


@pytest.mark.parametrize("form", ["personachat", "messages"])
def test_building_is_measured_at_any_size(form, checkpoint, dataset_file, capsys, monkeypatch):
    monkeypatch.setattr(building, "PAUSE_S", 0)
    building.main(["--tokenizer", str(checkpoint), "--data", str(dataset_file), "--dialogs", "30", "--form", form])
    (facts,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (facts["form"], facts["dialogs"]) == (form, 30)
    assert min(facts[name] for name in ("prepare_s", "prepare_cpu_s", "cache_mb", "reopen_ms", "open_with_hash_ms")) > 0
