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

import logging
import sys
from collections.abc import Sequence

from convai.dialog.agent import DialogAgent
from convai.dialog.loading import load_agent
from convai.evaluation.own_evaluation import OwnEvaluation
from convai.evaluation.parlai_task import ParlaiEvaluation
from convai.evaluation.report import Result, check_output, print_final_line, print_table, run, write_results
from convai.io.pretrained import locate_finetuned


@report_user_errors
def main() -> None:
    args, for_parlai = evaluation_options()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    check_output(args.output)
    evaluation = OwnEvaluation(args) if args.dataset_path else ParlaiEvaluation(args, for_parlai)
    agent = load_agent(locate_finetuned(args.model, args.model_checkpoint), args)
    results = evaluate(evaluation, agent, args.eval_type)
    refusals = [f"{eval_type}: {result.refusal}" for eval_type, result in results.items() if result.refusal]
    if len(refusals) < len(results):
        print_table(results, evaluation.name)
        if args.output:
            write_results(args, results, evaluation.name)
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
                agent.check_ranking(evaluation.rank_by)
            result = run(eval_type, *evaluation.start(eval_type, agent))
            results[eval_type] = result._replace(ranking=evaluation.ranking) if eval_type == "hits@1" else result
        except NoFigure as error:
            results[eval_type] = Result.refused(str(error))
            continue
        print_final_line(eval_type, results[eval_type])
        if results[eval_type].interrupted:
            break
    return results


def __getattr__(name: str):
    """Return TransformerAgent, for `-m convai_evaluation:TransformerAgent`: only that needs ParlAI."""
    if name == "TransformerAgent":
        from convai.evaluation.parlai_agent import TransformerAgent

        return TransformerAgent
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if __name__ == "__main__":
    main()
