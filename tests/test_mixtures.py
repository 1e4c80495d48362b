"""Several data sets in one: how they are named and weighted, which examples an epoch sees, and what is measured."""

import itertools
import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import test_resume
import tokenized_dialogs
from conftest import ROOT, make_dialogs
from test_distributed import run as run_ranks
from test_resume import metrics_of, run_train, same_weights, send
from test_train import read_events
from tokenized_dialogs import dialog, in_memory, turn

from convai.data.formats import find_source, load_for_evaluation
from convai.data.inputs import InputBuilder
from convai.data.mixture import Mixture
from convai.data.weighted import WeightedSource, weighted_sources
from convai.errors import UserError
from convai.training.updates import TreeDataset, UpdateSampler, length_sorted_batches

tokenizer = tokenized_dialogs.tokenizer
folder = test_resume.folder
at_update = test_resume.at_update


def sources_of(dataset_path: str) -> list[tuple]:
    return [tuple(source) for source in weighted_sources(dataset_path)]


# Names and weights


@pytest.mark.parametrize("text, sources", [
    ("d/a.jsonl + b.json*2 + hub:X/Y*0.5", [("d/a.jsonl", 1, "a.jsonl"), ("b.json", 2, "b.json"),
                                            ("hub:X/Y", 0.5, "hub:X/Y")]),
    ("a.txt,b.txt + example", [("a.txt,b.txt", 1, "a.txt,b.txt"), ("example", 1, "example")]),
    ("personachat * 3+x  +  d/t.txt, d/v.txt *1e-1", [("personachat * 3+x", 1, "personachat * 3+x"),
                                                      ("d/t.txt, d/v.txt", 0.1, "t.txt,v.txt")]),
    ("d/a.json + e/a.json", [("d/a.json", 1, "d/a.json"), ("e/a.json", 1, "e/a.json")]),
    ("a.json*.25", [("a.json", 0.25, "a.json")]),
    ("a.json", []), ("", []), ("a+b.json", []), ("example", []), ("a*b.json", []), ("https://x.org/a?b=c+d", []),
])  # fmt: skip
def test_sources_and_weights_as_text(text, sources):
    assert sources_of(text) == sources


def test_what_is_there_wins_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a + b.json", "c*2", "d + e.json"):
        (tmp_path / name).write_text(json.dumps(make_dialogs(3)))
    assert sources_of("a + b.json") == sources_of("c*2") == sources_of("a + b.json,d + e.json") == []
    assert sources_of("c*2*3") == [("c*2", 3, "c*2")]
    assert len(find_source("a + b.json").load()["train"]) == 2
    (tmp_path / "personachat").write_text(json.dumps(make_dialogs(4)))
    assert len(find_source("personachat").load()["train"]) == 3


def test_a_file_of_sources_is_told_by_its_content_and_paths_are_relative_to_it(tmp_path):
    (tmp_path / "a + b.json").write_text(json.dumps(make_dialogs(3)))
    path = tmp_path / "mixture"
    names = ["a + b.json", "t.txt, v.txt", "hub:X/Y", "example", "https://x.org/c.json", "/c.json"]
    path.write_text(json.dumps({"sources": dict(zip(names, (1, 2.5, 3, 1, 1, 4), strict=True))}))
    assert sources_of(str(path)) == [
        (f"{tmp_path}/a + b.json", 1, "a + b.json"),
        (f"{tmp_path}/t.txt,{tmp_path}/v.txt", 2.5, "t.txt,v.txt"),
        ("hub:X/Y", 3, "hub:X/Y"),
        ("example", 1, "example"),
        ("https://x.org/c.json", 1, "https://x.org/c.json"),
        ("/c.json", 4, "/c.json"),
    ]


@pytest.mark.parametrize("text, wanted", [
    ("a.json + ", "one of its sources has no name; give PATH or PATH*WEIGHT between plus signs"),
    ("a.json*0 + b.json", "the weight of a.json must be a number above 0, not 0.0"),
    ("a.json + b.json*-1", "the weight of b.json must be a number above 0, not -1.0"),
    ("a.json + b.json + a.json*2", "a.json is named twice; name it once, with the sum of the weights"),
    ("mixture.json + a.json", "mixture.json is a file of sources itself; name those instead"),
])  # fmt: skip
def test_mistakes_in_a_mixture_are_one_line(tmp_path, monkeypatch, text, wanted):
    monkeypatch.chdir(tmp_path)
    Path("mixture.json").write_text('{"sources": {"a.json": 1}}')
    with pytest.raises(UserError) as caught:
        find_source(text)
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content, wanted", [
    ('{"sources": {"a.json": 1}', "is not JSON: Expecting ',' delimiter at line 1, column 26; mend it there"),
    ('{"sources": {"a.json": 1}, "x": 2}', 'a file of sources has the key "sources" and no other'),
    ('{"sources": {"a.json": "2"}}', 'a.json must be a number above 0, not "2"'),
    ('{"sources": {"a.json": true}}', "a.json must be a number above 0, not true"),
    ('{"sources": {"a.json": NaN}}', "a.json must be a number above 0, not NaN"),
    ('{"sources": {"a.json": 1, "a.json": 2}}', "a.json is named twice"),
    ('{"sources": ["a.json"]}', 'key "sources" must be an object of paths and weights, not a list'),
    ('{"sources": {}}', "names no source; give at least one"),
])  # fmt: skip
def test_mistakes_in_a_file_of_sources_are_one_line(tmp_path, content, wanted):
    (tmp_path / "mixture.json").write_text(content)
    with pytest.raises(UserError) as caught:
        find_source(str(tmp_path / "mixture.json"))
    assert wanted in str(caught.value) and "mixture.json" in str(caught.value) and "\n" not in str(caught.value)


# Which examples an epoch sees


def mixture_of(tokenizer, *sizes_and_weights: tuple[int, float]) -> Mixture:
    """Dialogs of one example each: of source s the replies are "s0", "s1", ..."""
    splits, sources = [], []
    for s, (size, weight) in enumerate(sizes_and_weights):
        dialogs = [dialog(turn("hi", candidates=[f"{s} {n}"]), personality=[f"{s} {n} ."]) for n in range(size)]
        splits.append(in_memory(tokenizer, dialogs)["train"])
        sources.append(WeightedSource(f"{s}.json", weight, f"{s}.json"))
    return Mixture(sources, splits)


def test_a_mixture_has_its_sources_examples_one_after_the_other(tokenizer):
    mixture = mixture_of(tokenizer, (2, 1), (3, 0.5))
    assert len(mixture) == mixture.n_dialogs == 5
    wanted = ["0 0", "0 1", "1 0", "1 1", "1 2"]
    assert [mixture.example(i).candidates for i in range(5)] == [[tokenizer.encode(text)] for text in wanted]
    assert [example.candidates[-1] for example in mixture] == [tokenizer.encode(text) for text in wanted]
    assert [mixture.persona(i) for i in range(5)] == [[tokenizer.encode(f"{text} .")] for text in wanted]
    assert [mixture.source_of(i) for i in range(5)] == [0, 0, 1, 1, 1]
    drawn = mixture.example(2, n_drawn=9).candidates  # of its own source
    assert sorted(drawn) == sorted(tokenizer.encode(text) for text in wanted[2:])
    with pytest.raises(IndexError):
        mixture.example(5)


def test_an_epoch_sees_each_source_as_often_as_its_weight_says(tokenizer):
    mixture = mixture_of(tokenizer, (4, 1), (3, 2), (6, 0.5), (4, 1.25))
    assert mixture.n_seen == 4 + 6 + 3 + 5
    epochs = [Counter(mixture.seen_in(epoch, seed=7).tolist()) for epoch in (1, 2, 3)]
    for counts in epochs:
        assert [counts[i] for i in range(7)] == [1, 1, 1, 1, 2, 2, 2]
        assert sum(counts[i] for i in range(7, 13)) == 3 and max(counts[i] for i in range(7, 13)) == 1
        assert sorted(counts[i] for i in range(13, 17)) == [1, 1, 1, 2]
    assert epochs[0] != epochs[1]
    both = epochs[0] + epochs[1]
    assert [both[i] for i in range(7, 13)] == [1] * 6  # what one epoch leaves out comes in the next
    assert mixture.seen_in(1, seed=7).tolist() == mixture.seen_in(1, seed=7).tolist()
    assert mixture.seen_in(1, seed=7).tolist() != mixture.seen_in(1, seed=8).tolist()


def test_every_source_has_a_part_in_every_epoch(tokenizer):
    assert mixture_of(tokenizer, (3, 0.01), (2, 1)).n_seen == 3


def dataset_of(tokenizer, *sizes_and_weights, **options) -> TreeDataset:
    mixture = mixture_of(tokenizer, *sizes_and_weights)
    return TreeDataset(mixture, InputBuilder(tokenizer, 128), max_history=2, **options)


def test_the_order_of_an_epoch_is_the_same_for_any_batch_size_and_number_of_ranks(tokenizer):
    train = dataset_of(tokenizer, (5, 1.5), (4, 0.5), num_candidates=1, n_rotations=2)
    assert train.n_seen == 2 * (round(7.5) + 2)

    def order(update_size: int, n_ranks: int, epoch: int) -> list[int]:
        samplers = [UpdateSampler(train.n_seen, update_size, 3, r, n_ranks, train.seen_in) for r in range(n_ranks)]
        for sampler in samplers:
            sampler.set_epoch(epoch)
        shares = itertools.zip_longest(*samplers, fillvalue=[])
        updates = [list(itertools.chain(*itertools.zip_longest(*share))) for share in shares]
        return [index for update in updates for index in update if index is not None]

    whole = order(20, 1, 2)
    assert Counter(whole) == Counter(train.seen_in(2, 3).tolist()) and whole != train.seen_in(2, 3).tolist()
    assert order(4, 1, 2) == order(5, 1, 2) == order(4, 2, 2) == order(5, 5, 2) == whole != order(20, 1, 1)
    # A run that goes on within an epoch makes the updates that are left.
    sampler = UpdateSampler(train.n_seen, 4, 3, seen_in=train.seen_in)
    sampler.set_epoch(2, n_done=3)
    assert list(itertools.chain(*sampler)) == whole[12:]


def test_validation_sees_each_example_once_in_batches_of_one_source(tokenizer):
    valid = dataset_of(tokenizer, (5, 3), (4, 0.5))
    batches = length_sorted_batches(valid, 3)
    assert sorted(itertools.chain(*batches)) == list(range(9))
    assert [len({valid.source_of(index) for index in batch}) for batch in batches] == [1] * 4
    assert [valid[index].source for index in (0, 4, 5, 8)] == [0, 0, 1, 1]


# Whole runs

MIXTURE = "dialogs.json*1.5 + more.json*0.5"


@pytest.fixture
def data(folder):
    """24 examples and 8 to validate on in dialogs.json, 20 and 4 in more.json, which have no candidates."""
    more = make_dialogs(12, n_candidates=1)
    for number, one in enumerate(more):
        one["personality"] = [f"i am number {number} ."]
    Path("more.json").write_text(json.dumps({"train": more[:10], "valid": more[10:]}))
    return folder


def options_with(dataset_path: str) -> list:
    """The options of test_resume's runs, the data set last, so that it counts."""
    return ["--dataset_path", dataset_path]


def test_a_run_measures_each_source_and_the_whole(data, caplog):
    caplog.set_level("INFO")
    run_train("--output_dir", "run", *options_with(MIXTURE))
    assert "train: dialogs.json*1.5 (24 examples) + more.json*0.5 (20 examples), 46 an epoch" in caplog.text
    assert "update = 4 x 2 accumulation = 8 examples; 12 updates, 6 an epoch" in caplog.text
    records = metrics_of("run")
    assert [list(record["sources"]) for record in records] == [["dialogs.json", "more.json"]] * 2
    for record in records:
        one, other = record["sources"].values()
        assert record["hits@1"] == pytest.approx((8 * one["hits@1"] + 4 * other["hits@1"]) / 12)
        assert one["perplexity"] < record["perplexity"] < other["perplexity"] or (
            other["perplexity"] < record["perplexity"] < one["perplexity"]
        )
        assert f"of more.json: hits@1 {other['hits@1']:.3f}, perplexity {other['perplexity']:.3f}" in caplog.text
    tags = {value.tag for event in read_events(Path("run")) for value in event.summary.value}
    wanted = {f"validation/{metric}{of}" for metric in ("hits_1", "perplexity") for of in ("", "/more.json")}
    assert wanted <= tags
    best = max(records, key=lambda record: (record["hits@1"], -record["perplexity"]))
    card = Path("run/README.md").read_text()
    assert f"| more.json | {best['sources']['more.json']['hits@1']:.3f} |" in card
    assert f"- sources: {MIXTURE.split(' ')[0]} (24 examples)" in card and "dialogs.json + more.json" in card


def test_the_figures_of_a_source_are_those_that_it_has_alone(data):
    """The weights of a run's end, measured by going on from them with a learning rate that changes nothing."""
    run_train("--output_dir", "run", *options_with(MIXTURE), "--max_updates", 6)
    of_mixture = metrics_of("run")[-1]["sources"]
    for name in ("dialogs.json", "more.json"):
        base = "--model run --device cpu --dataset_cache cache --eval_before_start --max_updates 1 --lr 1e-30"
        run_train("--output_dir", f"alone {name}", "--dataset_path", name, base=base)
        alone = metrics_of(f"alone {name}")[0]
        assert "sources" not in alone
        assert of_mixture[name] == {
            "hits@1": pytest.approx(alone["hits@1"]),
            "perplexity": pytest.approx(alone["perplexity"], rel=1e-5),
        }


@pytest.mark.parametrize("update", [2, 8])  # in the first epoch and in the second
def test_an_interrupted_run_goes_on_exactly(data, at_update, monkeypatch, update):
    run_train("--output_dir", "whole", *options_with(MIXTURE))
    at_update(update, send(signal.SIGTERM))
    with pytest.raises(SystemExit):
        run_train("--output_dir", "run", *options_with(MIXTURE))
    monkeypatch.undo()
    monkeypatch.chdir(data)
    run_train(base="--resume run --device cpu --num_workers 2")
    assert same_weights("run", "whole") and metrics_of("run") == metrics_of("whole")
    assert same_weights("run/checkpoints/update-00000012", "whole/checkpoints/update-00000012")


def test_weights_that_have_changed_in_a_file_of_sources_are_found(data):
    mixture = Path("mixture.json")
    mixture.write_text(json.dumps({"sources": {"dialogs.json": 1.5, "more.json": 0.5}}))
    run_train("--output_dir", "run", *options_with("mixture.json"), "--max_updates", 2)
    mixture.write_text(json.dumps({"sources": {"dialogs.json": 1.0833, "more.json": 1}}))  # as many examples
    with pytest.raises(UserError, match=r"run with sources dialogs.json\*1.5 .*: give the same data"):
        run_train(base="--resume run --device cpu")


def test_two_ranks_train_and_measure_as_one(data):
    config = json.loads(Path("scratch/config.json").read_text())
    config |= dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
    Path("scratch/config.json").write_text(json.dumps(config))
    options = [*options_with(MIXTURE), "--max_updates", 2, "--valid_batch_size", 4]
    run_train("--output_dir", "one", *options)
    result = run_ranks(data, 2, *test_resume.options("--output_dir", "two", *options), "--train_batch_size", 2)
    assert result.returncode == 0, result.stderr
    (one,), (two,) = metrics_of("one"), metrics_of("two")
    for ours, theirs in ((one, two), *zip(one["sources"].values(), two["sources"].values(), strict=True)):
        assert ours["hits@1"] == theirs["hits@1"]
        assert ours["perplexity"] == pytest.approx(theirs["perplexity"], rel=1e-4)


def test_other_scripts_take_mixtures(data):
    def run(script: str, *arguments: str) -> str:
        command = [sys.executable, ROOT / script, *arguments]
        result = subprocess.run(command, input="hi\n", capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        return result.stdout + result.stderr

    path = "dialogs.json + more.json*2"
    assert "new: gpt2" in run("new_model.py", "new", "--family", "gpt2", "--dataset_path", path)
    run_train("--output_dir", "run", *options_with(path), "--max_updates", 1)
    train, valid = load_for_evaluation(path)
    assert (len(train), len(valid)) == (22, 6)
    told = run("convai_evaluation.py", "--model", "run", "--dataset_path", path, "--eval_type", "hits@1")
    assert "this run: 12 examples of dialogs.json + more.json*2" in told
    assert "number" in run("interact.py", "--model", "run", "--dataset_path", "more.json*0.1 + more.json,dialogs.json",
                           "--max_length", "3")  # fmt: skip
