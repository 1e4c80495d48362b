"""Text to token ids and back for OpenAI GPT (ftfy, spaCy, BPE) and GPT-2 (byte-level BPE), with the dialog tokens.

GPT was pre-trained on text that had passed ftfy, a few replacements and spaCy's English tokenizer, in lower case
(Radford et al., 2018, section 4.1); today's tokenizer classes split words differently and so feed it ids that it never
saw in those places. `GptTokenizer` gives the ids of the original pipeline. GPT-2 always gets its leading space.
"""

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache, cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from errors import UserError
from pretrained import locate_checkpoint, read_json_object, read_text

SPECIAL_TOKENS = ("<bos>", "<eos>", "<speaker1>", "<speaker2>", "<pad>")
UNKNOWN_TOKEN = "<unk>"
PRE_TOKENIZATIONS = ("spacy", "bert")

# Decoding undoes the spaces that word splitting put before punctuation and contractions: "do n't"; by bert "don ' t".
_SPACE_BEFORE_PUNCTUATION = re.compile(r" (?=[.?!,])")
_SPLIT_CONTRACTION = re.compile(r" (?:n't|' ?(?:s|m|re|ve|ll|d|t))\b")


class DialogTokenizer(ABC):
    """A vocabulary with the five dialog tokens; `encode` and `decode` treat their names in text as plain text.

    `special_ids` maps each of SPECIAL_TOKENS to its id; where it is None the tokens get the ids after the last entry.
    """

    family: str  # as in config.json's model_type

    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]], special_ids: dict[str, int] | None = None):
        self.vocab = vocab
        self.merges = merges
        first_free = self.n_vocab
        self.special_ids = special_ids or {token: first_free + i for i, token in enumerate(SPECIAL_TOKENS)}
        self.bos_id, self.eos_id, self.speaker1_id, self.speaker2_id, self.pad_id = self.convert_tokens_to_ids(
            SPECIAL_TOKENS
        )

    @property
    def n_vocab(self) -> int:
        """The number of embedding rows that the vocabulary needs without the dialog tokens added to it."""
        return max(self.vocab.values(), default=-1) + 1

    def __len__(self) -> int:
        """The number of embedding rows that all ids need."""
        return max(self.n_vocab, *(token_id + 1 for token_id in self.special_ids.values()))

    @cached_property
    def tokens(self) -> list[str | None]:
        """Token strings by id; None for an id that has no token."""
        tokens: list[str | None] = [None] * len(self)
        for token, token_id in (self.vocab | self.special_ids).items():
            tokens[token_id] = token
        return tokens

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """Return the id of each token string (of one token for a str); KeyError for a string that is no token."""
        if isinstance(tokens, str):
            return self.special_ids[tokens] if tokens in self.special_ids else self.vocab[tokens]
        return [self.convert_tokens_to_ids(token) for token in tokens]

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the token ids of one utterance, without special tokens; surrounding white space does not count."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids; special tokens are left out."""

    @abstractmethod
    def lost_share(self, text: str, ids: Sequence[int]) -> float:
        """Return the share, 0 to 1, of `text` that has no token in `ids`, which are what `encode` made of it."""

    @abstractmethod
    def _description(self) -> dict:
        """What besides vocabulary and merges decides about the ids."""

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides which ids a text gets: two tokenizers with the same one can share a cache."""
        content = [sorted(self.vocab.items()), self.merges, sorted(self.special_ids.items()), self._description()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write vocab.json, merges.txt and the special tokens in the Hugging Face layout."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        roles = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
        roles["additional_special_tokens"] = ["<speaker1>", "<speaker2>"]
        if UNKNOWN_TOKEN in self.vocab:
            roles["unk_token"] = UNKNOWN_TOKEN
        _write_json(folder / "vocab.json", self.vocab)
        lines = ["#version: 0.2", *(" ".join(pair) for pair in self.merges)]
        (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        _write_json(folder / "added_tokens.json", {t: i for t, i in self.special_ids.items() if t not in self.vocab})
        _write_json(folder / "special_tokens_map.json", roles)
        _write_json(folder / "tokenizer_config.json", roles | self._description())


class GptTokenizer(DialogTokenizer):
    """OpenAI GPT: lower-cased words by `pre_tokenization` ("spacy" with ftfy, or "bert"), then BPE within each word."""

    family = "openai-gpt"

    def __init__(self, vocab, merges, special_ids=None, pre_tokenization: str = "spacy"):
        super().__init__(vocab, merges, special_ids)
        self.pre_tokenization = pre_tokenization
        unknown = UNKNOWN_TOKEN if UNKNOWN_TOKEN in vocab else None
        self._bpe = models.BPE(vocab, merges, unk_token=unknown, end_of_word_suffix="</w>")
        self._split = word_splitter(pre_tokenization)
        self._ids_of_word: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in self._split(text):
            word_ids = self._ids_of_word.get(word)
            if word_ids is None:
                word_ids = self._ids_of_word[word] = [token.id for token in self._bpe.tokenize(word)]
            ids += word_ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        special = set(self.special_ids.values())
        pieces = [self.tokens[i] or UNKNOWN_TOKEN for i in ids if i not in special]
        return join_punctuation("".join(pieces).replace("</w>", " ").strip())

    def lost_share(self, text: str, ids: Sequence[int]) -> float:
        if UNKNOWN_TOKEN in self.vocab:  # each character without a token is one of these
            return ids.count(self.vocab[UNKNOWN_TOKEN]) / max(1, len(ids))
        pieces = [piece for word in self._split(text) for piece in (*word[:-1], f"{word[-1:]}</w>")]
        return sum(piece not in self.vocab for piece in pieces) / max(1, len(pieces))

    def _description(self) -> dict:
        description = {"tokenizer_class": "OpenAIGPTTokenizer", "pre_tokenization": self.pre_tokenization}
        if self.pre_tokenization == "spacy":  # other versions of these may split words otherwise
            description |= {"spacy_version": version("spacy"), "ftfy_version": version("ftfy")}
        return description


class Gpt2Tokenizer(DialogTokenizer):
    """GPT-2: byte-level BPE, every utterance with a leading space, so that its first word is spelled as within text."""

    family = "gpt2"

    def __init__(self, vocab, merges, special_ids=None):
        super().__init__(vocab, merges, special_ids)
        self._tokenizer = Tokenizer(models.BPE(vocab, merges))
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        self._tokenizer.decoder = decoders.ByteLevel()

    def encode(self, text: str) -> list[int]:
        text = join_surrogates(text).strip()
        return self._tokenizer.encode(text, add_special_tokens=False).ids if text else []

    def decode(self, ids: Iterable[int]) -> str:
        special = set(self.special_ids.values())
        text = self._tokenizer.decode([i for i in ids if i not in special], skip_special_tokens=False)
        return join_punctuation(text.strip())

    @cached_property
    def _has_all_bytes(self) -> bool:
        return self.vocab.keys() >= set(pre_tokenizers.ByteLevel.alphabet())

    def lost_share(self, text: str, ids: Sequence[int]) -> float:
        if self._has_all_bytes:
            return 0.0
        by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
        pieces = [byte for word, _ in by_bytes.pre_tokenize_str(join_surrogates(text).strip()) for byte in word]
        return sum(byte not in self.vocab for byte in pieces) / max(1, len(pieces))

    def _description(self) -> dict:
        return {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}


def load_tokenizer(path_or_name: str | Path, pre_tokenization: str | None = None) -> DialogTokenizer:
    """Load the vocabulary of a checkpoint (see `locate_checkpoint`) and add the dialog tokens where it has none.

    `pre_tokenization` ("spacy" or "bert") decides for a GPT checkpoint that does not record which one it was trained
    with; None means "spacy". Raises UserError for a folder without a usable vocabulary, or where the argument
    contradicts the record.
    """
    folder = locate_checkpoint(path_or_name)
    vocab, merges, special_ids = _read_vocabulary(folder)
    # Only GPT's words end in a mark; byte-level vocabularies mark where words begin.
    if any(token.endswith("</w>") for token in vocab):
        recorded = _read_optional(folder / "tokenizer_config.json").get("pre_tokenization")
        if recorded and pre_tokenization and recorded != pre_tokenization:
            raise UserError(f"{folder} was trained with --tokenization {recorded}; leave out --tokenization "
                            f"{pre_tokenization}, or start from another checkpoint.")  # fmt: skip
        return GptTokenizer(vocab, merges, special_ids, recorded or pre_tokenization or "spacy")
    if pre_tokenization:
        raise UserError(f"--tokenization {pre_tokenization} is for OpenAI GPT, but {folder} holds GPT-2's kind of "
                        "vocabulary; leave it out.")  # fmt: skip
    return Gpt2Tokenizer(vocab, merges, special_ids)


def train_vocabulary(texts: Iterable[str], family: str, size: int) -> DialogTokenizer:
    """Learn a BPE vocabulary of at most `size` entries, dialog tokens apart, from utterances.

    `family` is "openai-gpt" or "gpt2".
    """
    if family == "gpt2":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        # transformers' GPT-2 tokenizer adds this token, with an id of its own, to a vocabulary that lacks it.
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN_TOKEN, end_of_word_suffix="</w>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        split = word_splitter("spacy")
        texts = [" ".join(split(text)) for text in texts]
        # The trainer numbers the characters that end words in an order of chance, unless they are there before.
        word_ends = sorted({f"{word[-1]}</w>" for text in texts for word in text.split()})
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=[UNKNOWN_TOKEN, *word_ends], end_of_word_suffix="</w>", show_progress=False
        )
    tokenizer.train_from_iterator(texts, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in learned["merges"]]
    return (Gpt2Tokenizer if family == "gpt2" else GptTokenizer)(learned["vocab"], merges)


def word_splitter(pre_tokenization: str) -> Callable[[str], list[str]]:
    """Return the function from a text to its lower-case words that GPT's BPE starts from."""
    if pre_tokenization not in PRE_TOKENIZATIONS:
        raise UserError(f"--tokenization must be one of {', '.join(PRE_TOKENIZATIONS)}, not {pre_tokenization!r}.")
    return _split_as_bert if pre_tokenization == "bert" else _split_as_pretrained


def _split_as_bert(text: str) -> list[str]:
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    return [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(join_surrogates(text)))]


def _split_as_pretrained(text: str) -> list[str]:
    # ftfy finds nothing to fix in printable ASCII, unless there are HTML entities.
    is_sound = text.isascii() and text.isprintable() and "&" not in text
    text = standardize_text(text if is_sound else _fix_text(text))
    chunks = text.split(" ")
    # Plain words and marks split the same wherever they stand, and the same ones come again and again.
    if all(map(_is_plain, chunks)):
        return [word for chunk in chunks for word in _split_chunk(chunk)]
    return _split_by_spacy(text)


def _fix_text(text: str) -> str:
    from ftfy import fix_text

    return fix_text(text)


@lru_cache(maxsize=2**17)
def _is_plain(chunk: str) -> bool:
    return bool(_PLAIN_CHUNK.fullmatch(chunk))


@lru_cache(maxsize=2**17)
def _split_chunk(chunk: str) -> list[str]:
    return _split_by_spacy(chunk)


def _split_by_spacy(text: str) -> list[str]:
    # spaCy takes a line break and the space after it for one token.
    return [token.text.lower().rstrip(" ") for token in _spacy_splitter()(_OVERLONG_WORD.sub(r"\g<0> ", text))]


@cache
def _spacy_splitter() -> Callable:
    # Importing spaCy takes seconds: only when there is text to split.
    from spacy.lang.en import English

    return English().tokenizer


def join_surrogates(text: str) -> str:
    """Join surrogate pairs and replace lone halves by U+FFFD: JSON and terminals let them in, tokenizers does not."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


_DASHES_AND_QUOTES = str.maketrans({"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"})
# spaCy's time grows with the square of a word: a thousand emoji in a row take seconds. No real word is cut.
_OVERLONG_WORD = re.compile(r"\S{500}(?=\S)")
# What spaCy splits alike wherever it stands: two million random texts of nothing else showed no exception. Emoticons,
# quotes and abbreviations with inner dots are different.
_PLAIN_CHUNK = re.compile(r"[A-Za-z0-9]+(?:'[A-Za-z]+)?\.?|[.,?!]+")
_PUNCTUATION_RUN = re.compile(r"""([-~!";?+,()\\/*\[\]{}|_])\1*""")  # a run of one mark, not of different ones


def standardize_text(text: str) -> str:
    """Apply GPT's text clean-up: dash variants and ellipses in ASCII, spaces around runs of one punctuation mark."""
    text = _PUNCTUATION_RUN.sub(r" \g<0> ", text.translate(_DASHES_AND_QUOTES))
    text = re.sub(r"\s*\n\s*", " \n ", text)
    return re.sub(r"[^\S\n]+", " ", text).strip()


def join_punctuation(text: str) -> str:
    """Undo the spaces before sentence marks and contractions: "i do n't know ." becomes "i don't know."."""
    text = _SPLIT_CONTRACTION.sub(lambda match: match[0].replace(" ", ""), text)
    return _SPACE_BEFORE_PUNCTUATION.sub("", text)


def _read_vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, int] | None]:
    """Return a checkpoint's vocabulary, its merges and the ids of its dialog tokens (None where it has none).

    They are read from vocab.json, merges.txt and added_tokens.json, or from a tokenizer.json alone.
    """
    added = _read_optional(folder / "added_tokens.json")
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocab = read_json_object(folder / "vocab.json")
        lines = read_text(folder / "merges.txt").split("\n")
        merges = [line.split() for line in lines if line and not line.startswith("#version")]
    elif (folder / "tokenizer.json").is_file():
        vocab, merges, added_there = _parse_tokenizer_json(folder / "tokenizer.json")
        added |= added_there
    else:
        raise UserError(f"{folder} has no vocabulary: vocab.json and merges.txt (or tokenizer.json) are needed.")
    # Other added tokens have embedding rows too, so the dialog tokens must not take their ids.
    vocab |= {token: i for token, i in added.items() if token not in SPECIAL_TOKENS}
    merges = [tuple(pair) for pair in merges]
    _check_vocabulary(folder, vocab, merges)
    return vocab, merges, _find_special_ids(folder, vocab, vocab | added)


def _parse_tokenizer_json(path: Path) -> tuple[dict[str, int], list, dict[str, int]]:
    """Return vocabulary, merges and added tokens of a file of the tokenizers library."""
    content = read_json_object(path)
    model = content.get("model")
    vocab, merges = (model.get("vocab"), model.get("merges")) if isinstance(model, dict) else (None, None)
    if not isinstance(vocab, dict) or not isinstance(merges, list):
        raise UserError(f"{path} holds no BPE vocabulary; GPT and GPT-2 need one.")
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    return vocab, merges, {token["content"]: token["id"] for token in content.get("added_tokens", [])}


def _check_vocabulary(folder: Path, vocab: dict[str, int], merges: list[tuple[str, ...]]) -> None:
    """Raise UserError where ids are not distinct whole numbers, or merges not pairs of tokens that make a token."""
    if not vocab or not _are_ids(vocab.values()):
        raise UserError(f"the vocabulary in {folder} is malformed: each token needs a whole number of its own.")
    for number, pair in enumerate(merges, start=1):
        if len(pair) != 2 or not vocab.keys() >= {*pair, "".join(pair)}:
            raise UserError(f"{folder}: merge {number} ({' '.join(pair)!r}) does not join two tokens of the vocabulary "
                            "into a third; vocabulary and merges must be of one model.")  # fmt: skip


def _find_special_ids(folder: Path, vocab: dict[str, int], known: dict[str, int]) -> dict[str, int] | None:
    """Return the ids that the tokens `known` to a checkpoint give the dialog tokens; None where it has none of them."""
    found = {token: known[token] for token in SPECIAL_TOKENS if token in known}
    if not found:
        return None
    if missing := set(SPECIAL_TOKENS) - set(found):
        raise UserError(f"{folder} knows only some of the dialog tokens; {', '.join(sorted(missing))} are missing "
                        "from added_tokens.json.")  # fmt: skip
    if not _are_ids((vocab | found).values()):
        raise UserError(f"{folder}: added_tokens.json must give each dialog token a whole number of its own.")
    return found


def _are_ids(values: Collection) -> bool:
    return all(type(value) is int and value >= 0 for value in values) and len(set(values)) == len(values)


def _read_optional(path: Path) -> dict:
    return read_json_object(path) if path.is_file() else {}


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=None) + "\n", encoding="utf-8")
