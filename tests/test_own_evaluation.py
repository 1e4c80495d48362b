"""Evaluation without ParlAI: the data it takes, the figures at any batch size, those of training's validation."""

import json
from pathlib import Path

import pytest
import torch
from conftest import TEXTS, make_dialogs
from greedy_agents import dialog_agent

from convai.data.batches import collate_trees
from convai.data.build import build_arrays
from convai.data.formats import load_for_evaluation, read_splits
from convai.data.inputs import InputBuilder
from convai.data.store import DialogSplit
from convai.dialog.agent import Context
from convai.errors import UserError
from convai.evaluation.metrics import f1_score
from convai.evaluation.own_evaluation import OwnEvaluation
from convai.options import EvaluationOptions, training_parser
from convai.options.shared import DISTRACTORS
from convai.training.updates import TreeDataset, length_sorted_batches
from convai_evaluation import evaluate
from train import create_evaluator, prepare_parts


def options(dataset_path, **changes) -> EvaluationOptions:
    return EvaluationOptions(dataset_path=str(dataset_path), max_history=2, **changes)


@pytest.fixture
def lone_file(tmp_path) -> Path:
    """Five dialogs in ParlAI's text format, without candidates."""
    path = tmp_path / "lone.txt"
    lines = []
    for d in range(5):
        lines += [f"1 your persona: {TEXTS[7]} {d}", f"2 {TEXTS[0]}\t{TEXTS[1]} {d}", f"3 {TEXTS[2]}\t{TEXTS[3]} {d}"]
    path.write_text("\n".join(lines) + "\n")
    return path


class TestData:
    def test_lone_file_is_evaluated_whole(self, lone_file):
        train, valid = load_for_evaluation(str(lone_file))
        assert (len(train), len(valid)) == (0, 5)

    def test_pair_and_json_have_their_valid_split_evaluated(self, lone_file, dataset_file):
        train, valid = load_for_evaluation(f"{lone_file},{dataset_file}")
        assert (len(train), len(valid)) == (5, 4)
        train, valid = load_for_evaluation(str(dataset_file))
        assert (len(train), len(valid)) == (12, 4)

    def test_json_with_train_only_is_a_lone_file(self, tmp_path):
        path = tmp_path / "train.json"
        path.write_text(json.dumps({"train": make_dialogs(3)}))
        train, valid = load_for_evaluation(str(path))
        assert (len(train), len(valid)) == (0, 3)

    @pytest.mark.parametrize("content", ["", '{"valid": []}'])
    def test_empty_file_is_refused(self, tmp_path, content):
        (tmp_path / "empty").write_text(content)
        with pytest.raises(UserError, match="there are no dialogs to evaluate on"):
            load_for_evaluation(str(tmp_path / "empty"))


@pytest.mark.parametrize("no_sample", [True, False])
def test_batch_size_does_not_change_results(tokenizer, dataset_file, no_sample):
    agent = dialog_agent(tokenizer)
    agent.change_settings(no_sample=no_sample)
    found = []
    for batch_size in (1, 7, 16):
        results = evaluate(OwnEvaluation(options(dataset_file, batch_size=batch_size)), agent, ["hits@1", "ppl", "f1"])
        found.append({name: value for result in results.values() for name, value in result.figures.items()})
    for other in found[1:]:
        assert all(other[name] == found[0][name] for name in ("hits@1", "hits@5", "hits@10"))
        assert other["f1"] == pytest.approx(found[0]["f1"], abs=1e-6)
        assert other == pytest.approx(found[0], rel=1e-4)


def validation_metrics(agent, path, kind="random") -> dict[str, float]:
    """What training's validation finds on the dialogs of a file, all of them."""
    split = DialogSplit(build_arrays({"valid": read_splits(path)[""]}, agent.tokenizer), "valid")
    dataset = TreeDataset(split, InputBuilder(agent.tokenizer, 128), max_history=2, distractors=kind)
    loader = [collate_trees([dataset[i] for i in batch]) for batch in length_sorted_batches(dataset, 4)]
    parts = prepare_parts(training_parser().parse_args([]), agent.model, agent.tokenizer, 1, "cpu")
    return create_evaluator(parts, torch.device("cpu")).run(loader).metrics


@pytest.mark.parametrize("kind", DISTRACTORS)
def test_drawn_distractors_give_the_hits_and_perplexity_of_training_s_validation(tokenizer, lone_file, kind):
    agent = dialog_agent(tokenizer, seed=3)
    results = evaluate(OwnEvaluation(options(lone_file, distractors=kind)), agent, ["hits@1", "ppl"])
    metrics = validation_metrics(agent, lone_file, kind)
    assert results["hits@1"].ranking.distractors == f"drawn ({kind})"
    assert results["hits@1"].figures["hits@1"] == pytest.approx(metrics["hits@1"])
    assert results["hits@1"].figures["hits@1"] < 1  # so there were distractors
    assert results["ppl"].figures["token_ppl"] == pytest.approx(metrics["perplexity"], rel=1e-4)


def with_twins(gold: str) -> list[str]:
    """The gold reply last, behind others that are it once more: to the letter, as text, and (for GPT) as tokens."""
    return [gold, f"The {gold.upper()}!", gold.replace("'", "’"), gold]


@pytest.mark.parametrize("n_distractors", [0, 2])
def test_repeated_gold_replies_change_no_hits_here_nor_in_training_s_validation(tokenizer, tmp_path, n_distractors):
    dialogs = make_dialogs(9, n_candidates=1 + n_distractors)
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps(dialogs))
    for dialog in dialogs:
        for utterance in dialog["utterances"]:
            *distractors, gold = utterance["candidates"]
            twins = [twin for twin in with_twins(gold) if "’" not in twin or tokenizer.family == "openai-gpt"]
            utterance["candidates"] = [*twins[:-1], *distractors, twins[-1]]
    repeated = tmp_path / "repeated.json"
    repeated.write_text(json.dumps(dialogs))
    agent = dialog_agent(tokenizer, seed=3)
    found = [evaluate(OwnEvaluation(options(path)), agent, ["hits@1"])["hits@1"].figures for path in (plain, repeated)]
    assert 0 < found[0]["hits@1"] < 1
    assert found[1] == found[0]
    assert [validation_metrics(agent, path)["hits@1"] for path in (plain, repeated)] == pytest.approx(
        [found[0]["hits@1"]] * 2
    )


def alike(*replies: str) -> list[dict]:
    """Dialogs of one reply each, without candidates."""
    return [{"personality": [], "utterances": [{"history": ["hi"], "candidates": [reply]}]} for reply in replies]


def test_hits_without_any_candidates_to_rank_are_refused(tokenizer, tmp_path):
    path = tmp_path / "alike.json"  # all replies alike, one of them as text only: there is nothing to draw
    path.write_text(json.dumps(alike("Yes , two cats .", "yes , two cats !", "yes, the two cats.")))
    evaluation = OwnEvaluation(options(path))
    results = evaluate(evaluation, dialog_agent(tokenizer), ["hits@1", "ppl"])
    assert "alike.json: no example has candidates to rank" in results["hits@1"].refusal
    assert results["ppl"].figures["n_examples"] == 3


def test_some_single_candidates_are_hits_with_a_warning(tokenizer, tmp_path, caplog):
    path = tmp_path / "nearly_alike.json"
    dialogs = alike("yes .")
    dialogs[0]["utterances"].append({"history": ["hi", "yes .", "so ?"], "candidates": ["no .", "hello ."]})
    path.write_text(json.dumps(dialogs))
    assert evaluate(OwnEvaluation(options(path)), dialog_agent(tokenizer), ["hits@1"])["hits@1"].figures["hits@1"] > 0
    assert "1 examples have a single candidate" in caplog.text


def test_text_that_the_vocabulary_cannot_spell_is_told_once(tokenizer, tmp_path, caplog):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(alike("yes .", "живу в москве .", "no .")))
    evaluate(OwnEvaluation(options(path)), dialog_agent(tokenizer), ["hits@1", "ppl", "f1"])
    told = [record.getMessage() for record in caplog.records if "cannot spell" in record.getMessage()]
    if tokenizer.family == "gpt2":  # by its bytes it spells everything
        assert told == []
    else:
        (message,) = told
        assert "1 of 4 utterances (25 %) are mostly unknown to it ('живу в москве .')" in message


def test_f1_is_the_mean_over_greedy_replies(tokenizer, dataset_file):
    agent = dialog_agent(tokenizer)
    scores = []
    for dialog in read_splits(dataset_file)["valid"]:
        for utterance in dialog["utterances"]:
            reply = agent.reply_batch([Context(dialog["personality"], utterance["history"])])[0]
            scores.append(f1_score(reply, utterance["candidates"][-1]))
    result = evaluate(OwnEvaluation(options(dataset_file)), agent, ["f1"])["f1"]
    assert result.figures["f1"] == pytest.approx(sum(scores) / len(scores), abs=1e-6)


def test_empty_replies_count_as_zero(tokenizer, dataset_file):
    agent = dialog_agent(tokenizer)
    agent.reply_batch = lambda contexts, seed: [""] * len(contexts)
    result = evaluate(OwnEvaluation(options(dataset_file)), agent, ["f1"])["f1"]
    assert (result.figures["f1"], result.n_done) == (0, 8)
