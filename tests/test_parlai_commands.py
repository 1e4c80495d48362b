"""ParlAI's own commands with our agent, and the script within a clone of ParlAI."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import parlai_evaluations
import pytest
from conftest import ROOT, TEXTS
from parlai_evaluations import by_ourselves, figures_of, parlai

import convai_evaluation
from convai.dialog.agent import Context
from convai.errors import UserError
from convai.model.loading import save_model
from convai.options import evaluation_parser

dialogs_file = parlai_evaluations.dialogs_file
trained_agent = parlai_evaluations.trained_agent
agent = parlai_evaluations.agent
gpt2_agent = parlai_evaluations.gpt2_agent


class TestCommands:
    """ParlAI's own commands and the script, started as a user starts them."""

    @pytest.fixture
    def checkpoint(self, gpt2_agent, tmp_path) -> Path:
        save_model(gpt2_agent.model, tmp_path / "checkpoint")
        gpt2_agent.tokenizer.save(tmp_path / "checkpoint")
        return tmp_path / "checkpoint"

    def run(self, *command, cwd=ROOT, keys="", **environment) -> str:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"} | environment
        done = subprocess.run(
            [sys.executable, *map(str, command)], cwd=cwd, input=keys, capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def parlai(self, command, checkpoint, *arguments, **options) -> str:
        model = ["-m", "convai_evaluation:TransformerAgent", "--model-checkpoint", checkpoint, "--no-sample"]
        return self.run("-m", "parlai", command, *model, *arguments, **options)

    def test_eval_model(self, gpt2_agent, checkpoint, dialogs_file, tmp_path):
        data = ["-t", "fromfile:fbformat", "--fromfile-datapath", dialogs_file]
        metrics = ["--eval-type", "hits@1", "ppl", "f1", "--report-filename", tmp_path / "report"]
        self.parlai("eval_model", checkpoint, *data, *metrics, "-bs", "4")
        report = json.loads((tmp_path / "report").read_text())["report"]
        ours = figures_of(by_ourselves(dialogs_file), gpt2_agent)
        for name in ("hits@1", "hits@5", "f1", "ppl", "ppl_all_pieces", "token_ppl"):
            assert float(report[name]) == pytest.approx(ours[name], rel=2e-3), name

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--model-checkpoint", "nowhere/at/all"], "error: nowhere/at/all: there is no such folder"),
            (["--temperature", "1e-9"], "error: temperature must be from 0.01 to 100"),
        ],
    )
    def test_an_error_of_ours_ends_parlai_s_command_in_one_line(self, checkpoint, dialogs_file, options, message):
        data = ["-t", "fromfile:fbformat", "--fromfile-datapath", str(dialogs_file)]
        command = ["eval_model", "-m", "convai_evaluation:TransformerAgent", "--model-checkpoint", str(checkpoint)]
        command = [sys.executable, "-m", "parlai", *command, *data, *options]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith(message) and "Traceback" not in done.stderr + done.stdout

    def test_an_error_while_it_answers_too_but_only_in_parlai_s_commands(self, agent, monkeypatch, capsys):
        from parlai.core.message import Message

        from convai.evaluation import parlai_agent

        def refuse(*_):
            raise UserError("this model cannot rank.")

        options = vars(evaluation_parser().parse_args(["--eval_type", "hits@1"]))
        shared = {"dialog_agent": agent, "words": None}
        monkeypatch.setattr(agent, "rank_batch", refuse)
        monkeypatch.setattr(parlai_agent, "load", lambda opt: agent)
        ours, theirs = convai_evaluation.TransformerAgent(options, shared), convai_evaluation.TransformerAgent(options)
        for one in (ours, theirs, convai_evaluation.TransformerAgent(options, theirs.share())):
            one.observe(Message({"text": "hi", "label_candidates": ["a", "b"], "episode_done": True}))
            with pytest.raises(UserError if one is ours else SystemExit):
                one.act()
        assert capsys.readouterr().err == "error: this model cannot rank.\n" * 2

    def test_interactive(self, gpt2_agent, checkpoint):
        keys = f"your persona: {TEXTS[7]}\\n{TEXTS[0]}\n{TEXTS[2]}\n[DONE]\n{TEXTS[0]}\n[EXIT]\n"
        out = self.parlai("interactive", checkpoint, keys=keys)
        replies = [reply.strip() for reply in re.findall(r"\[TransformerAgent\]: (.*)", out)]
        first = gpt2_agent.reply_batch([Context([TEXTS[7]], [TEXTS[0]])])[0]
        second = gpt2_agent.reply_batch([Context([TEXTS[7]], [TEXTS[0], first, TEXTS[2]])])[0]
        fresh = gpt2_agent.reply_batch([Context([], [TEXTS[0]])])[0]
        assert replies == [first.strip(), second.strip(), fresh.strip()]

    def test_self_chat(self, gpt2_agent, checkpoint, tmp_path):
        out = self.parlai("self_chat", checkpoint, "--outfile", tmp_path / "chat")
        first = gpt2_agent.reply_batch([Context([], ["Hi!"])])[0]
        second = gpt2_agent.reply_batch([Context([], [first])])[0]
        replies = [text.strip() for text in re.findall(r"\[TransformerAgent_\d\]: (.*)", out)]
        assert replies[:2] == [first.strip(), second.strip()]

    def test_script_prefers_the_clone_that_it_is_run_in(self, gpt2_agent, checkpoint, dialogs_file, tmp_path):
        clone, mark = tmp_path / "ParlAI", tmp_path / "mark"
        shutil.copytree(Path(parlai.__file__).parent, clone / "parlai", ignore=shutil.ignore_patterns("__pycache__"))
        with open(clone / "parlai" / "__init__.py", "a") as file:
            file.write(f"\nopen({str(mark)!r}, 'w').close()\n")
        data = ["-t", "fromfile:fbformat", "--fromfile-datapath", dialogs_file]
        model = ["--model_checkpoint", checkpoint]
        out = self.run(ROOT / "convai_evaluation.py", *model, *data, "--eval_type", "hits@1", cwd=clone)
        assert mark.exists()
        assert f"FINAL Hits@1: {figures_of(by_ourselves(dialogs_file), gpt2_agent, ['hits@1'])['hits@1']:.3f}" in out
