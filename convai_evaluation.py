"""Score a fine-tuned model on the ConvAI2 task (Dinan et al., 2019, arXiv 1902.00098): hits@1, perplexity and F1.

    python convai_evaluation.py --eval_type hits@1                            the released model, ParlAI's convai2 task
    python convai_evaluation.py --eval_type hits@1 ppl f1 --dataset_path DATA  without ParlAI, on data of your own
    python -m parlai eval_model -m convai_evaluation:TransformerAgent -t convai2 --model-checkpoint RUN

Without --dataset_path it needs ParlAI, from requirements-parlai.txt or a clone that it is run in (`cd ParlAI; python
../convai_evaluation.py ...`), and hands options that it does not know, such as -t TASK, to it.
"""

from convai.errors import NoFigure, UserError, report_user_errors
from convai.options import evaluation_options

if __name__ == "__main__":
    evaluation_options()  # answers --help and mistyped options before the slow imports below

import copy
import logging
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from convai.data.formats import Dialog
from convai.data.parlai_text import take_persona
from convai.data.same_reply import without_twins
from convai.dialog.agent import Context, DialogAgent
from convai.dialog.decoding import DecodingSettings
from convai.evaluation.metrics import (
    OFFICIAL_N_ENTRIES,
    ReplyScore,
    WordPerplexity,
    best_first,
    count_words,
    dictionary_texts,
    perplexity,
    perplexity_summands,
)
from convai.evaluation.own_evaluation import OwnEvaluation
from convai.evaluation.report import FIGURES, Result, check_output, print_final_line, print_table, run, write_json
from convai.io.pretrained import locate_finetuned
from convai.options import (
    EVAL_TYPES,
    add_decoding_options,
    add_device_option,
    add_input_options,
    add_precision_options,
    chosen_seed,
    precision_of,
)

logger = logging.getLogger("convai_evaluation")

OFFICIAL_TASK = "convai2:self"
INSTALL_PARLAI = f"pip install --no-deps -r {Path(__file__).with_name('requirements-parlai.txt')}"
WITHOUT_PARLAI = "or evaluate without ParlAI: --dataset_path FILE"
CONVAI2_URL = "http://parl.ai/downloads/convai2/convai2_fix_723.tgz"


@report_user_errors
def main() -> None:
    args, for_parlai = evaluation_options()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    check_output(args.output)
    evaluation = OwnEvaluation(args) if args.dataset_path else ParlaiEvaluation(args, for_parlai)
    agent = load_agent(vars(args), args.model)
    results = evaluate(evaluation, agent, args.eval_type)
    refusals = [f"{eval_type}: {result.refusal}" for eval_type, result in results.items() if result.refusal]
    if len(refusals) < len(results):
        print_table(results, evaluation.name)
        if args.output:
            write_json(args, results, evaluation.name)
    if any(result.interrupted for result in results.values()):
        sys.exit(130)
    if refusals:
        raise UserError("; ".join(refusals))


def evaluate(evaluation, agent: DialogAgent, eval_types: Sequence[str]) -> dict[str, Result]:
    """Measure one after the other, until an interrupt; a figure that cannot be given does not stop the others."""
    results: dict[str, Result] = {}
    for eval_type in dict.fromkeys(eval_types):
        try:
            if eval_type == "hits@1":
                agent.check_ranking()
            results[eval_type] = run(eval_type, *evaluation.start(eval_type, agent))
        except NoFigure as error:
            results[eval_type] = Result.refused(str(error))
            continue
        print_final_line(eval_type, results[eval_type])
        if results[eval_type].interrupted:
            break
    return results


def load_agent(options: Mapping[str, Any], model: str = "openai-gpt") -> DialogAgent:
    """Load the model and set it up as the options say; UserError where they are out of range."""
    try:
        settings = DecodingSettings(**{field.name: options[field.name] for field in fields(DecodingSettings)})
    except ValueError as error:
        raise UserError(f"{error}; see --help.") from error
    agent = DialogAgent.load(
        locate_finetuned(model, options["model_checkpoint"]),
        device=options["device"],
        precision=precision_of(options),
        tokenization=options["tokenization"],
        dialog_token_ids=options["dialog_token_ids"],
        max_history=options["max_history"],
        settings=settings,
    )
    agent.tokenizer.encode("hello")  # imports spaCy, which the first examples should not have to wait for
    return agent


class ParlaiEvaluation:
    """The metrics by ParlAI's worlds and teachers; perplexity, which ParlAI no longer has, is the agent's own."""

    def __init__(self, args: Namespace, for_parlai: Sequence[str]):
        import_parlai()
        self.opt = parlai_options(args, for_parlai)
        self.name = self.opt["task"]
        self.words: WordPerplexity | None = None

    def start(self, eval_type: str, agent: DialogAgent) -> tuple[int, Iterator[dict[str, float]]]:
        """Return the number of examples and an iterator that scores them, yielding the figures so far."""
        from parlai.core.worlds import create_task

        opt = copy.deepcopy(self.opt)
        opt["eval_type"] = [eval_type]
        if eval_type == "ppl" and self.words is None:
            self.words = word_perplexity(agent, opt)
        parlai_agent = agent_class()(opt, {"dialog_agent": agent, "words": self.words})
        with explained_problems(opt):
            world = create_task(opt, parlai_agent)
            n_total = world.num_examples()
        if not n_total:
            raise UserError(f"ParlAI's task {self.name} has no examples; check its data, {WITHOUT_PARLAI}.")
        return n_total, self._steps(eval_type, world)

    def _steps(self, eval_type: str, world) -> Iterator[dict[str, float]]:
        while not world.epoch_done():
            try:
                world.parley()
            except RuntimeError as error:
                if "true label missing" not in str(error):
                    raise
                raise UserError(f"{self.name}: the candidates of an example lack its gold reply, which ParlAI refuses; "
                                f"add it there, {WITHOUT_PARLAI}, which adds it.") from error  # fmt: skip
            report = {name: metric.value() for name, metric in world.report().items()}
            n_examples = report.get("exs", 0)
            if n_examples and eval_type not in report:
                raise NoFigure(f"ParlAI's task {self.name} offers no candidate replies, so there is no hits@1; choose "
                               f"another task, {WITHOUT_PARLAI}, which draws some.")  # fmt: skip
            if n_examples:
                yield {"n_examples": n_examples} | {name: report[name] for name in FIGURES[eval_type]}


def import_parlai() -> None:
    """Import ParlAI from the clone in the current folder or as it is installed; UserError with what to do."""
    here = Path.cwd()
    if (here / "parlai" / "core" / "agents.py").is_file():
        sys.path.insert(1, str(here))  # behind this script's folder
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pkg_resources, which it needs, calls itself deprecated
            import parlai.core.worlds
            import parlai.utils.logging
    except ImportError as error:
        raise UserError(
            f"ParlAI cannot be imported ({error}). Install it: {INSTALL_PARLAI}; {WITHOUT_PARLAI}."
        ) from error
    parlai.utils.logging.set_log_level(logging.WARNING)


def parlai_options(args: Namespace, for_parlai: Sequence[str]) -> dict[str, Any]:
    """Return ParlAI's options with ours among them: what the agent reads."""
    from parlai.core.params import ParlaiParser

    def refuse(message: str) -> None:
        raise UserError(f"{message}; our options are listed by --help, ParlAI's by `parlai eval_model --help`.")

    parser = ParlaiParser(add_parlai_args=True, add_model_args=False)
    parser.error = refuse
    parser.set_params(task=OFFICIAL_TASK, datatype="valid", batchsize=args.batch_size)
    with explained_problems({"task": "of -t"}):
        opt = parser.parse_args(list(for_parlai))
    opt |= vars(args)
    opt["metrics"] = "none"  # beyond the ones asked for: BLEU takes long
    return opt


@contextmanager
def explained_problems(opt: Mapping[str, Any]) -> Iterator[None]:
    """Turn what ParlAI raises over a task that it cannot load into a UserError that says what to do."""
    try:
        yield
    except (ImportError, AttributeError, LookupError, ValueError, OSError, RuntimeError, AssertionError) as error:
        reason = f"{next(iter(str(error).splitlines()), '')} ({type(error).__name__})"
        folder = Path(opt.get("datapath", ""), "ConvAI2")
        if opt["task"].startswith("convai2") and not (folder / ".built").exists():
            raise UserError(f"ParlAI's data of ConvAI2 are not in {folder} and cannot be downloaded: {reason}. Put the "
                            f"file of {CONVAI2_URL} there and start again, {WITHOUT_PARLAI}.") from error  # fmt: skip
        raise UserError(f"ParlAI cannot load the task {opt['task']}: {reason}. Check -t and its options, "
                        f"{WITHOUT_PARLAI}.") from error  # fmt: skip


def word_perplexity(agent: DialogAgent, opt: Mapping[str, Any]) -> WordPerplexity:
    """Return the scorer for the dictionary of a ParlAI task's training and validation data."""
    # The competition's dictionary is the same for all versions of its task.
    tasks = [OFFICIAL_TASK if task.startswith("convai2") else task for task in opt["task"].split(",")]
    with explained_problems(opt):
        train, valid = (
            [dialog for task in tasks for dialog in task_dialogs(opt, task, datatype)]
            for datatype in ("train:evalmode", "valid")
        )
    # A task that has but one file uses it for everything.
    words = WordPerplexity(agent.tokenizer, count_words(dictionary_texts([] if train == valid else train, valid)))
    logger.info("dictionary: %d entries (official: %d)", words.n_entries, OFFICIAL_N_ENTRIES)
    return words


def task_dialogs(opt: Mapping[str, Any], task: str, datatype: str) -> list[Dialog]:
    """Return the dialogs of a ParlAI task in our form, with the gold replies as the only candidates."""
    from parlai.core.teachers import create_task_agent_from_taskname

    own_opt: Any = copy.deepcopy(opt)
    own_opt.update(task=task, datatype=datatype, batchsize=1)
    dialogs: list[Dialog] = []
    is_new = True
    for teacher in create_task_agent_from_taskname(own_opt):
        for message in teacher:
            if is_new:
                dialogs.append({"personality": [], "utterances": []})
                history: list[str] = []
            history += turns_of(message.get("text", ""), dialogs[-1]["personality"])
            if labels := message.get("eval_labels") or message.get("labels"):
                dialogs[-1]["utterances"].append({"history": list(history), "candidates": [labels[0]]})
                history.append(labels[0])
            is_new = message.get("episode_done", False)
    return dialogs


def turns_of(text: str, personality: list[str]) -> list[str]:
    """Return the turn in a ParlAI message's text, if any, and move its persona lines to `personality`."""
    said = take_persona(text, personality).split("\n")
    turn = " ".join(line.strip() for line in said if line.strip())
    return [turn] if turn else []


class _TransformerAgent:
    """A DialogAgent as ParlAI wants it; `TransformerAgent` is this with ParlAI's Agent as its base class.

    Clones share the model. Each observation carries its context, so that one clone can act for a whole batch.
    """

    # Of ParlAI's Agent, and of the class that agent_class makes.
    opt: Mapping[str, Any]
    metrics_of: Callable[[ReplyScore], dict[str, Any]]

    @classmethod
    def add_cmdline_args(cls, parser, partial_opt=None):
        """Add the options that ParlAI's own commands take for this agent."""
        group = parser.add_argument_group("TransformerAgent")
        group.add_argument(
            "--eval_type",
            nargs="+",
            choices=EVAL_TYPES,
            default=["hits@1"],
            help="rank the candidates, score the gold reply's words, generate a reply; where neither of the first two "
            "is possible, a reply is generated",
        )
        group.add_argument(
            "--model_checkpoint", default="", metavar="MODEL", help="folder of a fine-tuned model (default: released)"
        )
        add_input_options(group)
        add_device_option(group)
        add_precision_options(group)
        add_decoding_options(group)
        parser.set_defaults(seed=42)
        return parser

    def __init__(self, opt, shared=None):
        self.id = "TransformerAgent"
        super().__init__(opt, shared)  # type: ignore[call-arg] # of ParlAI's Agent, as in share
        # ParlAI's own commands would show an error of ours as a traceback; this script, which hands over an agent that
        # is loaded already, reports them itself.
        self.reports_errors = shared is None or shared.get("reports_errors", False)
        self.dialog_agent: DialogAgent = shared["dialog_agent"] if shared else self._reporting(load_agent)(opt)
        self.words: WordPerplexity | None = shared["words"] if shared else None
        if "ppl" in opt["eval_type"] and self.words is None:
            self.words = self._reporting(word_perplexity)(self.dialog_agent, opt)
        self.reset()

    def _reporting(self, function: Callable) -> Callable:
        """Return the function so that in ParlAI's own commands a UserError ends them in one line, with status 2."""
        return report_user_errors(function) if self.reports_errors else function

    def share(self) -> dict:
        own = {"dialog_agent": self.dialog_agent, "words": self.words, "reports_errors": self.reports_errors}
        return super().share() | own  # type: ignore[misc] # that base comes with agent_class

    def reset(self) -> None:
        """Forget the dialog."""
        super().reset()  # type: ignore[misc] # as in share
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
        from parlai.core.message import Message

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
        scores = self.dialog_agent.rank_batch(questions)
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
        return [{"metrics": self.metrics_of(score)} for score in self.words.score(self.dialog_agent, questions)]

    def _generate(self, observations) -> list[dict]:
        contexts = [observation["dialog_context"] for observation in observations]
        return [{"text": text} for text in self.dialog_agent.reply_batch(contexts, chosen_seed(self.opt))]


def labels_of(observation: Mapping[str, Any]) -> Sequence[str]:
    """Return the replies that ParlAI counts as right, the one to learn first; none where they are hidden."""
    return observation.get("eval_labels") or observation.get("labels") or ()


def gold_of(observation: Mapping[str, Any]) -> str | None:
    return next(iter(labels_of(observation)), None)


def agent_class():
    """Return TransformerAgent, made when it is first asked for: only then ParlAI is needed."""
    if "TransformerAgent" not in globals():
        from parlai.core.agents import Agent
        from parlai.core.metrics import AverageMetric, SumMetric

        class Perplexity(AverageMetric):
            def value(self) -> float:
                return perplexity(self._numer, self._denom)

        def metrics_of(score) -> dict:
            parts = perplexity_summands(score)
            return {
                "ppl": Perplexity(parts["loss"], parts["n_words"]),
                "ppl_all_pieces": Perplexity(parts["loss_all_pieces"], parts["n_words"]),
                "token_ppl": Perplexity(parts["token_loss"], parts["n_tokens"]),
            } | {name: SumMetric(parts[name]) for name in ("n_words", "n_words_skipped", "n_tokens")}

        members = {"metrics_of": staticmethod(metrics_of), "__module__": __name__}
        globals()["TransformerAgent"] = type("TransformerAgent", (_TransformerAgent, Agent), members)
    return globals()["TransformerAgent"]


def __getattr__(name: str):
    if name == "TransformerAgent":
        return agent_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    main()
