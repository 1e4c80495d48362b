"""Where a checkpoint's files are: a local folder, the URL of an archive, or a name on the Hugging Face hub."""

import os
from pathlib import Path

from convai.errors import UserError, argument
from convai.io.download import fetch_archive, is_url
from convai.io.files import read_json_object
from convai.io.gguf import GGUF_SUFFIX, unpack_gguf

SHORT_NAMES = {
    "openai-gpt": "openai-community/openai-gpt",
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
}
HEADS_FILE = "heads.safetensors"  # the ranking head of a decoder of transformers
ADAPTER_FILE = "adapter_model.safetensors"  # where only adapters were trained
RELEASED_MODEL_URL = (
    "https://s3.amazonaws.com/models.huggingface.co/transfer-learning-chatbot/gpt_personachat_cache.tar.gz"
)
VOCABULARY_FILES = ["vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "added_tokens.json"]
VOCABULARY_FILES += ["special_tokens.txt", "special_tokens_map.json", "tokenizer.model", "chat_template.jinja",
                     "generation_config.json"]  # fmt: skip


def locate_checkpoint(path_or_name: str | Path, option: str = "") -> Path:
    """Return the local folder of a checkpoint, downloading it first where needed.

    `path_or_name` is a folder, a .gguf file, a URL of a .tar.gz or .zip archive, a short name ("openai-gpt", "gpt2",
    "gpt2-medium", ...) or OWNER/NAME on the hub. Raises UserError when there is no such folder and none can be had; it
    names the `option` that the checkpoint was given by, model_checkpoint by default.
    """
    text, option = str(path_or_name), option or argument("model_checkpoint")
    if is_url(text):
        return fetch_archive(text, advice=f"Give {option} a local folder instead.")
    folder = Path(os.path.expanduser(text))
    if os.path.isdir(folder):
        return folder
    if folder.suffix == GGUF_SUFFIX and folder.is_file():
        return unpack_gguf(folder)
    if os.path.exists(folder):
        raise UserError(f"{text} is a file; give the folder that holds config.json and the weights.")
    return _download_from_hub(text, option)


def locate_finetuned(model: str, model_checkpoint: str = "") -> Path:
    """Return the local folder of a fine-tuned model: `model_checkpoint` where that is given, otherwise `model`.

    The `model` "openai-gpt" is the released fine-tuned one, downloaded once; others are as for `locate_checkpoint`.
    Raises UserError for the name of a model that is only pre-trained, or for a folder without config.json.
    """
    if model == "openai-gpt" and not model_checkpoint:
        advice = "To chat without a network, train a small model with `bash scripts/demo.sh`, or give the folder of a "
        return fetch_archive(
            RELEASED_MODEL_URL, advice=f"{advice}fine-tuned model with {argument('model_checkpoint')}."
        )
    name = model_checkpoint or model
    if name in {*SHORT_NAMES, *SHORT_NAMES.values()} and not os.path.isdir(name):
        raise UserError(f"{name} is only pre-trained and has not learned to hold a dialog: a fine-tuned model is "
                        f"needed. Train one with `python train.py --model {name}` and give its run folder with "
                        f"{argument('model_checkpoint')}.")  # fmt: skip
    folder = locate_checkpoint(name)
    read_config(folder)  # a folder that is no checkpoint at all is refused as that
    return folder


def recorded_max_history(folder: Path) -> int | None:
    """Return the max_history in the options of the run that wrote a checkpoint; None where they do not say.

    `folder` is RUN or RUN/checkpoints/update-N; the options are in RUN/arguments.json.
    """
    inside = folder.resolve().parent
    runs = [folder, inside.parent] if inside.name == "checkpoints" else [folder]
    for path in (run / "arguments.json" for run in runs):
        if path.is_file():
            value = read_json_object(path).get("max_history")
            # The file of another program may mean something else by that name.
            return value if type(value) is int and value >= 0 else None
    return None


def read_config(folder: Path) -> dict:
    """Return config.json of a checkpoint folder as a dict; UserError where it is missing or no JSON object."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} has no config.json: is it a checkpoint folder? It needs config.json, a "
                        "vocabulary (tokenizer.json, or vocab.json and merges.txt) and model.safetensors.")  # fmt: skip
    return read_json_object(path)


def _download_from_hub(name: str, option: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repository = SHORT_NAMES.get(name, name)
    advice = f"Give {option} a local folder with config.json, vocabulary and weights."
    small_files = ["config.json", *VOCABULARY_FILES]
    try:
        for name_of_weights in ("model.safetensors", "pytorch_model.bin"):
            stem, _, kind = name_of_weights.partition(".")
            parts = [f"{name_of_weights}.index.json", f"{stem}-*-of-*.{kind}"]
            folder = Path(snapshot_download(repository, allow_patterns=[*small_files, name_of_weights, *parts]))
            if any((folder / file).exists() for file in (name_of_weights, parts[0])):
                break
        return folder
    except HFValidationError as error:
        raise UserError(f"{name}: there is no such folder, and it is not a name on the hub. {advice}") from error
    except LocalEntryNotFoundError as error:
        raise UserError(f"{name}: there is no such folder, and the hub cannot be reached for {repository}, which is "
                        f"not in its cache either. {advice}") from error  # fmt: skip
    except Exception as error:  # of the hub, of the disk, and of an HTTP library that changes between versions
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{name}: there is no such folder, and {repository} cannot be had from the hub ({reason}). "
                        f"{advice}") from error  # fmt: skip
