"""Which validation of a run is the best: by the metric chosen, the other one breaking ties, and runs that go by it."""

import json
from pathlib import Path

import pytest
import test_resume
from conftest import make_dialogs
from huggingface_hub import ModelCard
from test_resume import metrics_of, run_train, same_weights
from test_train import read_events

import train
from convai.errors import UserError
from convai.training.model_card import best_validation
from convai.training.run_folder import checkpoint_folder
from convai.training.validations import ValidationHistory, best_of, read_validations

folder = test_resume.folder


def records_of(*figures: tuple[float | None, float]) -> list[dict]:
    """Validations of these hits@1 and perplexities, the first one before the first update."""
    return [{"updates": n, "epoch": n, "hits@1": hits, "perplexity": ppl} for n, (hits, ppl) in enumerate(figures)]


def history_of(folder: Path, best_metric: str, records: list[dict]) -> ValidationHistory:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return ValidationHistory(best_metric, folder, update=len(records))


NAN = float("nan")
FIGURES = [
    # metric, validations after updates 1, 2, ...; the update of the best, how many have passed since
    ("hits@1", [(0.2, 5), (0.3, 9)], 2, 0),
    ("hits@1", [(0.3, 5), (0.2, 4), (0.3, 5)], 1, 2),  # the same twice: the earlier
    ("hits@1", [(0.3, 5), (0.2, 1), (0.3, 4)], 3, 0),  # perplexity breaks the tie
    ("hits@1", [(0.3, 5), (0.3, 6)], 1, 1),
    ("perplexity", [(0.9, 5), (0.1, 4), (0.2, 6), (0.1, 4)], 2, 2),
    ("perplexity", [(0.1, 4), (0.2, 4)], 2, 0),  # hits@1 breaks the tie
    ("hits@1", [(None, 12.8), (None, 3), (None, 1.5), (None, 1.6)], 3, 1),  # nothing to rank
    ("hits@1", [(1.0, 12.8), (None, 3), (None, 4)], 2, 1),  # the first one measured by older code
    ("perplexity", [(None, 2), (None, 3)], 1, 1),
    ("hits@1", [(0.5, NAN), (0.5, 9)], 2, 0),
    ("perplexity", [(0.5, NAN), (0.4, 9), (0.6, NAN)], 2, 1),
]


@pytest.mark.parametrize(("metric", "figures", "best", "n_since_best"), FIGURES)
def test_best_patience_and_card_agree(tmp_path, metric, figures, best, n_since_best):
    records = records_of((0.99, 0.5), *figures)  # the one before the first update does not count
    history = history_of(tmp_path, metric, records)
    assert history.n_since_best == n_since_best
    assert best_of(records[1:], metric)["updates"] == best
    assert best_validation(read_validations(tmp_path), {"best_metric": metric})["updates"] == best
    # As they came in, the last that was kept is the best.
    so_far, kept = history_of(tmp_path, metric, records[:1]), None
    for record in records[1:]:
        new = {name: record[name] for name in ("hits@1", "perplexity")}
        kept = record["updates"] if so_far.is_best(new) else kept
        so_far.append(record["updates"], record["epoch"], new, to_file=False)
    assert kept == best


def test_what_came_after_the_checkpoint_is_forgotten(tmp_path):
    records = records_of((0.1, 9), (0.2, 8), (0.3, 7))
    history_of(tmp_path, "hits@1", records)
    history = ValidationHistory("hits@1", tmp_path, update=1)
    history.rewrite()
    assert metrics_of(tmp_path) == records[:2]
    assert history.is_best({"hits@1": 0.25, "perplexity": 9}) and not history.is_best({"hits@1": 0.2, "perplexity": 9})


def test_a_run_that_no_longer_improves_stops(folder, caplog):
    with caplog.at_level("INFO"):
        run_train("--output_dir", "run", "--n_epochs", 9, "--patience", 2, "--lr", 1e-30)
    assert "2 validations without a better hits@1: stopping" in caplog.text
    assert len(metrics_of("run")) == 3
    run_train(base="--resume run --device cpu")
    assert len(metrics_of("run")) == 3


def test_the_best_checkpoint_is_the_best_by_the_metric_chosen(folder, monkeypatch):
    compute, n_validations = train.tree_losses, 0

    def tree_losses(model, batch):  # the second validation comes out as the best
        nonlocal n_validations
        n_validations += not model.training  # one batch each
        token_losses, *others = compute(model, batch)
        return token_losses * (1 if model.training or n_validations == 2 else 3), *others

    monkeypatch.setattr(train, "tree_losses", tree_losses)
    run_train("--output_dir", "run", "--n_epochs", 4, "--best_metric", "perplexity", "--n_saved", 9)
    assert same_weights("run", checkpoint_folder(Path("run"), 6))
    assert not same_weights("run", checkpoint_folder(Path("run"), 12))


def test_a_run_keeps_the_metric_that_decides(folder):
    run_train("--output_dir", "run", "--max_updates", 1)
    with pytest.raises(UserError, match="it was trained with --best_metric 'hits@1', not 'perplexity'"):
        run_train(base="--resume run --best_metric perplexity --device cpu")


class TestNothingToRank:
    """The only dialog held out, without candidates: no other dialog to draw distractors from."""

    @pytest.fixture
    def lone(self, folder):
        dialogs = make_dialogs(13, n_candidates=1)
        Path("dialogs.json").write_text(json.dumps({"train": dialogs[:12], "valid": dialogs[12:]}))
        return folder

    def test_perplexity_decides_and_it_is_said_once(self, lone, caplog):
        caplog.set_level("INFO")
        run_train("--output_dir", "run", "--n_epochs", 5, "--n_saved", 9, "--num_candidates", 4, "--eval_before_start")
        said = [message for message in caplog.messages if "hits@1" in message]
        assert said[0] == "hits@1 -, nothing to rank: perplexity decides which checkpoint is the best"
        assert len(said) == 7 and all(" updates: hits@1 -, perplexity " in message for message in said[1:])
        assert all(record["hits@1"] is None for record in metrics_of("run"))
        best = min(metrics_of("run")[1:], key=lambda record: record["perplexity"])
        assert best["updates"] > 3  # it learns
        assert same_weights("run", checkpoint_folder(Path("run"), best["updates"]))
        card = Path("run/README.md").read_text()
        assert f"| **{best['updates']}** | {best['epoch']} | - | {best['perplexity']:.3f} |" in card
        assert [result.metric_type for result in ModelCard(card).data.eval_results] == ["perplexity"]
        tags = {value.tag for event in read_events(Path("run")) for value in event.summary.value}
        assert "validation/perplexity" in tags and not any("hits" in tag for tag in tags)

    def test_patience_counts_by_perplexity(self, lone, caplog):
        caplog.set_level("INFO")
        run_train("--output_dir", "run", "--n_epochs", 4, "--patience", 2)
        assert len(metrics_of("run")) == 4 and "stopping" not in caplog.text
        run_train("--output_dir", "still", "--n_epochs", 4, "--patience", 2, "--lr", 1e-30)
        assert len(metrics_of("still")) == 3
        assert "2 validations without a better perplexity: stopping" in caplog.text

    def test_going_on_with_such_a_run(self, lone, caplog):
        run_train("--output_dir", "run", "--n_epochs", 1)
        (record,) = metrics_of("run")
        Path("run/metrics.jsonl").write_text("")  # as if it had been interrupted before the validation
        run_train(base="--resume run --device cpu")
        assert metrics_of("run") == [record]

    def test_replies_that_are_all_alike_are_nothing_to_rank_either(self, folder):
        dialogs = make_dialogs(4, n_candidates=1)
        for dialog in dialogs[2:]:
            for utterance in dialog["utterances"]:
                utterance["candidates"] = ["yes ."]
        Path("dialogs.json").write_text(json.dumps({"train": dialogs[:2], "valid": dialogs[2:]}))
        run_train("--output_dir", "run", "--max_updates", 1)
        assert metrics_of("run")[0]["hits@1"] is None
