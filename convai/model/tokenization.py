"""Text to token ids and back for OpenAI GPT (ftfy, spaCy, BPE) and GPT-2 (byte-level BPE), with the dialog tokens.

GPT was pre-trained on text that had passed ftfy, a few replacements and spaCy's English tokenizer, in lower case
(Radford et al., 2018, section 4.1); today's tokenizer classes split words differently and so feed it ids that it never
saw in those places. `GptTokenizer` gives the ids of the original pipeline. GPT-2's utterances start with a space, as
words within text do, unless the model was fine-tuned without it.
"""

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, overload

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from convai.errors import UserError, argument
from convai.io.files import write_json, write_text
from convai.model.vocabulary import SPECIAL_TOKENS, Vocabulary, read_vocabulary
from convai.model.word_splitting import join_punctuation, join_surrogates, word_splitter

UNKNOWN_TOKEN = "<unk>"
SENTENCE_MARKS = ".,;:!?"  # words of their own in ConvAI2's dictionary
_BYTE_LEVEL_SPACES = "ĉĊċČčĠ"  # how GPT-2's vocabulary writes a tab, line breaks and a space
LEADING_SPACES = {"prefix_space": True, "no_prefix_space": False}  # --tokenization's names for GPT-2

_MAX_WORDS = 2**16  # whose ids are kept: a text of gigabytes has millions

Ids = dict[str, int]
Merges = list[tuple[str, str]]

logger = logging.getLogger(__name__)


class DialogTokenizer(ABC):
    """A vocabulary with the five dialog tokens; `encode` and `decode` treat their names in text as plain text.

    `special_ids` maps SPECIAL_TOKENS to their ids; those that it lacks (None: all) are `new_tokens` and get the ids
    after the last one in use.
    """

    family: str  # as in config.json's model_type
    # Whether a word's first piece tells of the word what it did in the published perplexity (see evaluation.metrics).
    has_published_perplexity: bool = True
    layout: str = "speakers"  # how persona and turns make one input (see data.layouts)

    def __init__(self, vocab: Ids, merges: Merges, special_ids: Ids | None = None):
        self.vocab = vocab
        self.merges = merges
        known = special_ids or {}
        self.new_tokens = tuple(token for token in SPECIAL_TOKENS if token not in known)
        self.n_recorded = max(self.n_vocab, *(token_id + 1 for token_id in known.values()), 0)
        new = {token: self.n_recorded + n for n, token in enumerate(self.new_tokens)}
        self.special_ids = {token: (known | new)[token] for token in SPECIAL_TOKENS}
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

    @property
    def ending_ids(self) -> frozenset[int]:
        """The tokens that end a reply: after any special token the turn would be another's."""
        return frozenset(self.special_ids.values())

    @property
    def unknown_id(self) -> int | None:
        """The token that stands for text without one of its own; None where there is none."""
        return self.vocab.get(UNKNOWN_TOKEN)

    def begins_word(self, token: str) -> bool:
        """Whether a token that is not special may stand at the beginning of a word."""
        return True

    @cached_property
    def tokens(self) -> list[str | None]:
        """Token strings by id; None for an id that has no token."""
        tokens: list[str | None] = [None] * len(self)
        for token, token_id in (self.vocab | self.special_ids).items():
            tokens[token_id] = token
        return tokens

    @overload
    def convert_tokens_to_ids(self, tokens: str) -> int: ...  # type: ignore[overload-overlap] # a str is a sequence too

    @overload
    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int]: ...

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> int | list[int]:
        """Return the id of each token string (of one token for a str); KeyError for a string that is no token."""
        if isinstance(tokens, str):
            return self.special_ids[tokens] if tokens in self.special_ids else self.vocab[tokens]
        return [self.convert_tokens_to_ids(token) for token in tokens]

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the token ids of one utterance, without special tokens; surrounding white space does not count."""

    def encode_within(self, word: str) -> list[int]:
        """Return the token ids of a word as they are after other words of an utterance."""
        return self.encode(word)

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids; special tokens are left out, ids that have no token are unknown ones."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token, spaces included; of a character of several tokens it stands with the last."""
        pieces: list[str] = []
        special = {token_id: token for token, token_id in self.special_ids.items()}
        start, known = 0, ""
        for n, token_id in enumerate(ids, start=1):
            if token_id in special:
                pieces.append(special[token_id])
                start, known = n, ""
                continue
            text = self._verbatim(ids[start:n])
            is_cut = text.endswith("\N{REPLACEMENT CHARACTER}") and n < len(ids)
            pieces.append("" if is_cut else text[len(known) :])
            known = known if is_cut else text
        return pieces

    @abstractmethod
    def _verbatim(self, ids: Sequence[int]) -> str:
        """Return the text of tokens that are not special, with all of its spaces."""

    def token(self, token_id: int) -> str | None:
        """Return the string of a token; None for an id without one, such as that of a row that only pads a matrix."""
        return self.tokens[token_id] if token_id < len(self.tokens) else None

    @abstractmethod
    def lost_share(self, text: str, ids: Sequence[int]) -> float:
        """Return the share, 0 to 1, of `text` that has no token in `ids`, which are what `encode` made of it."""

    @abstractmethod
    def _description(self) -> dict[str, Any]:
        """What besides vocabulary and merges decides about the ids."""

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides which ids a text gets: two tokenizers with the same one can share a cache."""
        content = [self._vocabulary_digest, self._description()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @cached_property
    def _vocabulary_digest(self) -> str:
        names = sorted(self.vocab)
        content = [names, [self.vocab[name] for name in names], self.merges, sorted(self.special_ids.items())]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write vocab.json, merges.txt and the special tokens in the Hugging Face layout."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        roles: dict[str, str | list[str]] = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
        roles["additional_special_tokens"] = ["<speaker1>", "<speaker2>"]
        if UNKNOWN_TOKEN in self.vocab:
            roles["unk_token"] = UNKNOWN_TOKEN
        lines = ["#version: 0.2", *(" ".join(pair) for pair in self.merges)]
        write_text(folder / "merges.txt", "\n".join(lines) + "\n")
        contents = {
            "vocab.json": self.vocab,
            "added_tokens.json": {t: i for t, i in self.special_ids.items() if t not in self.vocab},
            "special_tokens_map.json": roles,
            "tokenizer_config.json": roles | self._description(),
        }
        for name, content in contents.items():
            write_json(folder / name, content, indent=None)


class GptTokenizer(DialogTokenizer):
    """OpenAI GPT: lower-cased words by `pre_tokenization` ("spacy" with ftfy, or "bert"), then BPE within each word."""

    family = "openai-gpt"

    def __init__(self, vocab: Ids, merges: Merges, special_ids: Ids | None = None, pre_tokenization: str = "spacy"):
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
                if len(self._ids_of_word) >= _MAX_WORDS:
                    self._ids_of_word.clear()
                word_ids = self._ids_of_word[word] = [token.id for token in self._bpe.tokenize(word)]
            ids += word_ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        special = set(self.special_ids.values())
        return join_punctuation(self._verbatim([i for i in ids if i not in special]).strip())

    def _verbatim(self, ids: Sequence[int]) -> str:
        return "".join(self.token(i) or UNKNOWN_TOKEN for i in ids).replace("</w>", " ")

    def lost_share(self, text: str, ids: Sequence[int]) -> float:
        if UNKNOWN_TOKEN in self.vocab:  # each character without a token is one of these
            return ids.count(self.vocab[UNKNOWN_TOKEN]) / max(1, len(ids))
        pieces = [piece for word in self._split(text) for piece in (*word[:-1], f"{word[-1:]}</w>")]
        return sum(piece not in self.vocab for piece in pieces) / max(1, len(pieces))

    def _description(self) -> dict[str, Any]:
        description = {"tokenizer_class": "OpenAIGPTTokenizer", "pre_tokenization": self.pre_tokenization}
        if self.pre_tokenization == "spacy":  # other versions of these may split words otherwise
            description |= {"spacy_version": version("spacy"), "ftfy_version": version("ftfy")}
        return description


class Gpt2Tokenizer(DialogTokenizer):
    """GPT-2: byte-level BPE. With `add_prefix_space` an utterance's first word is spelled as words within text are."""

    family = "gpt2"

    def __init__(self, vocab: Ids, merges: Merges, special_ids: Ids | None = None, add_prefix_space: bool = True):
        super().__init__(vocab, merges, special_ids)
        self.add_prefix_space = add_prefix_space
        self._tokenizer = Tokenizer(models.BPE(vocab, merges))
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
        self._tokenizer.decoder = decoders.ByteLevel()

    def encode(self, text: str) -> list[int]:
        text = join_surrogates(text).strip()
        return self._tokenizer.encode(text, add_special_tokens=False).ids if text else []

    def encode_within(self, word: str) -> list[int]:
        return self._tokenizer.encode(f" {join_surrogates(word).strip()}", add_special_tokens=False).ids

    def begins_word(self, token: str) -> bool:
        return token[0] in _BYTE_LEVEL_SPACES + SENTENCE_MARKS

    def decode(self, ids: Iterable[int]) -> str:
        special = set(self.special_ids.values())
        return join_punctuation(self._verbatim([i for i in ids if i not in special]).strip())

    def _verbatim(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    @cached_property
    def _has_all_bytes(self) -> bool:
        return self.vocab.keys() >= set(pre_tokenizers.ByteLevel.alphabet())

    def lost_share(self, text: str, ids: Sequence[int]) -> float:
        if self._has_all_bytes:
            return 0.0
        by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
        pieces = [byte for word, _ in by_bytes.pre_tokenize_str(join_surrogates(text).strip()) for byte in word]
        return sum(byte not in self.vocab for byte in pieces) / max(1, len(pieces))

    def _description(self) -> dict[str, Any]:
        return {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": self.add_prefix_space}


def load_gpt_tokenizer(
    folder: str | Path, tokenization: str | None = None, dialog_token_ids: Sequence[int] | None = None
) -> DialogTokenizer:
    """Load the vocabulary in a checkpoint folder; dialog tokens that it lacks become `new_tokens`.

    `tokenization` decides where a checkpoint does not record how it was trained: "spacy" or "bert" for GPT (None:
    spacy), "prefix_space" or "no_prefix_space" for GPT-2 (None: with the space). `dialog_token_ids` are those of
    SPECIAL_TOKENS, for a fine-tuned checkpoint that does not record them. Raises UserError for a folder without a
    usable vocabulary, or where an argument contradicts the record.
    """
    folder = Path(folder)
    vocabulary = read_vocabulary(folder)
    special_ids = _dialog_ids(folder, vocabulary, dialog_token_ids)
    if vocabulary.is_byte_level:
        has_space = _has_prefix_space(folder, vocabulary, tokenization, len(special_ids) == len(SPECIAL_TOKENS))
        return Gpt2Tokenizer(vocabulary.vocab, vocabulary.merges, special_ids, has_space)
    if tokenization in LEADING_SPACES:
        raise UserError(f"{argument('tokenization')} {tokenization} is for GPT-2, but {folder} holds GPT's kind of "
                        "vocabulary; leave it out.")  # fmt: skip
    recorded = vocabulary.pre_tokenization
    if recorded and tokenization and recorded != tokenization:
        raise _contradiction(folder, recorded, tokenization)
    return GptTokenizer(vocabulary.vocab, vocabulary.merges, special_ids, recorded or tokenization or "spacy")


def _dialog_ids(folder: Path, vocabulary: Vocabulary, given: Sequence[int] | None) -> dict[str, int]:
    """Return the ids of the dialog tokens, as far as they are recorded or given."""
    recorded = vocabulary.dialog_ids
    if not given:
        return recorded
    ids = dict(zip(SPECIAL_TOKENS, given, strict=True))
    if recorded and any(ids[token] != token_id for token, token_id in recorded.items()):
        raise UserError(f"{folder} records other ids of the dialog tokens: {_in_words(recorded)}; leave out "
                        f"{argument('dialog_token_ids')}.")  # fmt: skip
    taken = set(vocabulary.vocab.values()) - {vocabulary.vocab.get(token) for token in SPECIAL_TOKENS}
    if len(set(ids.values())) < len(ids) or taken & set(ids.values()):
        raise UserError(f"{argument('dialog_token_ids')} {' '.join(map(str, given))}: each dialog token needs an id "
                        f"of its own, which no other token of {folder} has.")  # fmt: skip
    return ids


def _has_prefix_space(folder: Path, vocabulary: Vocabulary, tokenization: str | None, is_fine_tuned: bool) -> bool:
    """Return whether utterances of a byte-level checkpoint start with a space."""
    if tokenization and tokenization not in LEADING_SPACES:
        raise UserError(f"{argument('tokenization')} {tokenization} is for OpenAI GPT, but {folder} holds GPT-2's "
                        "kind of vocabulary; leave it out.")  # fmt: skip
    chosen = LEADING_SPACES[tokenization] if tokenization else None
    if not is_fine_tuned:  # whatever its file says: pre-training met words within text
        return chosen is not False
    recorded = vocabulary.add_prefix_space
    if recorded is None:
        if chosen is None:
            logger.info("%s does not record whether its utterances start with a space; they get one "
                        f"({argument('tokenization')} no_prefix_space: none)", folder)  # fmt: skip
        return chosen is not False
    if tokenization and chosen != recorded:
        raise _contradiction(folder, "prefix_space" if recorded else "no_prefix_space", tokenization)
    return bool(recorded)


def _contradiction(folder: Path, recorded: str, given: str) -> UserError:
    return UserError(f"{folder} was trained with {argument('tokenization')} {recorded}; leave out "
                     f"{argument('tokenization')} {given}, or start from another checkpoint.")  # fmt: skip


def _in_words(ids: Mapping[str, int]) -> str:
    return ", ".join(f"{token} {token_id}" for token, token_id in ids.items())


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
    dialog_ids = {token: len(learned["vocab"]) + n for n, token in enumerate(SPECIAL_TOKENS)}
    return (Gpt2Tokenizer if family == "gpt2" else GptTokenizer)(learned["vocab"], merges, dialog_ids)
