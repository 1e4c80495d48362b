"""The card of a run folder: readable by the hub's own code, true to the run's files, careful with what is not ours."""

import json
import logging
import math
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, tiny_config
from huggingface_hub import ModelCard

from convai.options import training_parser
from convai.training import model_card
from convai.training.model_card import MARK, front_matter, write_model_card
from convai.training.validations import ValidationHistory


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "Apr17_thunder_openai-gpt"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_config("openai-gpt", 40)))
    validations = [(0, 0, 0.05, 900.0), (10, 1, 0.70, 21.0), (20, 2, 0.79, 20.5), (30, 3, 0.78, 20.4)]
    names = ("updates", "epoch", "hits@1", "perplexity")
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in validations]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    set_options(folder)
    return folder


def set_options(folder, *options):
    (folder / "arguments.json").write_text(json.dumps(vars(training_parser().parse_args(options))))


def card_of(run, facts=None) -> ModelCard:
    write_model_card(run, facts)
    return ModelCard.load(run / "README.md")


def test_the_hub_reads_its_metadata(run):
    data = card_of(run).data
    assert data.base_model == "openai-community/openai-gpt" and data.language == ["en"]
    assert data.library_name == "transformers" and data.pipeline_tag == "text-generation"
    assert {"persona", "openai-gpt"} <= set(data.tags)
    figures = {result.metric_type: result.metric_value for result in data.eval_results}
    assert figures == {"hits@1": 0.79, "perplexity": 20.5}
    assert data.eval_results[0].dataset_name == "PersonaChat"


def test_it_tells_data_options_figures_version_and_limits(run):
    set_options(run, "--lr", "1e-4", "--max_history", "0")
    text = card_of(run, {"updates": 30, "examples": 480}).text
    assert "arXiv 1801.07243" in text
    assert "| **20** | 2 | 0.790 | 20.500 |" in text
    assert "`lr 0.0001`" in text and "- examples: 480" in text and "local_rank" not in text
    assert "--model_checkpoint FOLDER\n" in text
    assert f"- code: {model_card.code_version()}, torch " in text
    assert "makes things up" in text


def test_the_best_by_perplexity_where_that_was_asked_for(run):
    set_options(run, "--best_metric", "perplexity")
    assert card_of(run).data.eval_results[0].metric_value == 0.78


def test_data_of_the_hub_and_new_weights(run):
    set_options(run, "--dataset_path", "hub:owner/dialogs", "--from_scratch", "--model", "models/tiny")
    card = card_of(run)
    assert card.data.datasets == ["owner/dialogs"] and card.data.eval_results[0].dataset_type == "owner/dialogs"
    assert card.data.base_model is None and card.data.language is None
    assert "new weights trained from scratch" in card.text


def test_a_name_with_quotes_and_colons(run):
    set_options(run, "--dataset_path", 'my "own": data.json')
    assert card_of(run).data.eval_results[0].dataset_name == 'my "own": data.json'


def test_it_is_replaced_as_long_as_it_is_ours(run):
    write_model_card(run)
    path = run / "README.md"
    (run / "metrics.jsonl").write_text(json.dumps({"updates": 1, "epoch": 1, "hits@1": 0.5, "perplexity": 9.0}) + "\n")
    write_model_card(run)
    assert "| **1** | 1 | 0.500 | 9.000 |" in path.read_text() and MARK in path.read_text()
    path.write_text("# Mine\n")
    write_model_card(run)
    assert path.read_text() == "# Mine\n" and not list(run.glob("*.tmp"))


def test_a_card_that_cannot_be_written_is_a_warning(run, caplog):
    (run / "metrics.jsonl").write_text("{")
    with caplog.at_level(logging.WARNING):
        write_model_card(run)
    assert "could not be written" in caplog.text and not (run / "README.md").exists()


def test_without_version_control(run, monkeypatch, tmp_path):
    monkeypatch.setattr(model_card, "ROOT", tmp_path)
    assert "- code: not under version control, torch" in card_of(run).text


def test_byte_order_marks_of_the_run_s_files_are_dropped(run):
    plain = card_of(run).text
    for name in ("config.json", "arguments.json", "metrics.jsonl"):
        (run / name).write_bytes(b"\xef\xbb\xbf" + (run / name).read_bytes())
    assert card_of(run).text == plain
    history = ValidationHistory("hits@1", run, update=30)
    assert [record["updates"] for record in history.records] == [0, 10, 20, 30]


def test_the_metadata_as_the_hub_finds_them(run):
    text = front_matter(run.name, {"model_type": "gpt2"}, {"dataset_path": "example", "model_checkpoint": "gpt2"}, {
        "hits@1": None, "perplexity": 20.49996})  # fmt: skip
    assert text.startswith("---\n") and text.endswith("\n---")
    dataset = {"name": "embedded example set", "type": "embedded-example-set"}
    result = {"task": {"type": "text-generation"}, "dataset": dataset}
    assert yaml.safe_load(text.removeprefix("---").removesuffix("---")) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["conversational", "persona", "transfertransfo", "gpt2"],
        "base_model": "openai-community/gpt2",
        "language": ["en"],
        "model-index": [{"name": run.name, "results": [result | {"metrics": [{"type": "perplexity", "value": 20.5}]}]}],
    }


def test_a_perplexity_that_is_no_number(run):
    """JSON's NaN, which the header was once written with, is a word in YAML."""
    (run / "metrics.jsonl").write_text('{"updates": 1, "epoch": 1, "hits@1": 0.5, "perplexity": NaN}\n')
    values = [result.metric_value for result in card_of(run).data.eval_results]
    assert values[0] == 0.5 and math.isnan(values[1])


def test_the_hub_s_library_is_imported_only_for_a_card():
    check = "import sys, convai.training.model_card; print('huggingface_hub' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", check], cwd=ROOT, text=True).strip() == "False"
