"""ConvAI2 by ParlAI's worlds and teachers: finding ParlAI, its options, its tasks as dialogs of ours.

Nothing here imports ParlAI before it is used.
"""

import copy
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convai.data.conversation import Dialog
from convai.data.parlai_text import take_persona
from convai.dialog.agent import DialogAgent
from convai.errors import NoFigure, UserError
from convai.evaluation.metrics import OFFICIAL_N_ENTRIES, WordPerplexity, count_words, dictionary_texts
from convai.evaluation.report import FIGURES, Ranking
from convai.options import EvaluationOptions

logger = logging.getLogger(__name__)

OFFICIAL_TASK = "convai2:self"
REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements-parlai.txt"
INSTALL_PARLAI = f"pip install --no-deps -r {REQUIREMENTS if REQUIREMENTS.is_file() else REQUIREMENTS.name}"
WITHOUT_PARLAI = "or evaluate without ParlAI: --dataset_path FILE"
CONVAI2_URL = "http://parl.ai/downloads/convai2/convai2_fix_723.tgz"


class ParlaiEvaluation:
    """The metrics by ParlAI's worlds and teachers; perplexity, which ParlAI no longer has, is the agent's own."""

    def __init__(self, args: EvaluationOptions, for_parlai: Sequence[str]):
        import_parlai()
        self.opt = parlai_options(args, for_parlai)
        self.name = self.opt["task"]
        self.rank_by = args.rank_by
        self.ranking = Ranking(args.rank_by, "given")  # how many an example has is the task's to know
        self.words: WordPerplexity | None = None

    def start(self, eval_type: str, agent: DialogAgent) -> tuple[int, Iterator[dict[str, float]]]:
        """Return the number of examples and an iterator that scores them, yielding the figures so far."""
        from parlai.core.worlds import create_task

        opt = copy.deepcopy(self.opt)
        opt["eval_type"] = [eval_type]
        if eval_type == "ppl" and self.words is None:
            self.words = word_perplexity(agent, opt)
        from convai.evaluation.parlai_agent import TransformerAgent

        parlai_agent = TransformerAgent(opt, {"dialog_agent": agent, "words": self.words})
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


def parlai_options(args: EvaluationOptions, for_parlai: Sequence[str]) -> dict[str, Any]:
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
