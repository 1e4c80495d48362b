"""What readers of the published repository look for: the data set, and the input that the model reads.

Everything else about data is in convai/data: formats and files, the token store, candidate trees and their batches.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from convai.data.build import open_or_build
from convai.data.digests import KnownDigests
from convai.data.formats import PERSONACHAT_URL, find_source
from convai.data.held_out import SPLITS
from convai.data.inputs import positions
from convai.data.layouts import TokenNumbers, lay_out
from convai.data.mixture import AnySplit, Mixture
from convai.data.reading import AS_BY_DEFAULT
from convai.data.store import FORMAT_VERSION, DialogSplit, TokenIds
from convai.data.weighted import weighted_sources
from convai.io.pretrained import RELEASED_MODEL_URL, locate_finetuned
from convai.model.tokenization import DialogTokenizer
from convai.options import ReadingOptions
from convai.training.run_folder import default_run_folder

__all__ = ["HF_FINETUNED_MODEL", "PERSONACHAT_URL", "build_input_from_segments", "download_pretrained_model",
           "get_dataset", "make_logdir"]  # fmt: skip

HF_FINETUNED_MODEL = RELEASED_MODEL_URL
IGNORED_LABEL = -100  # what cross-entropy skips


def get_dataset(
    tokenizer: DialogTokenizer,
    dataset_path: str,
    dataset_cache: str,
    split_needed: bool = True,
    options: ReadingOptions = AS_BY_DEFAULT,
) -> dict[str, AnySplit]:
    """Return the tokenized "train" and "valid" splits of a data set.

    `dataset_path` is "" for PersonaChat (downloaded once), "example" for the embedded set, any file, pair, folder or
    URL that formats.find_source reads, or several of these (see weighted.py), which have a cache each. `dataset_cache`
    is the path prefix of the token cache, whose name ends in a hash of data, `options` of reading them, tokenizer and
    format version; "" keeps them in temporary files. Where no split is needed, a lone dialog will do, and "valid" may
    be empty. Raises UserError for data that cannot be read.
    """
    if several := weighted_sources(dataset_path):
        loaded = [tokenized(tokenizer, source.path, dataset_cache, split_needed, options) for source in several]
        return {name: Mixture(several, [splits[name] for splits in loaded]) for name in SPLITS}
    return {**tokenized(tokenizer, dataset_path, dataset_cache, split_needed, options)}


def tokenized(
    tokenizer: DialogTokenizer, dataset_path: str, dataset_cache: str, split_needed: bool, options: ReadingOptions
) -> dict[str, DialogSplit]:
    """Return the tokenized splits of a single source."""
    source = find_source(dataset_path, options)
    path = None
    if dataset_cache:
        digest = source.digest(KnownDigests(dataset_cache))
        facts = [digest, tokenizer.fingerprint, FORMAT_VERSION, *options.unlike_defaults()]
        key = hashlib.sha256(" ".join(map(str, facts)).encode()).hexdigest()
        path = Path(f"{dataset_cache}.{key[:16]}")
    splits = open_or_build(path, tokenizer, source.data(split_needed))
    if split_needed and not len(splits["valid"]):
        source.load()  # the cache was made where no split was needed; this says what is wrong with the data
    return splits


def build_input_from_segments(
    persona: Sequence[TokenIds],
    history: Sequence[TokenIds],
    reply: TokenIds,
    tokenizer: TokenNumbers,
    lm_labels: bool = False,
    with_eos: bool = True,
    history_start: int | None = None,
) -> dict[str, list[int] | int]:
    """Build one input sequence (Wolf et al., 2019, section 3): persona, history and reply as T token ids.

        <bos> persona... | <speaker2> user turn | <speaker1> own turn | ... | <speaker1> reply <eos>

    Returns `input_ids`, `token_type_ids` (<speaker1> for persona and own turns, <speaker2> for the user's) and
    `lm_labels`, all of length T, and `mc_token_ids`, the last position. `lm_labels` is -100 everywhere, except, where
    that argument is true, on the reply's tokens and <eos>. Given `history_start`, which is at least the persona's
    length with <bos>, there are `position_ids` too (see positions). `tokenizer` needs `convert_tokens_to_ids` only.
    """
    segments = lay_out(persona, history, reply, tokenizer, with_eos)
    input_ids = [token for segment in segments for token in segment.ids]
    labelled = [(token, lm_labels and segment.is_target) for segment in segments for token in segment.ids]
    inputs: dict[str, list[int] | int] = {
        "input_ids": input_ids,
        "token_type_ids": [segment.speaker for segment in segments for _ in segment.ids],
        "mc_token_ids": len(input_ids) - 1,
        "lm_labels": [token if is_label else IGNORED_LABEL for token, is_label in labelled],
    }
    if history_start is not None:
        inputs["position_ids"] = positions(1 + sum(map(len, persona)), len(input_ids), history_start)
    return inputs


def download_pretrained_model() -> str:
    """Return the folder of the released fine-tuned model, downloaded once; UserError where it cannot be had."""
    return str(locate_finetuned("openai-gpt"))


def make_logdir(model_name: str) -> str:
    """Return the name of a new run's folder: runs/<date>_<time>_<host>_<model>."""
    return str(default_run_folder(model_name))
