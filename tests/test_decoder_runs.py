"""Runs on other decoders than GPT and GPT-2: whole runs of train.py, and what their folders are to other programs."""

import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TEXTS, make_dialogs
from decoder_folders import make_decoder
from safetensors.torch import load_file, save_file
from test_distributed import environment, free_port
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import train
from bench import merging
from convai.dialog.agent import Context, DialogAgent
from convai.errors import NoFigure, UserError
from convai.model.loading import load_model, load_tokenizer
from convai.options import DecodingSettings, training_parser
from convai.training.resume import resolve_options
from convai.training.run_folder import checkpoint_folder, list_checkpoints

CPU = torch.device("cpu")
OPTIONS = "--model base --dataset_path dialogs.json --gradient_accumulation_steps 2 --lr 3e-3 --head_lr 1e-2"
OPTIONS += " --n_epochs 2 --valid_batch_size 8 --dataset_cache cache --device cpu --output_dir run"
GREEDY = DecodingSettings(no_sample=True, max_length=12)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory with a tiny Llama and 12 dialogs (24 examples: three updates an epoch)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONVAI_CACHE", str(tmp_path / "user-cache"))
    make_decoder(tmp_path / "base")
    data = {"train": make_dialogs(12), "valid": make_dialogs(4)}
    (tmp_path / "dialogs.json").write_text(json.dumps(data))
    return tmp_path


def run_train(*more: str) -> None:
    train.train(resolve_options(training_parser(), [*OPTIONS.split(), *more]), CPU)


def metrics_of(run: str) -> list[dict]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def weights_of(folder: str | Path, name: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return load_file(Path(folder, name))


def assert_same_runs(one: str, other: str) -> None:
    for name in ("model.safetensors", "heads.safetensors"):
        first, second = weights_of(one, name), weights_of(other, name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


def interrupted(monkeypatch, at_update: int, *more: str) -> None:
    """Run until an update, in which the process is as good as killed; then go on."""
    from convai.training import trainer

    real, n_seen = trainer.Trainer.step, 0

    def step(self, update, number, has_share=True):
        nonlocal n_seen
        if number == at_update:
            raise KeyboardInterrupt
        return real(self, update, number, has_share)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer.Trainer, "step", step)
        run_train("--save_every", "1", *more)
    run_train("--resume", "run")


@pytest.fixture(params=["full", "lora", "lora, speakers"])
def mode(request) -> list[str]:
    lora = ["--lora_rank", "4", "--lora_dropout", "0.1"]
    return {"full": [], "lora": lora, "lora, speakers": [*lora, "--layout", "speakers", "--token_types", "on"]}[
        request.param
    ]


def test_a_run_learns_and_other_programs_give_the_agents_replies(mode):
    run_train("--eval_before_start", *mode)
    before, *_, after = metrics_of("run")
    assert before["hits@1"] is None
    assert after["perplexity"] < before["perplexity"] / 1.5
    agent = DialogAgent.load("run", [TEXTS[7]], settings=GREEDY)
    assert agent.tokenizer.layout == ("speakers" if "speakers" in mode else "chat")
    assert agent.model.config.token_types == ("speakers" in mode)
    assert len(agent.rank_batch([(Context([TEXTS[7]], [TEXTS[0]]), TEXTS[:4])])[0]) == 4
    if "speakers" in mode:
        return
    model = AutoModelForCausalLM.from_pretrained("run", dtype=torch.float32)
    generate = pipeline("text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained("run"))
    for n_turns in range(1, len(TEXTS)):
        reply = agent.reply_batch([Context([TEXTS[7]], TEXTS[:n_turns])])[0]
        seen = TEXTS[:n_turns][-5:]  # the last max_history exchanges and the turn to answer
        roles = ["user" if (len(seen) - n) % 2 else "assistant" for n in range(len(seen))]
        messages = [{"role": role, "content": text} for role, text in zip(roles, seen, strict=True)]
        messages = [{"role": "system", "content": TEXTS[7]}, *messages]
        theirs = generate(messages, do_sample=False, max_new_tokens=12)[0]["generated_text"][-1]["content"]
        assert reply == theirs.strip()


def test_going_on_is_exact(mode, monkeypatch):
    run_train(*mode)
    Path("run").rename("whole")
    interrupted(monkeypatch, 4, *mode)
    assert_same_runs("run", "whole")
    assert metrics_of("run") == metrics_of("whole")


@pytest.mark.parametrize("more", [["--bf16"], ["--fp16", "O1"], ["--gradient_checkpointing"]], ids=" ".join)
@pytest.mark.parametrize("lora", [[], ["--lora_rank", "4"]], ids=["full", "lora"])
def test_precision_and_memory_options(more, lora):
    run_train(*lora)
    Path("run").rename("plain")
    run_train(*lora, *more)
    plain, other = (metrics_of(run)[-1]["nll"] for run in ("plain", "run"))
    assert other == pytest.approx(plain, rel=1e-4 if "checkpointing" in more[0] else 0.05)


class TestCheckpointsOfAdapters:
    @pytest.fixture
    def checkpoint(self) -> Path:
        run_train("--lora_rank", "4", "--max_updates", "2")
        return checkpoint_folder(Path("run"), 2)

    def test_they_hold_no_weights_of_the_base_model_but_its_name_and_hash(self, checkpoint):
        assert not (checkpoint / "model.safetensors").exists()
        assert all(".lora_" in name for name in weights_of(checkpoint, "adapter_model.safetensors"))
        record = json.loads((checkpoint / "base.json").read_text())
        assert record["model_checkpoint"] == "base"
        assert len(record["sha256"]) == 64

    def test_they_chat_as_the_merged_model_does(self, checkpoint):
        replies = [DialogAgent.load(path, [TEXTS[7]], settings=GREEDY).reply(TEXTS[0]) for path in ("run", checkpoint)]
        assert replies[0] == replies[1]

    def test_peft_reads_them(self, checkpoint):
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32)
        ids = torch.arange(5, 25)[None]
        merged = AutoModelForCausalLM.from_pretrained("run", dtype=torch.float32)(ids).logits
        torch.testing.assert_close(PeftModel.from_pretrained(base, str(checkpoint))(ids).logits, merged)
        assert not torch.allclose(AutoModelForCausalLM.from_pretrained("base")(ids).logits, merged, atol=1e-3)

    def test_what_merging_costs_is_measured(self, checkpoint, capsys):
        merging.main([str(checkpoint), "--examples", "8"])
        rows = {row["way"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
        exact = rows.pop("fp32")
        assert exact["mean difference of a token's log-probability"] == 0
        for row in rows.values():
            assert row["token perplexity"] == pytest.approx(exact["token perplexity"], rel=0.01)
            assert row["mean difference of a token's log-probability"] > 0
        with pytest.raises(SystemExit) as exit:
            merging.main(["run"])
        assert exit.value.code == 2

    def test_another_base_is_refused(self, checkpoint):
        weights = weights_of("base")
        weights["model.norm.weight"] += 0.1
        save_file(weights, "base/model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match="was trained on other weights than those in base now"):
            load_model(checkpoint, load_tokenizer(checkpoint))

    def test_a_run_may_start_from_them(self, checkpoint):
        run_train("--output_dir", "next", "--model", str(checkpoint), "--max_updates", "1")
        assert list_checkpoints(Path("next"))


def test_the_base_model_is_not_touched_by_adapters():
    run_train("--lora_rank", "4", "--n_epochs", "1")
    base, merged = weights_of("base"), weights_of("run")
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed == {name for name in base if "_proj" in name}


def test_speakers_tokens_are_the_only_rows_that_adapters_train():
    run_train("--lora_rank", "4", "--layout", "speakers", "--n_epochs", "1")
    base, merged = (weights_of(folder)["model.embed_tokens.weight"] for folder in ("base", "run"))
    assert torch.equal(merged[: len(base)], base)
    assert len(merged) == len(base) + 5
    assert load_tokenizer("run").new_tokens == ()


def test_no_bar_is_drawn_where_there_is_no_terminal():
    code = "import sys; from convai.dialog.agent import DialogAgent; DialogAgent.load(sys.argv[1])"
    result = subprocess.run([sys.executable, "-c", code, "base"], env=environment() | {"PYTHONPATH": str(ROOT)},
                            capture_output=True, text=True, timeout=200)  # fmt: skip
    assert result.returncode == 0 and result.stderr == ""


def test_an_untrained_model_says_so():
    agent = DialogAgent.load("base", [TEXTS[7]])
    with pytest.raises(NoFigure):
        agent.rank(TEXTS[:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fp16", "O2"], "--fp16 O2: of a llama"),
        (["--tokenization", "spacy"], "--tokenization is for GPT and GPT-2, but base is a llama"),
        (["--align_history"], "--align_history is for GPT and GPT-2"),
    ],
)
def test_options_that_other_decoders_do_not_have(options, message):
    with pytest.raises(UserError, match=message):
        run_train(*options)


def test_layout_and_token_types_stay_those_of_training():
    run_train("--max_updates", "1", "--layout", "speakers")
    with pytest.raises(UserError, match="run was trained with --layout speakers; leave out --layout chat"):
        load_tokenizer("run", layout="chat")
    with pytest.raises(UserError, match="run was trained without token types"):
        load_model(Path("run"), load_tokenizer("run"), token_types=True)


def test_sharded_weights_and_no_template(tmp_path, caplog):
    make_decoder(tmp_path / "plain", template=None)
    model = AutoModelForCausalLM.from_pretrained("plain", dtype=torch.float32)
    model.save_pretrained("parts", max_shard_size="20KB")
    AutoTokenizer.from_pretrained("plain").save_pretrained("parts")
    assert len(list(Path("parts").glob("model-*-of-*.safetensors"))) > 1
    caplog.set_level(logging.INFO)
    run_train("--model", "parts", "--max_updates", "1")
    assert "layout speakers" in caplog.text
    assert load_tokenizer("run").layout == "speakers"


def test_weights_that_lack_something_are_refused(tmp_path):
    weights = weights_of("base")
    del weights["model.norm.weight"]
    save_file(weights, "base/model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights that config\.json calls for are missing"):
        run_train()


def test_scripts_of_a_checkpoint_never_run(tmp_path):
    config = json.loads(Path("base/config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "code.Own", "AutoModelForCausalLM": "code.OwnModel"}}
    Path("base/config.json").write_text(json.dumps(config))
    Path("base/code.py").write_text(f"open({str(tmp_path / 'proof')!r}, 'w')\n")
    with pytest.raises(UserError, match="it needs code of its own, which is never run"):
        run_train()
    assert not (tmp_path / "proof").exists()
    assert ROOT.exists()


def test_two_ranks_train_as_one_and_go_on_after_a_kill(tmp_path):
    make_decoder(tmp_path / "base", summary_first_dropout=0.0)
    command = [sys.executable, ROOT / "train.py", *OPTIONS.split()[:-1]]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port", free_port()]
    more = ["--train_batch_size", "2", "--lora_rank", "4", "--save_every", "1", "--n_saved", "9"]

    def finished(command, *more):
        return subprocess.run(
            [*map(str, command), *more], env=environment(), capture_output=True, text=True, timeout=200
        )

    for name, start, accumulation in (("one", command, "4"), ("two", [*launch, *command[1:]], "2")):
        result = finished(start, name, *more, "--gradient_accumulation_steps", accumulation)
        assert result.returncode == 0, result.stderr
    one, two = (weights_of(name, "heads.safetensors") for name in ("one", "two"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=1e-4)
    assert [m["nll"] for m in metrics_of("two")] == pytest.approx([m["nll"] for m in metrics_of("one")], rel=1e-4)

    killed = subprocess.Popen([*map(str, command), "killed", *more, "--gradient_accumulation_steps", "4"],
                              env=environment(), stderr=subprocess.DEVNULL)  # fmt: skip
    while not checkpoint_folder(Path("killed"), 2).exists() and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not Path("killed/heads.safetensors").exists(), "it was to be killed before its end"
    assert finished(command[:2], "--resume", "killed").returncode == 0
    assert_same_runs("killed", "one")
