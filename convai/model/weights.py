"""A checkpoint's tensors, whichever program wrote them, under the names of our model.

Files: model.safetensors or pytorch_model.bin, each also in parts with an index, or the published script's
checkpoint_mymodel_N.pth. Names: transformers' and pytorch-transformers', pytorch_pretrained_bert's of 2019 (whose
ranking head ends in `linear`, whose output matrix in `decoder`), OpenAI's own (`g`, `b`, `w`), and any of them behind
the prefix of a wrapper such as DistributedDataParallel. The output matrix is the embedding: either name may be stored.
"""

import json
import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from convai.errors import UserError
from convai.io.files import read_json_object
from convai.model.config import ModelConfig

Reader = Callable[[Path], dict[str, Tensor]]

logger = logging.getLogger(__name__)

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"
EMBEDDING = "transformer.tokens_embed.weight"
OUTPUT_MATRIX = "lm_head.weight"
RANKING_HEAD = "multiple_choice_head."
# Each family's published names of the two embeddings; the other names are the same in both.
EMBEDDING_NAMES = {
    "openai-gpt": {},
    "gpt2": {"transformer.wte.": "transformer.tokens_embed.", "transformer.wpe.": "transformer.positions_embed."},
}
_HEADS = (RANKING_HEAD, "lm_head.")
_OLD_HEADS = {"multiple_choice_head.linear.": "multiple_choice_head.summary.", "lm_head.decoder.": "lm_head."}
_WRAPPERS = re.compile(r"^(?:(?:module|model|mymodel|_forward_module)\.)+")
_WRAPPERS_WITHIN = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OLD_ENDS = {".g": ".weight", ".gamma": ".weight", ".w": ".weight", ".b": ".bias", ".beta": ".bias"}
# Constants that older versions saved with the weights: causal masks and position numbers.
_CONSTANTS = re.compile(r"\.attn\.(?:bias|masked_bias)$|\.?position_ids$")


def read_weights(folder: Path, config: ModelConfig, advice: str = "give another folder") -> dict[str, Tensor]:
    """Return a checkpoint's tensors under our names, the embedding once; those of no use are named in the log.

    Raises UserError where there are none (`advice` says what to do then), or they are damaged, contradict each other,
    or have an output matrix of its own.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in _read_files(folder, advice).items():
        if _CONSTANTS.search(name):
            continue
        ours = _our_name(name, config.family)
        if ours in weights and not _is_equal(weights[ours], tensor):
            raise UserError(f"{folder}: two different tensors are stored as {ours}; which is right cannot be told.")
        weights[ours] = tensor
    if not any(name.startswith("transformer.") for name in weights):  # a base model without heads
        weights = {name if name.startswith(_HEADS) else f"transformer.{name}": t for name, t in weights.items()}
        weights = rename(weights, EMBEDDING_NAMES[config.family])
    return _tie(folder, weights, config)


def rename(weights: dict[str, Tensor], prefixes: dict[str, str]) -> dict[str, Tensor]:
    """Return `weights` with the first matching prefix of each name replaced."""
    return {_replace_prefix(name, prefixes): tensor for name, tensor in weights.items()}


def _our_name(name: str, family: str) -> str:
    name = _WRAPPERS.sub("", _WRAPPERS_WITHIN.sub("", name))
    end = next((end for end in _OLD_ENDS if name.endswith(end)), None)
    name = name[: -len(end)] + _OLD_ENDS[end] if end else name
    return _replace_prefix(name, _OLD_HEADS | EMBEDDING_NAMES[family])


def _replace_prefix(name: str, prefixes: dict[str, str]) -> str:
    old = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
    return prefixes.get(old, "") + name[len(old) :]


def _tie(folder: Path, weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Return the weights with the embedding under its own name alone."""
    output, embedding = weights.pop(OUTPUT_MATRIX, None), weights.get(EMBEDDING)
    found = [matrix for matrix in (embedding, output) if matrix is not None]
    if not found:
        raise UserError(f"{folder}: the weights hold no token embedding; they are not those of a {config.family}.")
    is_tied = config.extra.get("tie_word_embeddings", True)
    if not is_tied and (embedding is None or output is None):
        missing = EMBEDDING if embedding is None else OUTPUT_MATRIX
        raise UserError(f"{folder}: by config.json's tie_word_embeddings the output matrix is not the embedding, but "
                        f"the weights hold no {missing}; they are not complete.")  # fmt: skip
    if embedding is not None and output is not None and not _is_equal(embedding, output):
        raise UserError(f"{folder}: its output matrix ({OUTPUT_MATRIX}) is not its embedding; a model whose two "
                        "matrices differ is not supported.")  # fmt: skip
    return weights | {EMBEDDING: found[0]}


def _is_equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _read_files(folder: Path, advice: str) -> dict[str, Tensor]:
    for name, read in ((SAFETENSORS, load_file), (PICKLE, _unpickle)):
        if (folder / name).is_file():
            return _read(folder / name, read)
        if (index := folder / f"{name}.index.json").is_file():
            return _read_parts(index, read)
    if saved := sorted(folder.glob("checkpoint_mymodel_*.pth"), key=_number_of):
        logger.info("the weights are those of %s", saved[-1])
        return _read(saved[-1], _unpickle)
    raise UserError(f"{folder} holds no weights ({SAFETENSORS} or {PICKLE}); {advice}.")


def _number_of(path: Path) -> int:
    return int((re.findall(r"\d+", path.stem) or ["0"])[-1])


def _read_parts(index: Path, read: Reader) -> dict[str, Tensor]:
    """Return the tensors of all files that an index names; UserError where one is missing or incomplete."""
    files = read_json_object(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise UserError(f"{index} has no weight_map from names to files; fetch it again.")
    weights: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        path = index.parent / file
        if Path(file).name != file or not path.is_file():
            raise UserError(f"{index} names {file}, which is not in that folder; fetch all files of the weights.")
        weights |= _read(path, read)
    if missing := sorted(files.keys() - weights.keys()):
        raise UserError(
            f"{index} names {len(missing)} tensors that its files lack ({missing[0]}, ...); fetch them again."
        )
    return weights


def _read(path: Path, read: Reader) -> dict[str, Tensor]:
    try:
        weights = read(path)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than weights, which could run code; it is not opened.") from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path} is damaged ({reason}); fetch or train it again.") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path} is no plain dictionary of weights.")
    return weights


def _unpickle(path: Path) -> dict[str, Tensor]:
    weights = torch.load(path, map_location="cpu", weights_only=True)
    # Some trainers put the weights beside other things.
    inner = [weights[key] for key in ("mymodel", "model", "state_dict") if isinstance(weights, dict) and key in weights]
    return inner[0] if len(inner) == 1 and isinstance(inner[0], dict) else weights


def describe_names(names: list[str]) -> str:
    """Return a list of names, the first few, as text."""
    return json.dumps(names[:3])[1:-1] + (f" and {len(names) - 3} more" if len(names) > 3 else "")
