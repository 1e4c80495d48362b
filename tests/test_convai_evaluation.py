"""The script convai_evaluation.py where ParlAI is missing: what it prints and writes, interrupts, mistakes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TEXTS, make_dialogs, tiny_model
from safetensors.torch import load_file, save_file

import convai_evaluation
from convai.evaluation.report import print_final_line, print_table, run
from convai.model.loading import save_model
from convai.model.tokenization import train_vocabulary


@pytest.fixture(scope="module")
def gpt2_checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2") / "checkpoint"
    tokenizer = train_vocabulary(TEXTS, "gpt2", 400)
    save_model(tiny_model(tokenizer), folder)
    tokenizer.save(folder)
    return folder


class TestScript:
    def start(self, *arguments) -> subprocess.Popen:
        """Start the script where ParlAI cannot be imported."""
        code = "import runpy, sys; sys.modules['parlai'] = None; sys.argv[0] = 'convai_evaluation.py'; " \
               "runpy.run_path('convai_evaluation.py', run_name='__main__')"  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code, *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)

    def test_all_three_end_in_final_lines_a_table_and_json(self, gpt2_checkpoint, dataset_file, tmp_path):
        output = tmp_path / "sub" / "figures.json"
        arguments = ["--model_checkpoint", gpt2_checkpoint, "--dataset_path", dataset_file, "--output", output]
        process = self.start(*arguments, "--eval_type", "hits@1", "ppl", "f1")
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        final = re.findall(r"^FINAL (\S+): (\d+\.\d+)$", out, re.MULTILINE)
        assert [name for name, _ in final] == ["Hits@1", "PPL", "F1"]
        content = json.loads(output.read_text())
        results = {name: values[name] for name, values in content["results"].items()}
        assert [f"{results['hits@1']:.3f}", f"{results['ppl']:.2f}", f"{results['f1']:.4f}"] == [v for _, v in final]
        assert not content["partial"]
        assert content["results"]["ppl"]["token_ppl"] != content["results"]["ppl"]["ppl"]
        assert re.search(r"^this run +[\d.]+ +[\d.]+ +[\d.]+$", out, re.MULTILINE)
        assert re.search(r"^competition entry, validation +82.1 +17.51 +19.09$", out, re.MULTILINE)
        assert "token perplexity (per BPE token" in out
        assert "8/8" in err

    def test_an_untrained_ranking_head_has_no_hits_and_the_other_figures_are_printed(
        self, gpt2_checkpoint, dataset_file, tmp_path
    ):
        folder = shutil.copytree(gpt2_checkpoint, tmp_path / "headless")
        weights = load_file(gpt2_checkpoint / "model.safetensors")
        kept = {name: tensor.clone() for name, tensor in weights.items() if not name.startswith("multiple_choice_head")}
        save_file(kept, folder / "model.safetensors")
        output = tmp_path / "figures.json"
        arguments = ["--model_checkpoint", folder, "--dataset_path", dataset_file, "--output", output]
        process = self.start(*arguments, "--eval_type", "hits@1", "ppl")
        out, err = process.communicate(timeout=120)
        assert process.returncode == 2
        assert err.splitlines()[-1].startswith("error: hits@1: the model's ranking head has never been trained")
        assert "Hits" not in out
        assert re.search(r"^FINAL PPL: [\d.]+$", out, re.MULTILINE)
        assert re.search(r"^this run +- +[\d.]+ +-$", out, re.MULTILINE)
        assert "never been trained" in json.loads(output.read_text())["results"]["hits@1"]["refusal"]
        alone = self.start(*arguments[:4], "--eval_type", "hits@1")
        out, err = alone.communicate(timeout=120)
        assert (alone.returncode, out) == (2, "")

    def test_interrupt_prints_the_figures_so_far_and_exits_130(self, gpt2_checkpoint, tmp_path):
        data, output = tmp_path / "long.json", tmp_path / "figures.json"
        data.write_text(json.dumps({"valid": make_dialogs(3000)}))
        arguments = ["--model_checkpoint", gpt2_checkpoint, "--dataset_path", data, "--output", output]
        process = self.start(*arguments, "--batch_size", "1", "--eval_type", "f1", "ppl")
        seen = ""
        while "examples/s]" not in seen:
            seen += process.stderr.read(1)
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        n_done = int(re.search(r"FINAL F1: \d\.\d+ \(partial: (\d+) of 6000 examples\)", out)[1])
        assert 0 < n_done < 6000
        assert "this run (partial)" in out
        assert "PPL" not in out
        content = json.loads(output.read_text())
        assert content["partial"]
        assert content["results"]["f1"]["n_examples"] == n_done

    def test_interrupt_before_the_first_example(self, gpt2_checkpoint, dataset_file, capsys):
        def interrupted():
            raise KeyboardInterrupt
            yield

        result = run("f1", 8, interrupted())
        assert result == ({"n_examples": 0}, 0, 8, True, "", None)
        print_final_line("f1", result)
        print_table({"f1": result}, "data")
        assert "f1: interrupted before anything was scored" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--dataset_path", "/nowhere"], "there is no /nowhere"),
            (["--dataset_path", "example", "--output", "/dev/null/x"], "--output /dev/null/x cannot be written"),
            (["--distractors", "similar"], "--distractors is for data of your own, --dataset_path, not for ParlAI's"),
            (["--dataset_path", "example", "--bogus"], "unrecognized arguments: --bogus; with --dataset_path ParlAI"),
            (["--dataset_path", "example", "--min_length", "30"], "min_length 30 is above max_length 20; see --help"),
            (["--dataset_path", "example", "--model", "gpt2"], "gpt2 is only pre-trained"),
            (
                [],
                r"ParlAI cannot be imported .*pip install --no-deps -r .*requirements-parlai.txt.*--dataset_path FILE",
            ),
        ],
    )
    def test_mistakes_are_refused_in_one_line(self, gpt2_checkpoint, monkeypatch, capsys, arguments, message):
        monkeypatch.setitem(sys.modules, "parlai", None)
        checkpoint = [] if "--model" in arguments else ["--model_checkpoint", str(gpt2_checkpoint)]
        monkeypatch.setattr(sys, "argv", ["convai_evaluation.py", *checkpoint, *arguments])
        with pytest.raises(SystemExit) as stopped:
            convai_evaluation.main()
        assert stopped.value.code == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1
        assert re.search(message, line)


def test_importing_the_script_needs_no_parlai():
    code = "import sys; sys.modules['parlai'] = None; import convai_evaluation; print(convai_evaluation.main.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "main\n"), done.stderr
    with pytest.raises(AttributeError, match="has no attribute 'Nonsense'"):
        _ = convai_evaluation.Nonsense
