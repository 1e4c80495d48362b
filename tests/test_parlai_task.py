"""Evaluation through ParlAI, the real one: its reports against our own path's, and what is refused."""

import re

import parlai_evaluations
import pytest
from conftest import DEVELOPMENT_DATA
from parlai_evaluations import by_ourselves, by_parlai, figures_of, write_dialogs

from convai.dialog.agent import DialogAgent
from convai.dialog.decoding import DecodingSettings
from convai.errors import UserError
from convai.evaluation.parlai_task import ParlaiEvaluation
from convai.options import evaluation_parser
from convai_evaluation import evaluate

dialogs_file = parlai_evaluations.dialogs_file
trained_agent = parlai_evaluations.trained_agent
agent = parlai_evaluations.agent


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


def test_real_dialogs_agree(agent):
    path = DEVELOPMENT_DATA / "data" / "convai2_valid_self_original_no_cands.txt"
    if not path.is_file():
        pytest.skip("needs the development data")
    ours, theirs = (figures_of(by(path), agent, ["ppl"]) for by in (by_ourselves, by_parlai))
    assert theirs == pytest.approx(ours, rel=1e-4)
