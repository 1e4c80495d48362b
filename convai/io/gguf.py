"""Checkpoints in one .gguf file, unpacked once into the cache as a folder that everything else reads.

GGUF is llama.cpp's format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md): quantized weights, vocabulary
and chat template together. transformers reads it with the optional package gguf; the weights come out in fp32, four
bytes each, and all that was lost by quantizing stays lost.
"""

import hashlib
import logging
from importlib.metadata import version
from pathlib import Path

from convai.errors import UserError
from convai.io.download import cache_folder, locked
from convai.io.files import atomic_write, read_json_object, write_json

GGUF_SUFFIX = ".gguf"

logger = logging.getLogger(__name__)


def unpack_gguf(path: Path) -> Path:
    """Return the folder with the model and tokenizer of a .gguf file; UserError where it cannot be read.

    The folder's name is a hash of the file's content, so it is unpacked once, wherever it lies.
    """
    try:
        import gguf  # noqa: F401 - what transformers reads it with
    except ImportError as error:
        raise UserError(
            f"{path}: .gguf files need the package gguf; `pip install -r requirements-gguf.txt`."
        ) from error
    with open(path, "rb") as file:
        content = f"{hashlib.file_digest(file, 'sha256').hexdigest()} {version('transformers')}"
    target = cache_folder() / f"gguf-{hashlib.sha256(content.encode()).hexdigest()[:16]}.unpacked"
    if not target.is_dir():
        with locked(target):
            if not target.is_dir():  # another process may have unpacked it while we waited
                logger.info("unpacking %s into %s", path, target)
                _unpack(path, target)
    return target


def _unpack(path: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(path.resolve().parent), "gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    except Exception as error:  # of gguf and transformers, for files damaged or of an architecture that they lack
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise UserError(f"{path} cannot be read ({reason}); fetch it again, or use another checkpoint.") from error
    # As a model that was quantized it cannot be saved; as one of plain numbers it can.
    settings = loaded.config
    if hasattr(settings, "quantization_config"):
        del settings.quantization_config
    plain = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    with atomic_write(target, durable=True) as temporary:
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        _drop_added_tokens(temporary / "tokenizer.json", settings.get_text_config(decoder=True).vocab_size)


def _drop_added_tokens(path: Path, n_rows: int) -> None:
    """Take tokens out of a tokenizer.json that the model has no rows for: transformers adds one of its own."""
    content = read_json_object(path)
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < n_rows]
    write_json(path, content, indent=None)
