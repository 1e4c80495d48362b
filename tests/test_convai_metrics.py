"""The ConvAI2 metrics by hand-made numbers and slow loops, and evaluation without ParlAI."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import DEVELOPMENT_DATA, ROOT, TEXTS, make_dialogs, tiny_model
from safetensors.torch import load_file, save_file

import convai_evaluation
from bench import reference
from convai.data.batches import collate_trees
from convai.data.formats import load_for_evaluation, read_splits
from convai.data.inputs import InputBuilder
from convai.data.store import DialogSplit, build_arrays
from convai.dialog.agent import Context, DialogAgent
from convai.dialog.decoding import DecodingSettings
from convai.errors import UserError
from convai.evaluation.metrics import (
    SPECIAL_ENTRIES,
    WordPerplexity,
    best_first,
    count_words,
    dictionary_texts,
    f1_score,
    f1_summands,
    figures,
    gold_rank,
    hit_summands,
    normalize_answer,
    perplexity,
    perplexity_summands,
    split_words,
)
from convai.evaluation.own_evaluation import OwnEvaluation
from convai.evaluation.report import print_final_line, print_table, run
from convai.model.double_heads import save_model
from convai.model.tokenization import load_tokenizer, train_vocabulary
from convai.options import EvaluationOptions, training_parser
from convai.training.updates import TreeDataset, length_sorted_batches
from convai_evaluation import evaluate
from train import create_evaluator, prepare_parts

PERSONA = [TEXTS[7], TEXTS[6]]
QUESTIONS = [
    (Context(PERSONA, TEXTS[:1]), TEXTS[1]),
    (Context([], [TEXTS[2]]), TEXTS[3]),
    (Context(PERSONA, TEXTS[:3]), TEXTS[3]),
    (Context(PERSONA, [TEXTS[4]]), TEXTS[5]),
]


def dialog_agent(tokenizer, seed=0, **changes) -> DialogAgent:
    return DialogAgent(tiny_model(tokenizer, seed, **changes), tokenizer, settings=DecodingSettings(no_sample=True))


@pytest.fixture(scope="module")
def agent(tokenizer) -> DialogAgent:
    return dialog_agent(tokenizer)


@pytest.fixture(scope="module")
def words(tokenizer) -> WordPerplexity:
    return WordPerplexity(tokenizer, count_words(TEXTS))


def test_normalize_answer_by_hand():
    assert normalize_answer("The  cat, a dog & an_owl!") == ["cat", "dog", "owl"]
    assert normalize_answer("a.the.an ?") == []
    assert normalize_answer("I'm Anne; THEN") == ["i", "m", "anne", "then"]


@pytest.mark.parametrize(
    ("reply", "gold", "f1"),
    [
        ("the cat sat", "a cat sat down .", 0.8),  # precision 2/2, recall 2/3
        ("dog dog dog", "dog", 0.5),  # one of three counts
        ("", "cat", 0.0),
        ("cat", "", 0.0),
        ("", "", 0.0),
        ("the !", "a ?", 0.0),
        ("Cat.", "cat", 1.0),
    ],
)
def test_f1_by_hand(reply, gold, f1):
    assert f1_score(reply, gold) == pytest.approx(f1)


class TestGoldRank:
    def test_counts_better_candidates(self):
        assert gold_rank(["x", "y", "z"], [0.1, 0.9, 0.5], "z") == 2
        assert gold_rank(["x", "y", "z"], [0.1, 0.4, 0.5], "z") == 1

    def test_ties_go_against_the_gold(self):
        assert gold_rank(["x", "y", "z"], [0.5, 0.1, 0.5], "z") == 2
        assert gold_rank(["z", "x", "y"], [0.5, 0.5, 0.5], "z") == 3
        assert best_first(["z", "x", "y"], [0.5, 0.5, 0.9], "z") == ["y", "x", "z"]

    def test_gold_missing_is_never_a_hit(self):
        assert gold_rank(["x", "y"], [0.1, 0.2], "z") is None
        assert figures(Counter(hit_summands(None))) == {"hits@1": 0, "hits@5": 0, "hits@10": 0, "n_examples": 1}

    def test_single_candidate_is_a_hit(self):
        assert gold_rank(["z"], [-3.0], "z") == 1

    def test_the_same_words_count_as_the_gold(self):
        assert gold_rank(["Z !", "y", "z"], [0.9, 0.5, 0.1], "z") == 1


def test_figures_by_hand():
    totals = Counter()
    for rank in (1, 2, 6, None):
        totals.update(hit_summands(rank))
    assert figures(totals) == {"hits@1": 0.25, "hits@5": 0.5, "hits@10": 0.75, "n_examples": 4}
    totals = Counter(f1_summands("cat", "cat"))
    totals.update(f1_summands("dog", "cat"))
    assert figures(totals) == {"f1": 0.5, "n_examples": 2}
    assert figures(Counter()) == {}
    assert perplexity(3 * math.log(7), 3) == pytest.approx(7)
    assert math.isnan(perplexity(0.0, 0))
    assert perplexity(1e6, 1) == math.inf


def test_split_words_by_hand():
    assert split_words("Hi,you: it's 3.5 (ok)!?") == ["hi", ",", "you", ":", "it's", "3", ".", "5", "(ok)", "!", "?"]
    assert split_words(" \n") == []


def test_dictionary_counts_train_text_and_labels_and_valid_text():
    train = {
        "personality": ["i ski"],
        "utterances": [
            {"history": ["hi"], "candidates": ["bad", "hello"]},
            {"history": ["hi", "hello", "why ?"], "candidates": ["so"]},
        ],
    }
    valid = {"personality": ["we row"], "utterances": [{"history": ["yo", "lo", "no"], "candidates": ["secret"]}]}
    persona_lines = {"your": 2, "persona": 2, ":": 2, "i": 1, "ski": 1, "we": 1, "row": 1}
    said = {"hi": 1, "hello": 1, "why": 1, "?": 1, "so": 1, "yo": 1, "lo": 1, "no": 1}
    assert count_words(dictionary_texts([train], [valid])) == SPECIAL_ENTRIES | persona_lines | said
    # A lone file's text and labels, once.
    lone = {"your": 1, "persona": 1, ":": 1, "we": 1, "row": 1, "yo": 1, "lo": 1, "no": 1, "secret": 1}
    assert count_words(dictionary_texts([], [valid])) == SPECIAL_ENTRIES | lone


class TestWordPerplexity:
    def test_pieces_are_those_that_the_encoder_gives_within_text(self, tokenizer, words):
        said = tokenizer.encode("music")
        for word in words.within.pieces:
            assert tuple(tokenizer.encode(f"music {word}")[len(said) :]) == words.within.spell(word)
            assert word in words.within.words_of_piece[words.within.spell(word)[0]]
        if tokenizer.family == "gpt2":  # the published table lacked the leading space
            assert tokenizer.tokens[words.within.spell("music")[0]].startswith("Ġ")

    def test_pieces_of_real_dialogs_join_to_what_the_encoder_gives(self, family):
        vocabulary = DEVELOPMENT_DATA / "tokenizers" / family
        data = DEVELOPMENT_DATA / "data" / "convai2_valid_self_original_no_cands.txt"
        if not vocabulary.is_dir() or not data.is_file():
            pytest.skip("needs the development data")
        real = load_tokenizer(vocabulary)
        golds = [u["candidates"][-1] for dialog in read_splits(data)[""] for u in dialog["utterances"]]
        for gold in golds:
            assert [i for word in split_words(gold) for i in real.encode(word)] == real.encode(
                " ".join(split_words(gold))
            )

    def test_equals_one_pass_per_word(self, checkpoint, tokenizer, words):
        model = reference.load_reference_model(checkpoint)
        scores = words.score(DialogAgent.load(checkpoint, device="cpu"), QUESTIONS)
        for (context, gold), score in zip(QUESTIONS, scores, strict=True):
            assert [word.word for word in score.words] == split_words(gold)
            ids = [[tokenizer.encode(text) for text in texts] for texts in context]
            slow = list(slow_word_scores(model, *ids, split_words(gold), tokenizer, count_words(TEXTS)))
            assert [tuple(word[1:]) for word in score.words] == [pytest.approx(pair, abs=1e-4) for pair in slow]
            assert score.n_skipped == 0

    def test_equals_next_word_probability(self, agent, words):
        for (context, gold), score in zip(QUESTIONS, words.score(agent, QUESTIONS), strict=True):
            said = split_words(gold)
            for i, word in enumerate(score.words):
                p = words.next_word_probability(agent, context, said[:i])
                assert word.published == pytest.approx(math.log(p[said[i]] / sum(p.values())), abs=1e-4)
                assert 0 < sum(p.values()) <= 1 + 1e-6

    def test_probabilities_over_the_dictionary(self, agent, tokenizer, words):
        """Published ones sum to 1; honest ones to less, as much of what the model says is no dictionary word."""
        scores = words.score(agent, [(QUESTIONS[0][0], word) for word in words.within.pieces])
        alone = [score.words[0] for score in scores if len(score.words) == 1]
        assert len(alone) == len(words.within.pieces)
        assert sum(math.exp(word.published) for word in alone) == pytest.approx(1, abs=1e-4)
        assert 0 < sum(math.exp(word.all_pieces) for word in alone) <= 1

    def test_batches_agree(self, agent, words):
        together = words.score(agent, QUESTIONS)
        for question, score in zip(QUESTIONS, together, strict=True):
            alone = words.score(agent, [question])[0]
            assert perplexity_summands(alone) == pytest.approx(perplexity_summands(score), rel=1e-4)

    def test_words_that_are_spelled_alike_share_by_frequency(self, tokenizer, agent):
        # Both apostrophes are one to GPT's clean-up; GPT-2 keeps them apart.
        dictionary = {"don't": 15, "don’t": 5}
        words = WordPerplexity(tokenizer, dictionary)
        straight, curly = (words.score(agent, [(QUESTIONS[0][0], word)])[0].words[0] for word in dictionary)
        if tokenizer.family == "openai-gpt":
            assert straight.all_pieces - curly.all_pieces == pytest.approx(math.log(20 / 10), abs=1e-5)
        assert straight.published - curly.published == pytest.approx(math.log(20 / 10), abs=1e-5)

    def test_unknown_words_are_skipped_but_stay_in_the_context(self, agent, words):
        with_unknown, without = words.score(agent, [(QUESTIONS[1][0], f"zebra {TEXTS[3]}"), QUESTIONS[1]])
        assert with_unknown.n_skipped == 1
        assert [word.word for word in with_unknown.words] == [word.word for word in without.words]
        assert with_unknown.words[0].published != pytest.approx(without.words[0].published, abs=1e-3)

    def test_empty_reply_has_only_its_end(self, agent, words):
        score = words.score(agent, [(QUESTIONS[0][0], "")])[0]
        assert (score.words, score.n_skipped, score.n_tokens) == ([], 0, 1)
        totals = figures(perplexity_summands(score))
        assert math.isnan(totals["ppl"])
        assert totals["token_ppl"] == pytest.approx(math.exp(score.token_loss))

    def test_word_that_the_vocabulary_cannot_spell_is_no_dictionary_word(self, tokenizer, agent):
        words = WordPerplexity(tokenizer, {"music": 3, "日本": 2})
        score = words.score(agent, [(QUESTIONS[0][0], "music 日本 music")])[0]
        if tokenizer.family == "gpt2":  # bytes spell everything
            assert [word.word for word in score.words] == ["music", "日本", "music"]
        else:
            assert ([word.word for word in score.words], score.n_skipped) == (["music", "music"], 1)

    def test_words_cut_off_to_fit_the_model_are_skipped(self, tokenizer, words):
        short = dialog_agent(tokenizer, n_positions=12)
        score = words.score(short, [(QUESTIONS[0][0], TEXTS[1])])[0]
        n_words = len(split_words(TEXTS[1]))
        assert 0 < len(score.words) < n_words
        assert score.n_skipped == n_words - len(score.words)
        assert score.n_tokens <= 10

    def test_text_in_capitals_is_read_as_words_and_as_it_stands(self, tokenizer, agent, words):
        shouted, plain = words.score(agent, [(QUESTIONS[3][0], TEXTS[5].upper()), QUESTIONS[3]])
        assert [word.published for word in shouted.words] == pytest.approx([w.published for w in plain.words], abs=1e-4)
        is_same = tokenizer.family == "openai-gpt"  # which lower-cases all
        assert (shouted.token_loss == pytest.approx(plain.token_loss, abs=1e-3)) == is_same


def slow_word_scores(model, persona, history, gold_words, tokenizer, dictionary):
    """Yield both log-probabilities of each word of a reply, from a pass over the full sequence per piece."""
    spelled = {word: tokenizer.encode(word) for word in dictionary}
    spelled = {word: ids for word, ids in spelled.items() if ids and tokenizer.vocab.get("<unk>") not in ids}
    said = []

    def next_probabilities():
        built = reference.build_input_from_segments(persona, history, said, tokenizer, with_eos=False)
        with torch.inference_mode():
            return reference.next_token_logits(model, built).softmax(-1).tolist()

    def published(word, p):
        like = [other for other, ids in spelled.items() if ids[0] == spelled[word][0]]
        return p[spelled[word][0]] * (dictionary[word] + 5) / sum(dictionary[other] + 5 for other in like)

    def ends_word(token_id, pieces):
        token = tokenizer.tokens[token_id]
        if token in tokenizer.special_ids:
            return True
        if tokenizer.family == "gpt2":
            return token is None or tokenizer._tokenizer.decode([token_id])[:1] in tuple(" \t\n\v\f\r.,;:!?")
        return not any(ids[: len(pieces) + 1] == [*pieces, token_id] for ids in spelled.values())

    for word in gold_words:
        p = next_probabilities()
        whole = sum(published(other, p) for other in spelled)
        first, exact = published(word, p), 1.0
        for piece in spelled[word]:
            exact *= next_probabilities()[piece]
            said.append(piece)
        after = next_probabilities()
        exact *= sum(q for token_id, q in enumerate(after) if ends_word(token_id, spelled[word]))
        yield math.log(first / whole), math.log(exact / whole)


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


def validation_metrics(agent, path) -> dict[str, float]:
    """What training's validation finds on the dialogs of a file, all of them."""
    split = DialogSplit(build_arrays({"valid": read_splits(path)[""]}, agent.tokenizer), "valid")
    dataset = TreeDataset(split, InputBuilder(agent.tokenizer, 128), max_history=2)
    loader = [collate_trees([dataset[i] for i in batch]) for batch in length_sorted_batches(dataset, 4)]
    parts = prepare_parts(training_parser().parse_args([]), agent.model, agent.tokenizer, 1, "cpu")
    return create_evaluator(parts, torch.device("cpu")).run(loader).metrics


def test_drawn_distractors_give_the_hits_and_perplexity_of_training_s_validation(tokenizer, lone_file):
    agent = dialog_agent(tokenizer, seed=3)
    results = evaluate(OwnEvaluation(options(lone_file)), agent, ["hits@1", "ppl"])
    metrics = validation_metrics(agent, lone_file)
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
        assert result == ({"n_examples": 0}, 0, 8, True, "")
        print_final_line("f1", result)
        print_table({"f1": result}, "data")
        assert "f1: interrupted before anything was scored" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--dataset_path", "/nowhere"], "there is no /nowhere"),
            (["--dataset_path", "example", "--output", "/dev/null/x"], "--output /dev/null/x cannot be written"),
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
