"""Look into data before training on it, or convert it.

python data.py example                                     what the embedded example set holds
python data.py dialogs.json --model gpt2 --plot lengths.png
python data.py dialogs.json --to messages dialogs.jsonl    chat messages; also personachat and parlai
"""

import json
import logging
import re
import sys
from pathlib import Path

from convai.data.formats import find_source
from convai.data.weighted import weighted_sources
from convai.data.writing import check_target, convert
from convai.errors import UserError, report_user_errors
from convai.io.pretrained import locate_checkpoint, recorded_max_history
from convai.options import DEFAULT_MAX_HISTORY, InspectionOptions, inspection_parser

logger = logging.getLogger("data")


@report_user_errors
def main() -> None:
    args = inspection_parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for chatty in ("httpx", "huggingface_hub", "torch", "transformers"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # whatever is in the data can be written
    try:
        if any(source.weight != 1 for source in weighted_sources(args.dataset_path)):
            logger.warning("the weights of sources are for training: here every dialog counts once")
        if args.to:
            convert_data(args, *args.to)
        else:
            inspect_data(args)
    except UserError as error:  # which speaks of the option that the data are elsewhere
        raise UserError(re.sub(r"--dataset_path:? ", "", str(error))) from error


def convert_data(args: InspectionOptions, form: str, file: str) -> None:
    """Write the dialogs in another form, and say how they are read from there."""
    check_target(form, Path(file))
    written = convert(find_source(args.dataset_path, args.reading()).stream(), form, Path(file))
    for path, n_dialogs, n_replies in written:
        print(f"{path}: {n_dialogs:,} dialogs, {n_replies:,} replies")
    files = [str(path) for path, *_ in written if not path.name.startswith("test_")]
    print(f"To read them: --dataset_path {','.join(files or [str(written[0].path)])}")


def inspect_data(args: InspectionOptions) -> None:
    """Show what a reader finds."""
    source = find_source(args.dataset_path, args.reading())
    # These imports take seconds, so they come after all that can be refused without them.
    from convai.data.inspection import Inspection
    from convai.data.inspection_report import Report, console_of
    from convai.data.length_plot import check_plot, plot_lengths

    if args.plot:
        check_plot(Path(args.plot))
    measure = choose_measure(args)
    inspection = Inspection(measure).add(source.stream())
    if inspection.first is None:
        raise UserError(f"{source.place_of('train')}: there are no dialogs; give other data.")
    if args.plot:
        plot_lengths(inspection, Path(args.plot))
        logger.info("the lengths are drawn in %s", args.plot)
    if args.json:
        print(json.dumps({"data": args.dataset_path} | inspection.facts()))
    else:
        Report(console_of(sys.stdout), inspection).write()


def choose_measure(args: InspectionOptions):
    """Return what counts tokens; words where no model is wanted, or the one that nobody asked for cannot be had."""
    from convai.data.measures import WordMeasure

    if args.model_checkpoint:
        try:
            return token_measure(args)
        except UserError as error:
            if args.model_checkpoint != InspectionOptions.model_checkpoint:
                raise
            logger.warning("words are counted instead of tokens, as there is no tokenizer: %s", error)
    return WordMeasure(DEFAULT_MAX_HISTORY if args.max_history is None else args.max_history)


def token_measure(args: InspectionOptions):
    """Return what counts a model's tokens; its weights are not needed."""
    from convai.data.inputs import InputBuilder
    from convai.data.measures import TokenMeasure
    from convai.model.loading import load_tokenizer, read_dialog_config

    folder = locate_checkpoint(args.model_checkpoint, needs_weights=False)
    tokenizer = load_tokenizer(folder, args.tokenization, args.dialog_token_ids, args.layout)
    config = read_dialog_config(folder, tokenizer.layout)
    given = (args.max_history, config.max_history, recorded_max_history(folder), DEFAULT_MAX_HISTORY)
    max_history = next(number for number in given if number is not None)
    return TokenMeasure(InputBuilder(tokenizer, config.n_positions, config.history_start), max_history)


if __name__ == "__main__":
    main()
