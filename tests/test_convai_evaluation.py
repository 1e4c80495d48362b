"""Evaluation through ParlAI, the real one: its metrics against ours, its commands with our agent."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import DEVELOPMENT_DATA, ROOT, TEXTS, needs, tiny_model

import convai_evaluation
from convai.data.batches import collate_trees
from convai.data.formats import read_splits
from convai.data.inputs import InputBuilder
from convai.data.store import Example
from convai.dialog.agent import Context, DialogAgent
from convai.dialog.decoding import DecodingSettings
from convai.errors import UserError
from convai.evaluation import parlai_task
from convai.evaluation.metrics import (
    best_first,
    count_words,
    dictionary_texts,
    f1_score,
    gold_rank,
    hit_summands,
    split_words,
)
from convai.evaluation.own_evaluation import OwnEvaluation
from convai.evaluation.parlai_task import ParlaiEvaluation, import_parlai, parlai_options
from convai.model.double_heads import save_model
from convai.model.tokenization import train_vocabulary
from convai.options import evaluation_parser
from convai_evaluation import evaluate

parlai = needs("parlai")
import_parlai()
EVAL_TYPES = ["hits@1", "ppl", "f1"]


def write_dialogs(path: Path, n_dialogs: int, n_candidates: int) -> Path:
    """A file in ParlAI's text format whose dialogs differ in length and number of persona lines."""
    rng = random.Random(0)
    lines = []
    for d in range(n_dialogs):
        lines += [f"your persona: {TEXTS[7]} {k}" for k in range(d % 3)]
        for _ in range(1 + d % 4):
            turn, gold = rng.choice(TEXTS), f"{rng.choice(TEXTS)} {rng.randrange(60)}"
            candidates = [*(f"{rng.choice(TEXTS)} {60 + k}" for k in range(n_candidates - 1)), gold]
            rng.shuffle(candidates)
            lines.append(f"{turn}\t{gold}" + (f"\t\t{'|'.join(candidates)}" if n_candidates else ""))
        lines.append(None)
    text, number = "", 0
    for line in lines:
        number = 0 if line is None else number + 1
        text += f"{number} {line}\n" if line else ""
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def dialogs_file(tmp_path_factory) -> Path:
    return write_dialogs(tmp_path_factory.mktemp("data") / "dialogs.txt", n_dialogs=9, n_candidates=20)


def greedy_agent(model, tokenizer) -> DialogAgent:
    return DialogAgent(model, tokenizer, settings=DecodingSettings(no_sample=True))


@pytest.fixture(scope="module")
def trained_agent(tokenizer, dialogs_file) -> DialogAgent:
    model = tiny_model(tokenizer)
    train_briefly(model, tokenizer, dialogs_file)
    return greedy_agent(model, tokenizer)


@pytest.fixture(scope="module", params=["random", "trained"])
def agent(request, tokenizer, trained_agent) -> DialogAgent:
    return trained_agent if request.param == "trained" else greedy_agent(tiny_model(tokenizer), tokenizer)


@pytest.fixture(scope="module")
def gpt2_agent(dialogs_file) -> DialogAgent:
    """For what costs seconds and is the same for both families."""
    tokenizer = train_vocabulary(TEXTS, "gpt2", 400)
    model = tiny_model(tokenizer)
    train_briefly(model, tokenizer, dialogs_file)
    return greedy_agent(model, tokenizer)


def train_briefly(model, tokenizer, path) -> None:
    """Let the model learn a file by heart, more or less."""
    dialogs = read_splits(path)[""]
    encode = tokenizer.encode
    examples = [
        Example(
            list(map(encode, d["personality"])), list(map(encode, u["history"])), list(map(encode, u["candidates"]))
        )
        for d in dialogs
        for u in d["utterances"]
    ]
    batch = collate_trees([InputBuilder(tokenizer, 128).tree(*e) for e in examples])
    torch.nn.utils.vector_to_parameters(torch.nn.utils.parameters_to_vector(model.parameters()) / 3, model.parameters())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    gold = torch.full((len(examples),), batch.mc_rows.shape[1] - 1)
    for _ in range(25):
        output = model(**batch.model_inputs())
        loss = torch.nn.functional.cross_entropy(output.lm_logits, batch.lm_targets)
        (loss + torch.nn.functional.cross_entropy(output.mc_logits, gold)).backward()
        optimizer.step()
        optimizer.zero_grad()


def by_parlai(path: Path, *, batch_size: int = 16, task: str = "fromfile:fbformat", **changes) -> ParlaiEvaluation:
    args = evaluation_parser().parse_args(["--batch_size", str(batch_size)])
    return ParlaiEvaluation(Namespace(**vars(args) | changes), ["-t", task, "--fromfile-datapath", str(path)])


def by_ourselves(path: Path) -> OwnEvaluation:
    return OwnEvaluation(evaluation_parser().parse_args(["--dataset_path", str(path)]))


def figures_of(evaluation, agent, eval_types=EVAL_TYPES) -> dict[str, float]:
    results = evaluate(evaluation, agent, eval_types)
    assert not any(result.interrupted for result in results.values())
    assert len({result.n_done for result in results.values()} | {result.n_total for result in results.values()}) == 1
    return {name: value for result in results.values() for name, value in result.figures.items()}


@pytest.mark.parametrize("batch_size", [1, 7, 16])
def test_parlai_s_report_and_our_own_path_agree(agent, dialogs_file, batch_size):
    ours = figures_of(by_ourselves(dialogs_file), agent)
    theirs = figures_of(by_parlai(dialogs_file, batch_size=batch_size), agent)
    assert theirs.keys() == ours.keys()
    for name in ("hits@1", "hits@5", "hits@10", "n_words", "n_words_skipped", "n_tokens", "n_examples"):
        assert theirs[name] == ours[name], name
    assert theirs["f1"] == pytest.approx(ours["f1"], abs=1e-6)
    for name in ("ppl", "ppl_all_pieces", "token_ppl"):
        assert theirs[name] == pytest.approx(ours[name], rel=1e-4)
    assert ours["n_examples"] == 21
    assert 0 < ours["hits@10"] < 1 or ours["f1"] > 0.02  # a random model, or one that has learned


def test_repeated_gold_replies_change_no_hits(trained_agent, tmp_path):
    """Beside the reply, copies of it to the letter and as text, and another right one: none of them is a distractor."""
    plain = write_dialogs(tmp_path / "plain.txt", n_dialogs=9, n_candidates=5)
    repeated = tmp_path / "repeated.txt"
    repeat = r"\t\1|a cat\t\tthe \1!|A CAT|\1|\1|"
    repeated.write_text(re.sub(r"\t([^\t\n]+)\t\t", repeat, plain.read_text()))
    ours, theirs, plainly = (
        figures_of(evaluation, trained_agent, ["hits@1"])
        for evaluation in (by_ourselves(repeated), by_parlai(repeated), by_ourselves(plain))
    )
    assert ours == plainly
    assert theirs == ours
    assert 0 < ours["hits@1"] < 1


def test_sampled_replies_agree_too(trained_agent, dialogs_file):
    sampling = DialogAgent(trained_agent.model, trained_agent.tokenizer, settings=DecodingSettings(temperature=2.0))
    ours = figures_of(by_ourselves(dialogs_file), sampling, ["f1"])
    assert ours != figures_of(by_ourselves(dialogs_file), trained_agent, ["f1"])
    for batch_size in (1, 16):
        theirs = figures_of(by_parlai(dialogs_file, batch_size=batch_size), sampling, ["f1"])
        assert theirs["f1"] == pytest.approx(ours["f1"], abs=1e-6)


def adversarial_pairs() -> list[tuple[str, str]]:
    rng = random.Random(0)
    words = ["a", "an", "the", "The", "cat", "Cat", "dogs", "it's", "’", "–", "a’b", "theatre", "ß", "İ", "é", "日本",
             ",a,", "_an_", "!?", "...", "\n", "\t", "\u00a0", "1.5", "(the", "`^", "~", "¿", "A\\B", ""]  # fmt: skip
    texts = [" ".join(rng.choices(words, k=rng.randrange(12))) for _ in range(1500)]
    characters = [chr(rng.choice([rng.randrange(32, 127), rng.randrange(0x20, 0x2FFF)])) for _ in range(4000)]
    texts += ["".join(characters[i : i + 8]) for i in range(0, 4000, 8)]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    return [*pairs, *((text, text) for text in texts[:50]), ("", ""), ("", "cat"), ("cat", ""), ("the", "a")]


def test_f1_equals_parlai_s():
    from parlai.core.metrics import F1Metric

    pairs = adversarial_pairs()
    assert len(pairs) >= 1000
    found = [f1_score(reply, gold) for reply, gold in pairs]
    assert found == pytest.approx([F1Metric.compute(reply, [gold]).value() for reply, gold in pairs], abs=1e-12)
    assert sum(0 < f1 < 1 for f1 in found) > 100


def test_hits_equal_parlai_s():
    from parlai.core.metrics import TeacherMetrics

    rng = random.Random(0)
    theirs, totals = TeacherMetrics("none"), Counter()
    for n in range(300):
        gold = rng.choice(["Yes .", "no", "the end"])
        candidates = [rng.choice(["yes", "no !", "end", *map(str, range(30))]) for _ in range(rng.randrange(1, 20))]
        candidates += [gold] * (n % 10 != 0)
        scores = [rng.choice([0.1, 0.2, 0.3]) + rng.choice([0, 1e-3]) for _ in candidates]
        theirs.evaluate_response({"text_candidates": best_first(candidates, scores, gold)}, [gold])
        totals.update(hit_summands(gold_rank(candidates, scores, gold)))
    for name in ("hits@1", "hits@5", "hits@10"):
        assert totals[name] / totals["n_examples"] == pytest.approx(theirs.report()[name].value())
    assert 0 < totals["hits@1"] < totals["hits@10"] < 300


class TestDictionary:
    def test_words_are_parlai_s(self):
        from parlai.core.dict import DictionaryAgent

        opt = {"dict_tokenizer": "split", "dict_lower": True}
        for text, other in adversarial_pairs():
            assert split_words(text + other) == list(DictionaryAgent(opt).tokenize(text + other))

    def test_counts_are_those_of_build_dict(self, tmp_path, tokenizer):
        """ParlAI's own dictionary of a training and a validation file, validation included."""
        from parlai.core.loader import register_teacher
        from parlai.core.params import ParlaiParser
        from parlai.core.teachers import FbDeprecatedDialogTeacher
        from parlai.scripts.build_dict import build_dict, setup_args

        files = {
            "train": write_dialogs(tmp_path / "train.txt", 7, 4),
            "valid": write_dialogs(tmp_path / "valid.txt", 4, 4),
        }

        @register_teacher("pair")
        class PairTeacher(FbDeprecatedDialogTeacher):
            def __init__(self, opt, shared=None):
                super().__init__(opt | {"datafile": str(files[opt["datatype"].split(":")[0]])}, shared)

        opt = setup_args(ParlaiParser(True, False)).parse_args(["-t", "pair", "--dict-file", str(tmp_path / "words")])
        opt |= {"dict_tokenizer": "split", "dict_lower": True, "dict_include_valid": True}
        theirs = build_dict(opt).freq
        train, valid = (read_splits(files[name])[""] for name in ("train", "valid"))
        assert count_words(dictionary_texts(train, valid)) == theirs

        # Our agent's dictionary of that task is the same, and that of a lone file counts it once.
        task = parlai_options(evaluation_parser().parse_args([]), ["-t", "pair"])
        agent = DialogAgent(tiny_model(tokenizer), tokenizer)
        assert parlai_task.word_perplexity(agent, task).n_entries == len(theirs)
        found = [parlai_task.task_dialogs(task, "pair", kind) for kind in ("train:evalmode", "valid")]
        assert count_words(dictionary_texts(*found)) == theirs
        lone = by_parlai(files["valid"])
        both = [parlai_task.task_dialogs(lone.opt, lone.name, kind) for kind in ("train:evalmode", "valid")]
        assert both[0] == both[1]
        assert count_words(dictionary_texts([], both[1])) == count_words(dictionary_texts([], valid))


def observed_contexts(path: Path, batch_size: int, agent, monkeypatch) -> list[tuple[Context, str]]:
    """What the agent replied to, example by example, and the gold reply."""
    seen = []
    batch_act = convai_evaluation.TransformerAgent.batch_act

    def spy(self, observations):
        seen.extend((o["dialog_context"], o["eval_labels"][0]) for o in observations if "eval_labels" in o)
        return batch_act(self, observations)

    monkeypatch.setattr(convai_evaluation.TransformerAgent, "batch_act", spy)
    evaluate(by_parlai(path, batch_size=batch_size), agent, ["f1"])
    monkeypatch.undo()
    return seen


def test_gold_replies_enter_the_history_at_any_batch_size(agent, dialogs_file, monkeypatch):
    expected = [
        (Context(tuple(dialog["personality"]), tuple(utterance["history"])), utterance["candidates"][-1])
        for dialog in read_splits(dialogs_file)[""]
        for utterance in dialog["utterances"]
    ]
    assert observed_contexts(dialogs_file, 1, agent, monkeypatch) == expected
    assert sorted(observed_contexts(dialogs_file, 16, agent, monkeypatch)) == sorted(expected)
    # The whole third episode, by hand: two persona lines, three replies, each gold one in the next one's history.
    episode = [pair for pair in expected if len(pair[0].persona) == 2][:3]
    assert [len(context.history) for context, _ in episode] == [1, 3, 5]
    assert [episode[k + 1][0].history[2 * k + 1] for k in (0, 1)] == [gold for _, gold in episode[:2]]


def test_prompts_of_an_episode_are_the_same_at_any_batch_size(agent, dialogs_file, monkeypatch):
    prompts = {}
    for batch_size in (1, 16):
        prompts[batch_size] = []
        generate = DialogAgent._prompt

        def spy(self, context, n_reserved, found=prompts[batch_size], generate=generate):
            found.append(generate(self, context, n_reserved).input_ids)
            return generate(self, context, n_reserved)

        monkeypatch.setattr(DialogAgent, "_prompt", spy)
        evaluate(by_parlai(dialogs_file, batch_size=batch_size), agent, ["f1"])
        monkeypatch.undo()
    assert len(prompts[1]) == 21
    assert sorted(prompts[1]) == sorted(prompts[16])


def new_agent(agent: DialogAgent, eval_type=("hits@1",)):
    """A TransformerAgent that nothing has been said to."""
    opt = {"eval_type": list(eval_type), "seed": None}
    return convai_evaluation.TransformerAgent(opt, {"dialog_agent": agent, "words": None})


class TestAgent:
    def message(self, text="", **fields):
        from parlai.core.message import Message

        return Message({"text": text, "episode_done": False, **fields})

    def test_own_replies_enter_the_history_where_there_is_no_gold(self, agent):
        talker = new_agent(agent)
        talker.observe(self.message(f"your persona: {TEXTS[7]}\n{TEXTS[0]}"))
        first = talker.act()["text"]
        context = talker.observe(self.message(TEXTS[2], episode_done=True))["dialog_context"]
        assert context == ((TEXTS[7],), (TEXTS[0], first, TEXTS[2]))
        assert talker.observe(self.message(TEXTS[4]))["dialog_context"] == ((), (TEXTS[4],))

    def test_partner_s_persona_is_not_the_agent_s_to_know(self, agent):
        text = f"partner's persona: {TEXTS[6]}\nyour persona: {TEXTS[7]}\n{TEXTS[0]}"
        assert new_agent(agent).observe(self.message(text))["dialog_context"] == ((TEXTS[7],), (TEXTS[0],))

    def test_ranks_where_there_are_candidates_and_generates_where_not(self, agent):
        talker = new_agent(agent)
        with_candidates = talker.observe(self.message(TEXTS[0], label_candidates=TEXTS[1:5]))
        without = self.message(TEXTS[0], dialog_context=Context((), (TEXTS[0],)))
        ranked, generated, nothing = talker.batch_act([with_candidates, without, self.message().padding_example()])
        assert sorted(ranked["text_candidates"]) == sorted(TEXTS[1:5])
        assert ranked["text"] == ranked["text_candidates"][0]
        assert generated["text"] == agent.reply_batch([Context([], [TEXTS[0]])], 42)[0]
        assert "text_candidates" not in generated
        assert nothing == {"id": "TransformerAgent"}

    def test_gold_comes_last_among_candidates_of_equal_scores(self, agent):
        # The first two are alike to the model: the tokenizer drops the space.
        candidates = [TEXTS[1], f"{TEXTS[1]} ", TEXTS[2]]
        talker = new_agent(agent)
        observed = talker.observe(self.message(TEXTS[0], label_candidates=candidates, eval_labels=(TEXTS[2],)))
        scores = agent.rank_batch([(Context([], [TEXTS[0]]), candidates)])[0]
        assert scores[0] == scores[1]
        assert talker.batch_act([observed])[0]["text_candidates"] == best_first(candidates, scores, TEXTS[2])

    def test_next_word_probability_as_published(self, agent, dialogs_file):
        evaluation = by_parlai(dialogs_file)
        evaluation.start("ppl", agent)
        talker = convai_evaluation.TransformerAgent(evaluation.opt, {"dialog_agent": agent, "words": evaluation.words})
        talker.observe(self.message(TEXTS[0], eval_labels=(TEXTS[1],)))
        said = split_words(TEXTS[1])
        for i, word in enumerate(evaluation.words.score(agent, [(Context([], [TEXTS[0]]), TEXTS[1])])[0].words):
            p = talker.next_word_probability(said[:i])
            assert p[said[i]] / sum(p.values()) == pytest.approx(torch.tensor(word.published).exp().item(), rel=1e-4)


class TestRefusals:
    def test_task_without_candidates(self, agent, tmp_path):
        results = evaluate(by_parlai(write_dialogs(tmp_path / "plain.txt", 2, 0)), agent, ["hits@1", "f1"])
        wanted = r"offers no candidate replies, so there is no hits@1.*--dataset_path FILE"
        assert re.search(wanted, results["hits@1"].refusal)
        assert results["f1"].n_done == results["f1"].n_total > 0

    def test_gold_missing_from_its_candidates(self, agent, tmp_path):
        path = tmp_path / "nogold.txt"
        path.write_text("1 hi\thello\t\tyes|no\n")
        with pytest.raises(UserError, match="the candidates of an example lack its gold reply"):
            evaluate(by_parlai(path), agent, ["hits@1"])
        assert evaluate(by_ourselves(path), agent, ["hits@1"])["hits@1"].n_done == 1  # there it is added

    def test_empty_file(self, agent, tmp_path):
        (tmp_path / "empty.txt").write_text("")
        with pytest.raises(UserError, match="has no examples"):
            evaluate(by_parlai(tmp_path / "empty.txt"), agent, ["ppl"])

    def test_missing_file_and_unknown_task(self, agent, tmp_path):
        with pytest.raises(UserError, match=r"cannot load the task fromfile:fbformat: .*No such file"):
            evaluate(by_parlai(tmp_path / "nowhere.txt"), agent, ["f1"])
        with pytest.raises(UserError, match=r"cannot load the task of -t: No module named .*nonsense"):
            by_parlai(tmp_path / "nowhere.txt", task="nonsense")
        with pytest.raises(UserError, match="unrecognized arguments: --nonsense"):
            ParlaiEvaluation(evaluation_parser().parse_args([]), ["--nonsense", "1"])

    def test_data_of_convai2_that_cannot_be_downloaded(self, agent, tmp_path, monkeypatch):
        def unreachable(*_):
            raise RuntimeError("Connection broken too many times.")

        monkeypatch.setattr("parlai.core.build_data.download", unreachable)
        monkeypatch.setenv("PARLAI_DATAPATH", "")
        evaluation = ParlaiEvaluation(evaluation_parser().parse_args([]), ["--datapath", str(tmp_path)])
        message = rf"not in {tmp_path}/ConvAI2 and cannot be downloaded: Connection broken.*convai2_fix_723.tgz there"
        for eval_type in ("hits@1", "ppl"):
            with pytest.raises(UserError, match=message):
                evaluate(evaluation, agent, [eval_type])


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


def test_real_dialogs_agree(agent):
    path = DEVELOPMENT_DATA / "data" / "convai2_valid_self_original_no_cands.txt"
    if not path.is_file():
        pytest.skip("needs the development data")
    ours, theirs = (figures_of(by(path), agent, ["ppl"]) for by in (by_ourselves, by_parlai))
    assert theirs == pytest.approx(ours, rel=1e-4)
