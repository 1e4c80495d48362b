"""Make the folder that a model is trained from scratch in: config.json and a vocabulary learned from your data.

python new_model.py models/tiny --dataset_path example --n_layer 4 --n_embd 128 --n_head 4
python train.py --from_scratch --model models/tiny --dataset_path example
"""

from pathlib import Path

from convai.data.formats import find_source
from convai.errors import UserError, report_user_errors
from convai.io.files import write_json
from convai.io.pretrained import locate_checkpoint
from convai.model.tokenization import load_gpt_tokenizer, train_vocabulary
from convai.options import NewModelOptions, new_model_parser
from convai.training.run_folder import what_would_be_lost


@report_user_errors
def main() -> None:
    args = new_model_parser().parse_args()
    if args.n_embd % args.n_head:
        raise UserError(f"--n_embd {args.n_embd} must be a multiple of --n_head {args.n_head}.")
    folder = Path(args.folder)
    if found := what_would_be_lost(folder):
        raise UserError(f"{folder} holds a run or a model already ({found}); give another folder.")
    if args.vocabulary:
        tokenizer = load_gpt_tokenizer(locate_checkpoint(args.vocabulary, "--vocabulary"))
        if tokenizer.family != args.family:
            raise UserError(
                f"--vocabulary {args.vocabulary} is one of {tokenizer.family}; give --family {tokenizer.family}."
            )
    else:
        dialogs = find_source(args.dataset_path, args.reading()).load(split_needed=False)["train"]
        tokenizer = train_vocabulary(utterances(dialogs), args.family, args.vocab_size)
    try:
        tokenizer.save(folder)
        write_json(folder / "config.json", model_config(args, len(tokenizer)))
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); give another folder.") from error
    print(f"{folder}: {args.family}, {args.n_layer} layers of width {args.n_embd}, {len(tokenizer)} tokens")


def utterances(dialogs: list[dict]):
    """Yield every persona sentence, turn and gold reply of the dialogs; distractors are others' gold replies."""
    for dialog in dialogs:
        yield from dialog["personality"]
        last = dialog["utterances"][-1]
        yield from last["history"]
        yield last["candidates"][-1]


def model_config(args: NewModelOptions, vocab_size: int) -> dict:
    """Return config.json's content for a model of the sizes asked for."""
    activation = {"afn": "gelu"} if args.family == "openai-gpt" else {"activation_function": "gelu_new"}
    return {
        "model_type": args.family,
        "vocab_size": vocab_size,
        "n_positions": args.n_positions,
        "n_embd": args.n_embd,
        "n_layer": args.n_layer,
        "n_head": args.n_head,
        "embd_pdrop": args.dropout,
        "resid_pdrop": args.dropout,
        "attn_pdrop": args.dropout,
        "summary_first_dropout": args.dropout,
        "initializer_range": args.initializer_range,
        **activation,
    }


if __name__ == "__main__":
    main()
