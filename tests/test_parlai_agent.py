"""The agent that ParlAI talks to: the history it keeps, its prompts, what it answers."""

from pathlib import Path

import parlai_evaluations
import pytest
import torch
from conftest import TEXTS
from parlai_evaluations import by_parlai, figures_of

import convai_evaluation
from convai.data.formats import read_splits
from convai.dialog.agent import Context, DialogAgent
from convai.evaluation.metrics import best_first, split_words
from convai.evaluation.own_evaluation import OwnEvaluation
from convai.options import RANKINGS, evaluation_parser
from convai_evaluation import evaluate

dialogs_file = parlai_evaluations.dialogs_file
trained_agent = parlai_evaluations.trained_agent
agent = parlai_evaluations.agent


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
    opt = {"eval_type": list(eval_type), "seed": None, "rank_by": "head"}
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

    def test_ranks_by_what_it_is_asked_to(self, agent):
        from parlai.core.params import ParlaiParser

        parser = ParlaiParser(add_parlai_args=False, add_model_args=False)
        convai_evaluation.TransformerAgent.add_cmdline_args(parser)
        orders = {}
        for by in RANKINGS:
            opt = parser.parse_args(["--rank-by", by], print_args=False)
            talker = convai_evaluation.TransformerAgent(opt, {"dialog_agent": agent, "words": None})
            observed = talker.observe(self.message(TEXTS[0], label_candidates=TEXTS[1:]))
            orders[by] = talker.batch_act([observed])[0]["text_candidates"]
            scores = agent.rank_batch([(Context([], [TEXTS[0]]), TEXTS[1:])], by)[0]
            assert orders[by] == best_first(TEXTS[1:], scores, None), by
        assert orders["head"] != orders["likelihood"] != orders["pmi"]


@pytest.mark.parametrize("by", RANKINGS[1:])
def test_its_hits_are_ours_whatever_it_ranks_by(agent, dialogs_file, by):
    ours = OwnEvaluation(evaluation_parser().parse_args(["--dataset_path", str(dialogs_file), "--rank_by", by]))
    theirs = by_parlai(dialogs_file, rank_by=by)
    assert figures_of(theirs, agent, ["hits@1"]) == pytest.approx(figures_of(ours, agent, ["hits@1"]))
    assert (theirs.ranking.label, ours.ranking.label) == (
        f"by {by}, given distractors", f"by {by}, 19 given distractors",
    )  # fmt: skip
