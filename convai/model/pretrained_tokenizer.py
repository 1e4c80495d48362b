"""The tokenizer of any decoder of transformers, as this project needs it: utterances one by one, in one of two layouts.

    chat       the tokenizer's own chat template; no token is added (see chat_template)
    speakers   the paper's five dialog tokens, added to the vocabulary where it lacks them

Special tokens in what people write are plain text to `encode`.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from convai.errors import UserError, argument
from convai.model.chat_template import ChatTemplate
from convai.model.tokenization import SENTENCE_MARKS, DialogTokenizer
from convai.model.vocabulary import SPECIAL_TOKENS
from convai.model.word_splitting import join_surrogates

LAYOUTS = ("chat", "speakers")
_SPACES = "ĉĊċČčĠ▁"  # how vocabularies of bytes or of pieces write white space


class PretrainedTokenizer(DialogTokenizer):
    """A tokenizer of transformers in one of LAYOUTS."""

    has_published_perplexity = False

    def __init__(self, backend: PreTrainedTokenizerFast, family: str, layout: str):
        """`family` is the model_type of the backbone; `backend` is changed where tokens are added."""
        self.family = family
        self.layout = layout
        self.backend = backend
        self._plain = backend.backend_tokenizer
        self._plain.encode_special_tokens = True  # in text they are what they look like: text
        known = self._plain.get_vocab(with_added_tokens=True)
        is_speakers = layout == "speakers"
        # Within the speakers layout utterances follow each other, so their first words are words within text.
        self._prefix = ""
        if is_speakers and self._encode(" a") != self._encode("a"):
            self._prefix = " "
        special = {token: known[token] for token in SPECIAL_TOKENS if token in known} if is_speakers else None
        super().__init__(known, [], special)
        if is_speakers:
            backend.add_tokens(list(self.new_tokens), special_tokens=True)
            added = {token: int(backend.convert_tokens_to_ids(token)) for token in SPECIAL_TOKENS}
            if added != self.special_ids:
                raise UserError(f"the vocabulary of this {family} has gaps in its numbers, so that dialog tokens cannot "
                                f"be added to it; give {argument('layout')} chat.")  # fmt: skip
        else:
            self._use_template()

    def _use_template(self) -> None:
        """Take beginning, end and padding from the chat template, instead of dialog tokens."""
        special = {str(token): i for i, token in self.backend.added_tokens_decoder.items() if token.special}
        # A file in GGUF's format does not always say which of its tokens are special.
        named = {str(token): self.vocab[str(token)] for token in self.backend.all_special_tokens}
        self.template = ChatTemplate(self.backend, self._encode, self._decode, special | named)
        self.template.check()
        self.new_tokens, self.special_ids = (), {}
        self.n_recorded = self.n_vocab
        self.eos_id = self.template.end_id
        self.pad_id = self.eos_id if self.backend.pad_token_id is None else int(self.backend.pad_token_id)

    def __len__(self) -> int:
        return max(self.n_vocab, *(token_id + 1 for token_id in self.special_ids.values()), 0)

    @property
    def ending_ids(self) -> frozenset[int]:
        """The tokens that end a reply: its own end, the end of text, and in the speakers layout every dialog token."""
        ends = {self.eos_id, self.backend.eos_token_id, *self.special_ids.values()}
        return frozenset(int(token) for token in ends if token is not None)

    @property
    def unknown_id(self) -> int | None:
        unknown = self.backend.unk_token_id
        return None if unknown is None or self._spells_everything else int(unknown)

    @cached_property
    def _spells_everything(self) -> bool:
        """Whether no character is ever unknown, as bytes have tokens of their own."""
        return self.backend.unk_token_id not in self._encode("\u2e3b \U0001fae8 \ua66e")

    def encode(self, text: str) -> list[int]:
        text = join_surrogates(text).strip()
        return self._encode(self._prefix + text) if text else []

    def encode_within(self, word: str) -> list[int]:
        return self._encode(f" {join_surrogates(word).strip()}")

    def decode(self, ids: Iterable[int]) -> str:
        return self._decode([i for i in ids if i not in self.ending_ids]).strip()

    def begins_word(self, token: str) -> bool:
        return token[0] in _SPACES + SENTENCE_MARKS or self.vocab.get(token) in self.ending_ids

    def lost_share(self, text: str, ids: Sequence[int]) -> float:
        return ids.count(self.unknown_id) / max(1, len(ids)) if self.unknown_id is not None else 0.0

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's own files, its chat template with them."""
        # Special tokens in text are the caller's choice, not the file's.
        self._plain.encode_special_tokens = False
        try:
            self.backend.save_pretrained(folder)
        finally:
            self._plain.encode_special_tokens = True

    @cached_property
    def fingerprint(self) -> str:
        content = [self._plain.to_str(), self._description()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _description(self) -> dict[str, Any]:
        return {"tokenizer_class": type(self.backend).__name__, "prefix": self._prefix}

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self._plain.decode(list(ids), skip_special_tokens=False)
        return text


def load_pretrained_tokenizer(folder: Path, family: str, layout: str | None) -> PretrainedTokenizer:
    """Load the tokenizer of a checkpoint folder in a layout, by default chat where it has a chat template.

    Raises UserError where there is none that transformers reads without code of the checkpoint, or no such layout.
    """
    try:
        backend = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # of transformers, tokenizers and of the packages that some formats need
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{folder}: its tokenizer cannot be read ({reason}); a tokenizer.json is needed.") from error
    if not getattr(backend, "is_fast", False):
        raise UserError(f"{folder}: its tokenizer ({type(backend).__name__}) has no tokenizer.json; use another "
                        "checkpoint, or one converted by transformers.")  # fmt: skip
    has_template = bool(backend.chat_template)
    if layout == "chat" and not has_template:
        raise UserError(f"{folder}: its tokenizer has no chat template; give {argument('layout')} speakers.")
    return PretrainedTokenizer(backend, family, layout or ("chat" if has_template else "speakers"))
