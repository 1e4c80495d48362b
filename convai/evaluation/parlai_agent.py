"""The dialog agent as ParlAI wants it; importing this module needs ParlAI.

ParlAI's commands load it as `-m convai_evaluation:TransformerAgent`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from parlai.core.agents import Agent
from parlai.core.message import Message
from parlai.core.metrics import AverageMetric, Metric, SumMetric

from convai.data.same_reply import without_twins
from convai.dialog.agent import Context, DialogAgent
from convai.dialog.loading import load_agent
from convai.errors import report_user_errors
from convai.evaluation.metrics import ReplyScore, WordPerplexity, best_first, perplexity, perplexity_summands
from convai.evaluation.parlai_task import turns_of, word_perplexity
from convai.io.pretrained import locate_finetuned
from convai.options import AgentOptions, ParlaiOptions, add_options, chosen_seed


class TransformerAgent(Agent):
    """A DialogAgent behind ParlAI's interface.

    Clones share the model. Each observation carries its context, so that one clone can act for a whole batch.
    """

    @classmethod
    def add_cmdline_args(cls, parser, partial_opt=None):
        """Add the options that ParlAI's own commands take for this agent."""
        add_options(parser.add_argument_group("TransformerAgent"), ParlaiOptions)
        parser.set_defaults(seed=42)
        return parser

    def __init__(self, opt, shared=None):
        self.id = "TransformerAgent"
        super().__init__(opt, shared)
        # ParlAI's own commands would show an error of ours as a traceback; this script, which hands over an agent that
        # is loaded already, reports them itself.
        self.reports_errors = shared is None or shared.get("reports_errors", False)
        self.dialog_agent: DialogAgent = shared["dialog_agent"] if shared else self._reporting(load)(opt)
        self.words: WordPerplexity | None = shared["words"] if shared else None
        if "ppl" in opt["eval_type"] and self.words is None:
            self.words = self._reporting(word_perplexity)(self.dialog_agent, opt)
        self.reset()

    def _reporting(self, function: Callable) -> Callable:
        """Return the function so that in ParlAI's own commands a UserError ends them in one line, with status 2."""
        return report_user_errors(function) if self.reports_errors else function

    def share(self) -> dict:
        own = {"dialog_agent": self.dialog_agent, "words": self.words, "reports_errors": self.reports_errors}
        return super().share() | own

    def reset(self) -> None:
        """Forget the dialog."""
        super().reset()
        self.persona: list[str] = []
        self.history: list[str] = []
        self.said = ""  # since the last observation: the gold reply where there is one, otherwise what was replied
        self.episode_done = False

    def observe(self, observation):
        """Take in what the other side said; the returned observation carries the context to reply to."""
        if self.episode_done:
            self.reset()
        if self.said:
            self.history.append(self.said)
        self.history += turns_of(observation.get("text") or "", self.persona)
        labels = observation.get("eval_labels") or observation.get("labels") or [""]
        self.said = labels[0]
        self.episode_done = observation.get("episode_done", False)
        self.observation = observation.copy()
        self.observation["dialog_context"] = Context(tuple(self.persona), tuple(self.history))
        return self.observation

    def self_observe(self, reply) -> None:
        """Remember the agent's own reply where there is no gold one."""
        self.said = self.said or reply.get("text", "")

    def act(self):
        reply = self.batch_act([self.observation])[0]
        self.self_observe(reply)
        return reply

    def batch_act(self, observations):
        """Reply to each observation of a batch: candidates best first, a text, metrics, as `--eval_type` asks."""
        replies = [Message({"id": self.id}) for _ in observations]
        asked = [i for i, observation in enumerate(observations) if "dialog_context" in (observation or {})]
        asked = [i for i in asked if not observations[i].get("batch_padding")]
        eval_types = self.opt["eval_type"]
        ranked = [i for i in asked if "hits@1" in eval_types and observations[i].get("label_candidates")]
        scored = [i for i in asked if "ppl" in eval_types and gold_of(observations[i]) is not None]
        generated = asked if "f1" in eval_types else [i for i in asked if i not in {*ranked, *scored}]
        for indices, answer in ((ranked, self._rank), (scored, self._score), (generated, self._generate)):
            if indices:
                answers = self._reporting(answer)([observations[i] for i in indices])
                for i, fields in zip(indices, answers, strict=True):
                    replies[i].update(fields)
        return replies

    def next_word_probability(self, partial_out: Sequence[str]) -> dict[str, float]:
        """Return each dictionary word's probability to follow the words `partial_out` of the reply, as published."""
        assert self.words is not None, "made by --eval_type ppl"
        return self.words.next_word_probability(self.dialog_agent, self.observation["dialog_context"], partial_out)

    def _rank(self, observations) -> list[dict]:
        questions = [(observation["dialog_context"], self._candidates(observation)) for observation in observations]
        scores = self.dialog_agent.rank_batch(questions, self.opt["rank_by"])
        ranked = [
            best_first(candidates, row, gold_of(observation))
            for observation, (_, candidates), row in zip(observations, questions, scores, strict=True)
        ]
        return [{"text": candidates[0], "text_candidates": candidates} for candidates in ranked]

    def _candidates(self, observation) -> list[str]:
        """Return the candidates to rank: where the gold reply is known, without its repetitions, as in training."""
        candidates = list(observation["label_candidates"])
        labels = labels_of(observation)
        return without_twins(candidates, labels, self.dialog_agent.tokenizer.encode) if labels else candidates

    def _score(self, observations) -> list[dict]:
        assert self.words is not None, "made by --eval_type ppl"
        # Only those with a gold reply are scored.
        questions = [(observation["dialog_context"], gold_of(observation) or "") for observation in observations]
        return [{"metrics": metrics_of(score)} for score in self.words.score(self.dialog_agent, questions)]

    def _generate(self, observations) -> list[dict]:
        contexts = [observation["dialog_context"] for observation in observations]
        return [{"text": text} for text in self.dialog_agent.reply_batch(contexts, chosen_seed(self.opt))]


def labels_of(observation: Mapping[str, Any]) -> Sequence[str]:
    """Return the replies that ParlAI counts as right, the one to learn first; none where they are hidden."""
    return observation.get("eval_labels") or observation.get("labels") or ()


def gold_of(observation: Mapping[str, Any]) -> str | None:
    return next(iter(labels_of(observation)), None)


def load(opt: Mapping[str, Any]) -> DialogAgent:
    """Load the agent that ParlAI's options ask for; without a checkpoint the released one."""
    return load_agent(locate_finetuned("openai-gpt", opt["model_checkpoint"]), AgentOptions.of(opt))


class Perplexity(AverageMetric):
    """exp of a mean of negative log-probabilities, which ParlAI adds up over examples."""

    def value(self) -> float:
        return perplexity(self._numer, self._denom)


def metrics_of(score: ReplyScore) -> dict[str, Metric]:
    """Return what one gold reply adds to the perplexities and counts of a report."""
    parts = perplexity_summands(score)
    published: dict[str, Metric] = {"ppl": Perplexity(parts["loss"], parts["n_words"])} if "loss" in parts else {}
    return (
        published
        | {
            "ppl_all_pieces": Perplexity(parts["loss_all_pieces"], parts["n_words"]),
            "token_ppl": Perplexity(parts["token_loss"], parts["n_tokens"]),
        }
        | {name: SumMetric(parts[name]) for name in ("n_words", "n_words_skipped", "n_tokens")}
    )
