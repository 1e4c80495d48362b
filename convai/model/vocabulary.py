"""What a checkpoint's files say about its tokens: vocabulary, merges, ids of the dialog tokens, how text is split.

Checkpoints come with one file or several (vocab.json and merges.txt, or tokenizer.json; added_tokens.json,
tokenizer_config.json, special_tokens.txt), written by programs of many years. What they say is taken together; where
they contradict each other, or ask for a way of splitting text that is not ours, they are refused.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

from convai.errors import UserError
from convai.io.files import read_json_object, read_text

Json = dict[str, Any]

SPECIAL_TOKENS = ("<bos>", "<eos>", "<speaker1>", "<speaker2>", "<pad>")
# Classes of transformers whose text goes through the pipelines of ours; the last ones follow their tokenizer.json.
_KNOWN_CLASSES = {"GPT2Tokenizer", "OpenAIGPTTokenizer", "PreTrainedTokenizer", "TokenizersBackend"}
_BYTE_LEVEL_CHARACTERS = frozenset(pre_tokenizers.ByteLevel.alphabet())


@dataclass
class Vocabulary:
    """The content of a checkpoint's vocabulary files, checked."""

    vocab: dict[str, int]  # all tokens but dialog tokens that were added to it
    merges: list[tuple[str, str]]
    dialog_ids: dict[str, int]  # of the dialog tokens that are recorded: all, some, or none
    is_byte_level: bool  # GPT-2's kind of vocabulary rather than GPT's
    pre_tokenization: str | None  # "spacy" or "bert", where a GPT checkpoint records it
    add_prefix_space: bool | None  # where a byte-level checkpoint records it

    @property
    def is_fine_tuned(self) -> bool:
        """Whether the checkpoint has learned dialogs: only then it has all five tokens."""
        return len(self.dialog_ids) == len(SPECIAL_TOKENS)


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read and check a checkpoint folder's vocabulary files; UserError where they are missing, malformed, contradict
    each other, or describe a tokenizer that is neither GPT's nor GPT-2's."""
    config = _read_optional(folder / "tokenizer_config.json")
    pipeline = _read_optional(folder / "tokenizer.json")
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocab = read_json_object(folder / "vocab.json")
        lines = read_text(folder / "merges.txt").split("\n")
        pairs = [line.split() for line in lines if line and not line.startswith("#version")]
    elif pipeline:
        vocab, pairs = _bpe_of(pipeline, folder / "tokenizer.json")
    else:
        raise UserError(f"{folder} has no vocabulary: vocab.json and merges.txt (or tokenizer.json) are needed.")
    _check_ids(folder, vocab)
    _check_merges(folder, vocab, pairs)
    merges = [(first, second) for first, second in pairs]
    # Only GPT's words end in a mark; byte-level vocabularies mark where words begin.
    is_byte_level = not any(token.endswith("</w>") for token in vocab)
    _check_pipeline(folder, pipeline, config, merges, is_byte_level)

    records = _token_records(folder, vocab, pipeline, config)
    dialog_ids = _agreed_ids(folder, records)
    # Other added tokens have embedding rows too, so the dialog tokens must not take their ids.
    for record in records.values():
        vocab = {t: i for t, i in record.items() if t not in SPECIAL_TOKENS} | vocab
    _check_ids(folder, vocab)
    if not _are_ids((vocab | dialog_ids).values()):
        raise UserError(f"{folder}: added_tokens.json must give each dialog token a whole number of its own.")
    pre_tokenizer = (pipeline.get("pre_tokenizer") or {}) if is_byte_level else {}
    return Vocabulary(
        vocab,
        merges,
        dialog_ids,
        is_byte_level,
        pre_tokenization=config.get("pre_tokenization"),
        # transformers lets the first decide, too, where both say something.
        add_prefix_space=config.get("add_prefix_space", _only_part(pre_tokenizer).get("add_prefix_space")),
    )


def _bpe_of(pipeline: Json, path: Path) -> tuple[dict[str, int], list[list[str]]]:
    """Return vocabulary and merges out of a file of the tokenizers library."""
    model = pipeline.get("model")
    vocab, merges = (model.get("vocab"), model.get("merges")) if isinstance(model, dict) else (None, None)
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise UserError(f"{path} holds no BPE vocabulary; GPT and GPT-2 need one.")
    return vocab, [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]


def _token_records(folder: Path, vocab: dict[str, int], pipeline: Json, config: Json) -> dict[str, dict[str, int]]:
    """Return the ids of tokens by the file that records them, the most trusted first."""
    try:
        by_pipeline = {token["content"]: token["id"] for token in pipeline.get("added_tokens") or []}
        by_config = {
            token["content"]: int(token_id) for token_id, token in (config.get("added_tokens_decoder") or {}).items()
        }
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{folder}: the added tokens in tokenizer.json or tokenizer_config.json are malformed; each "
                        "needs its content and id.") from error  # fmt: skip
    records = {
        "added_tokens.json": _read_optional(folder / "added_tokens.json"),
        "tokenizer.json": by_pipeline,
        "tokenizer_config.json": by_config,
        "vocab.json": {token: i for token, i in vocab.items() if token in SPECIAL_TOKENS},
    }
    if (folder / "special_tokens.txt").is_file():
        # pytorch_pretrained_bert lists them in the order of their ids, which follow the vocabulary's.
        tokens = read_text(folder / "special_tokens.txt").split()
        records["special_tokens.txt"] = {token: max(vocab.values()) + 1 + n for n, token in enumerate(tokens)}
    return records


def _agreed_ids(folder: Path, records: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """Return the dialog tokens' ids as recorded; UserError where two records differ."""
    agreed: dict[str, tuple[int, str]] = {}
    for file, record in records.items():
        for token in SPECIAL_TOKENS:
            if token not in record:
                continue
            known, where = agreed.setdefault(token, (record[token], file))
            if known != record[token]:
                raise UserError(f"{folder}: {token} is {known} by {where}, but {record[token]} by {file}; remove the "
                                "file that is not of these weights.")  # fmt: skip
    return {token: agreed[token][0] for token in SPECIAL_TOKENS if token in agreed}


def _check_ids(folder: Path, vocab: Mapping[str, Any]) -> None:
    if not vocab or not _are_ids(vocab.values()):
        raise UserError(f"the vocabulary in {folder} is malformed: each token needs a whole number of its own.")


def _check_merges(folder: Path, vocab: Mapping[str, int], merges: Sequence[Sequence[str]]) -> None:
    """Raise UserError where merges are not pairs of tokens that make a token."""
    for number, pair in enumerate(merges, start=1):
        if len(pair) != 2 or not vocab.keys() >= {*pair, "".join(pair)}:
            raise UserError(f"{folder}: merge {number} ({' '.join(pair)!r}) does not join two tokens of the vocabulary "
                            "into a third; vocabulary and merges must be of one model.")  # fmt: skip


def _check_pipeline(
    folder: Path, pipeline: Json, config: Json, merges: list[tuple[str, str]], is_byte_level: bool
) -> None:
    """Raise UserError where text becomes tokens in another way than ours: the ids would silently be others."""
    problems = _foreign_parts(pipeline, is_byte_level) if pipeline else []
    name = str(config.get("tokenizer_class") or "GPT2Tokenizer").removesuffix("Fast")
    if not pipeline and name not in _KNOWN_CLASSES:
        problems.append(f"class {name}")
    foreign = next((part for pair in merges for part in pair if not _BYTE_LEVEL_CHARACTERS.issuperset(part)), None)
    if is_byte_level and foreign is not None and not problems:
        problems.append(f"merges of characters rather than bytes, such as {foreign!r}")
    if problems:
        kind = "GPT-2's byte-level one" if is_byte_level else "GPT's"
        raise UserError(f"{folder}: its tokenizer has {' and '.join(problems)}, but only {kind} is implemented; use "
                        "another checkpoint.")  # fmt: skip


def _foreign_parts(pipeline: Json, is_byte_level: bool) -> list[str]:
    """Return what a tokenizer.json has that GPT-2's (or GPT's) does not, in words."""
    known = {
        "pre_tokenizer": ["ByteLevel"] if is_byte_level else ["BertPreTokenizer"],
        "normalizer": [] if is_byte_level else ["BertNormalizer"],
        "decoder": ["ByteLevel"] if is_byte_level else ["BPEDecoder"],
    }
    foreign = []
    for part, names in known.items():
        kinds = _kinds(pipeline.get(part))
        # A missing decoder only joins tokens otherwise, which is not what ours are joined by.
        required = part == "pre_tokenizer" and is_byte_level
        if (kinds or required) and kinds != names:
            foreign.append(f"the {part.replace('_', '-')} {' + '.join(kinds) or 'none'}")
    settings = [_only_part(pipeline.get("pre_tokenizer") or {})]
    if is_byte_level and settings[0].get("use_regex") is False:
        foreign.append("a pre-tokenizer that does not part words")
    model = pipeline.get("model")
    model = model if isinstance(model, dict) else {}
    if model.get("type", "BPE") != "BPE":
        foreign.append(f"the model {model['type']}")
    for setting in ("dropout", "continuing_subword_prefix", "byte_fallback", "ignore_merges"):
        if model.get(setting):
            foreign.append(f"the setting {setting}")
    return foreign


def _kinds(part: Json | None) -> list[str]:
    """Return the types of a part of tokenizer.json, those of a sequence one by one."""
    return [str(each.get("type")) for each in _parts(part)]


def _only_part(part: Json) -> Json:
    """Return a part of tokenizer.json; the first one of a sequence."""
    return next(iter(_parts(part)), {})


def _parts(part: Json | None) -> list[Json]:
    if not isinstance(part, dict) or not part:
        return []
    inner = next((part[key] for key in ("pretokenizers", "normalizers", "decoders") if key in part), None)
    return [each for one in inner for each in _parts(one)] if isinstance(inner, list) else [part]


def _are_ids(values: Collection[Any]) -> bool:
    return all(type(value) is int and value >= 0 for value in values) and len(set(values)) == len(values)


def _read_optional(path: Path) -> Json:
    return read_json_object(path) if path.is_file() else {}
