"""Whole runs of train.py and new_model.py, as a user starts them."""

import json
import os
import shutil
import struct
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TEXTS, make_dialogs, tiny_config
from tensorboardX.proto.event_pb2 import Event

import train
from bench.reference import load_reference_model
from convai.model.loading import load_model, load_tokenizer
from convai.model.tokenization import train_vocabulary
from convai.training.validations import best_of

FAST = ["--train_batch_size", "4", "--gradient_accumulation_steps", "2", "--lr", "1e-3", "--device", "cpu"]


def run_script(script: str, *arguments, cwd) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def run_here(monkeypatch, cwd, *arguments) -> None:
    """Run train.py in this process, which saves the seconds of its start."""
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    train.main()


def metrics_of(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def read_events(run) -> list[Event]:
    """The events of TensorBoard's file: records of a length, its checksum, the content and its checksum."""
    (path,) = run.glob("events.out.tfevents.*")
    content, events, start = path.read_bytes(), [], 0
    while start < len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        events.append(Event.FromString(content[start + 12 : start + 12 + length]))
        start += 12 + length + 4
    return events


@pytest.fixture
def scratch_model(tmp_path, tokenizer):
    folder = tmp_path / "scratch"
    tokenizer.save(folder)
    config = tiny_config(tokenizer.family, len(tokenizer))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_run_learns_and_leaves_a_usable_folder(tmp_path, scratch_model, dataset_file, tokenizer):
    arguments = ["--from_scratch", "--model", scratch_model, "--dataset_path", dataset_file, *FAST]
    result = run_script("train.py", *arguments, "--n_epochs", 4, "--eval_before_start", "--seed", 3, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "update = 4 x 2 accumulation = 8 examples; 12 updates, 3 an epoch" in result.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.endswith(f"{os.uname().nodename}_scratch")

    metrics = metrics_of(run)
    assert [entry["updates"] for entry in metrics] == [0, 3, 6, 9, 12]
    assert metrics[-1]["perplexity"] < 0.9 * metrics[0]["perplexity"]
    assert json.loads((run / "arguments.json").read_text())["seed"] == 3
    assert [tokenizer.encode(sentence) for sentence in json.loads((run / "personas.json").read_text())[0]]
    values = [(value.tag, event.step, value) for event in read_events(run) for value in event.summary.value]
    steps = {tag: [step for other, step, _ in values if other == tag] for tag, _, _ in values}
    scalars = ("loss", "lm_loss", "mc_loss", "grad_norm", "examples/s")
    assert all(steps[f"training/{name}"] == list(range(1, 13)) for name in scalars)
    assert steps["training/lr/group_0"] == list(range(1, 13))
    assert steps["validation/perplexity"] == [0, 3, 6, 9, 12]
    assert steps["validation/hits_1"] == [3, 6, 9, 12]  # before the first update the ranking head is as it was drawn
    assert metrics[0]["hits@1"] is None and "the ranking head is untrained" in result.stderr
    texts = [value.tensor.string_val[0].decode() for tag, _, value in values if tag.startswith("validation/dialog_0")]
    assert len(texts) == 5 and all(part in texts[0] for part in ("**gold:**", "**chosen of 4:**", "**generated:**"))
    assert list(tmp_path.glob("dataset_cache.bin.*"))
    best = best_of(metrics[1:], "hits@1")
    assert f"| **{best['updates']}** | {best['epoch']} | {best['hits@1']:.3f} |" in (run / "README.md").read_text()
    for folder in (run, run / "checkpoints/update-00000012"):  # best and last
        weights = load_model(folder, load_tokenizer(folder)).transformer.tokens_embed.weight
        torch.testing.assert_close(load_reference_model(folder).get_input_embeddings().weight, weights)

    # Going on from that run, for one update of the data's three an epoch.
    again = ["--model_checkpoint", run, "--dataset_path", dataset_file, *FAST, "--output_dir", tmp_path / "second"]
    result = run_script("train.py", *again, "--max_updates", 1, "--eval_before_start", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    first, last = metrics_of(tmp_path / "second")
    assert first["perplexity"] == pytest.approx(best["perplexity"], rel=1e-5)
    assert last["updates"] == 1


def test_the_same_seed_gives_the_same_losses_twice_and_another_seed_does_not(
    tmp_path, scratch_model, dataset_file, monkeypatch
):
    arguments = ["--from_scratch", "--model", scratch_model, "--dataset_path", dataset_file, *FAST, "--max_updates", 4]
    figures = []
    for number, seed in enumerate((1, 1, 2)):
        output = tmp_path / str(number)
        run_here(monkeypatch, tmp_path, *arguments, "--seed", seed, "--output_dir", output)
        figures.append(metrics_of(output))
    assert figures[0] == figures[1] != figures[2]


def test_data_of_dialogs_without_candidates_or_persona(tmp_path, scratch_model, monkeypatch, caplog):
    caplog.set_level("INFO")
    lines = []
    for d in range(24):
        lines += [f"1 hello ! {d}\ti'm great , thanks for asking . {d}", f"2 do you have any pets ?\tyes , {d} cats ."]
    (tmp_path / "dialogs.txt").write_text("\n".join(lines))
    arguments = ["--from_scratch", "--model", scratch_model, "--dataset_path", tmp_path / "dialogs.txt", *FAST]
    run_here(monkeypatch, tmp_path, *arguments, "--n_epochs", 1, "--output_dir", "run")
    assert "train: 23 dialogs, 46 examples" in caplog.text and "valid: 1 dialogs, 2 examples" in caplog.text
    assert json.loads((tmp_path / "run/personas.json").read_text()) == []


def test_examples_that_were_cut_are_reported(tmp_path, tokenizer, dataset_file, monkeypatch, caplog):
    folder = tmp_path / "short"
    tokenizer.save(folder)
    (folder / "config.json").write_text(json.dumps(tiny_config(tokenizer.family, len(tokenizer), n_positions=24)))
    arguments = ["--from_scratch", "--model", folder, "--dataset_path", dataset_file, *FAST, "--n_epochs", 1]
    run_here(monkeypatch, tmp_path, *arguments, "--output_dir", "run")
    assert "training: 24 examples were cut to fit the model's positions" in caplog.text
    assert "validation: 8 examples were cut" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset_path", "nowhere.json"], "there is no nowhere.json"),
        (["--dataset_path", "broken.json"], "broken.json is not JSON: Expecting value at line 2, column 12"),
        (["--dataset_path", "no_turns.json"], "train dialog 1 has no turns"),
        (["--dataset_path", "http://127.0.0.1:9/data.json"], "http://127.0.0.1:9/data.json"),
        (["--model", "checkpoint_without_config", "--dataset_path", "good.json"], "has no config.json"),
        (["--model", "scratch", "--dataset_path", "good.json"], "holds no weights"),
        (["--model", "scratch", "--from_scratch", "--dataset_path", "good.json", "--output_dir", "good.json/x"],
         "cannot be written"),
        (["--lr", "fast"], "argument --lr: 'fast' is not a number above 0"),
        (["--n_epochs", "0"], "argument --n_epochs: '0' is not a whole number of at least 1"),
        (["--tokenization", "words"], "argument --tokenization: invalid choice: 'words'"),
        (["--learning_rate", "1"], "unrecognized arguments: --learning_rate 1"),
        (["--model", "scratch", "--dataset_path", "good.json", "--device", "abacus"], "--device abacus cannot be used"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_2(tmp_path, scratch_model, arguments, message, monkeypatch, capfd):
    write_bad_inputs(tmp_path)
    if "--model" not in arguments:
        arguments = ["--model", "scratch", "--from_scratch", *arguments]
    with pytest.raises(SystemExit) as exit_of:
        run_here(monkeypatch, tmp_path, *arguments)
    assert exit_of.value.code == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0]


def write_bad_inputs(folder) -> None:
    (folder / "good.json").write_text(json.dumps({"train": make_dialogs(2), "valid": make_dialogs(1)}))
    (folder / "broken.json").write_text('{"train": [],\n "valid":  oops}')
    no_turns = make_dialogs(2)
    no_turns[1]["utterances"] = []
    (folder / "no_turns.json").write_text(json.dumps({"train": no_turns, "valid": make_dialogs(1)}))
    without_config = folder / "checkpoint_without_config"
    shutil.copytree(folder / "scratch", without_config)
    (without_config / "config.json").unlink()


def test_an_error_prints_nothing_but_its_line(tmp_path, scratch_model):
    write_bad_inputs(tmp_path)
    arguments = ["--model", scratch_model, "--from_scratch", "--dataset_path", "no_turns.json"]
    result = run_script("train.py", *arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: no_turns.json: train dialog 1 has no turns")
    assert result.stderr.count("\n") == 1


def test_compiling_without_a_compiler_is_an_error_of_one_line(tmp_path, dataset_file, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    tokenizer = train_vocabulary([*TEXTS, *map(str, range(100))], "gpt2", 400)
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("gpt2", len(tokenizer))))
    result = run_script("train.py", "--model", tmp_path, "--from_scratch", "--dataset_path", dataset_file, "--compile",
                        *FAST, cwd=tmp_path)  # fmt: skip
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: --compile does not work here (")
    assert "Traceback" not in result.stderr


def test_new_model_then_training_from_its_folder(tmp_path, dataset_file, family):
    if family == "openai-gpt":
        more = ["--n_layer", 1, "--n_embd", 8, "--n_head", 2]
    else:
        more = ["--family", "gpt2", "--n_layer", 1, "--n_embd", 8, "--n_head", 2, "--vocab_size", 300]
    result = run_script("new_model.py", "models/mine", "--dataset_path", dataset_file, *more, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"models/mine: {family}, 1 layers of width 8" in result.stdout
    arguments = ["--from_scratch", "--model", "models/mine", "--dataset_path", dataset_file, "--max_updates", 1]
    result = run_script("train.py", *arguments, "--output_dir", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert load_model(tmp_path / "run", load_tokenizer(tmp_path / "run")).config.n_embd == 8


def test_a_vocabulary_is_learned_from_one_dialog_which_is_too_few_to_train_on(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(make_dialogs(1)))
    result = run_script(
        "new_model.py", "mine", "--dataset_path", "one.json", "--n_embd", 8, "--n_head", 2, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    arguments = ["--from_scratch", "--model", "mine", "--dataset_path", "one.json"]
    result = run_script("train.py", *arguments, "--output_dir", "run", cwd=tmp_path)
    assert result.returncode == 2 and "one.json: a lone dialog cannot be split" in result.stderr.splitlines()[-1]


def test_help_answers_before_the_slow_imports(tmp_path):
    code = (
        "import sys, runpy; sys.argv = ['train.py', '--help']\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit: sys.exit('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "--num_candidates" in result.stdout


@pytest.mark.parametrize("options", [["--mc_coef", 0], ["--num_candidates", 1]])
def test_a_ranking_head_that_no_update_trains_is_never_measured(tmp_path, scratch_model, dataset_file, options):
    arguments = ["--from_scratch", "--model", scratch_model, "--dataset_path", dataset_file, *FAST, *options]
    result = run_script("train.py", *arguments, "--n_epochs", 2, "--output_dir", "run", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "hits@1 -, the ranking head is not trained: perplexity decides which checkpoint" in result.stderr
    assert [entry["hits@1"] for entry in metrics_of(tmp_path / "run")] == [None, None]
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["ranking_is_trained"] is False
    assert config["max_history"] == 2
    measured = run_script("convai_evaluation.py", "--model_checkpoint", "run", "--dataset_path", dataset_file,
                          "--eval_type", "hits@1", cwd=tmp_path)  # fmt: skip
    assert measured.returncode == 2
    assert "ranking head has never been trained" in measured.stderr
