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

from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from convai.errors import UserError, argument, one_line
from convai.io.files import read_json_object
from convai.model.chat_template import ChatTemplate, ControlToken
from convai.model.tokenization import SENTENCE_MARKS, DialogTokenizer
from convai.model.vocabulary import SPECIAL_TOKENS
from convai.model.word_splitting import join_surrogates

LAYOUTS = ("chat", "speakers")
_SPACES = "ĉĊċČčĠ▁"  # how vocabularies of bytes or of pieces write white space
# Templates of models that can think ask them to unless they are told otherwise. Here a reply is what is said, in the
# data as in chats, so not to think becomes the default, for other programs too: the template is saved with the model.
# The line break is one that templates swallow, so that what follows stands at the beginning of a line as before.
_WITHOUT_THOUGHTS = "{%- if enable_thinking is not defined %}{%- set enable_thinking = false %}{%- endif %}\n"
_CUT = "\U000f5cc7cut\U000f5cc7"  # of characters for private use, which nobody types


class PlainText:
    """Text to ids and back by a tokenizer of its own, for which control tokens in text are text.

    transformers' tokenizers cannot serve: each call sets anew whether special tokens are read, and pickling forgets it.
    """

    def __init__(self, pipeline: str):
        """`pipeline` is a tokenizer.json in which exactly the control tokens are special (see plain_pipeline)."""
        self._tokenizer = Tokenizer.from_str(pipeline)
        self._tokenizer.encode_special_tokens = True
        # What the tokenizers library does at the start of an input and what behind a token differ in some vocabularies.
        self._tokenizer.add_tokens([AddedToken(_CUT, special=False, normalized=False)])
        self._line_break = self.encode("\n")

    def __reduce__(self) -> tuple[Any, ...]:
        return PlainText, (self._tokenizer.to_str(),)

    def encode(self, text: str, is_start: bool = True) -> list[int]:
        """Return the ids of text as at the start of an input, or as behind a control token."""
        text = text.replace(_CUT, "")
        if is_start:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        return list(self._tokenizer.encode(_CUT + text, add_special_tokens=False).ids[1:])

    def encode_behind(self, lead: str, text: str) -> list[int]:
        """Return the ids of an utterance as behind one of chat_template.LEADS."""
        if not text:
            return []
        ids = self.encode(lead + text)
        return ids[len(self._line_break) :] if lead == "\n" else ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    @property
    def pipeline(self) -> str:
        text: str = self._tokenizer.to_str()
        return text


class PretrainedTokenizer(DialogTokenizer):
    """A tokenizer of transformers in one of LAYOUTS."""

    has_published_perplexity = False

    def __init__(self, backend: PreTrainedTokenizerFast, family: str, layout: str):
        """`family` is the model_type of the backbone; `backend` is changed: it gets tokens, or thinks no more.

        Raises UserError for a chat template that cannot be built from its parts (see chat_template), and for a
        vocabulary to which dialog tokens cannot be added.
        """
        self.family = family
        self.layout = layout
        self.backend = backend
        self.template: ChatTemplate | None = None
        known = backend.backend_tokenizer.get_vocab(with_added_tokens=True)
        if layout == "speakers":
            super().__init__(known, [], {token: known[token] for token in SPECIAL_TOKENS if token in known})
            self._add_dialog_tokens()
            self._plain = PlainText(plain_pipeline(backend, [*_control_tokens(backend), *SPECIAL_TOKENS]))
            self._lead = self._space_within  # utterances follow each other, so their first words are words within text
        else:
            super().__init__(known, [])
            self._use_template()

    def _add_dialog_tokens(self) -> None:
        self.backend.add_tokens(list(self.new_tokens), special_tokens=True)
        added = {token: self.backend.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
        if added != self.special_ids:
            raise UserError(f"the vocabulary of this {self.family} has gaps in its numbers, so that no dialog tokens "
                            f"can be added to it; give {argument('layout')} chat.")  # fmt: skip

    def _use_template(self) -> None:
        """Take end and padding from the chat template and the tokenizer, instead of dialog tokens."""
        self.backend.chat_template = _without_thoughts(self.backend.chat_template)
        control = _control_tokens(self.backend)
        self._plain = PlainText(plain_pipeline(self.backend, control))
        self.template = ChatTemplate(self.backend, self._plain, control)
        self.template.check()
        self._lead = self.template.lead
        self.new_tokens, self.special_ids = (), {}
        self.n_recorded = self.n_vocab
        self.eos_id = self.template.end_id
        self.pad_id = self.eos_id if self.backend.pad_token_id is None else int(self.backend.pad_token_id)
        del self.bos_id, self.speaker1_id, self.speaker2_id  # there are none

    def __len__(self) -> int:
        return max(self.n_vocab, *(token_id + 1 for token_id in self.special_ids.values()), 0)

    @cached_property
    def ending_ids(self) -> frozenset[int]:
        """The tokens that end a reply: its own end, the end of text, and any that opens or ends another's turn."""
        ends = {self.eos_id, self.backend.eos_token_id, *self.special_ids.values()}
        written = self.template.written_ids if self.template else frozenset()
        return frozenset(int(token) for token in ends | written if token is not None)

    @property
    def unknown_id(self) -> int | None:
        unknown = self.backend.unk_token_id
        return None if unknown is None or self._spells_everything else int(unknown)

    @cached_property
    def _spells_everything(self) -> bool:
        """Whether no character is ever unknown or left out, as bytes have tokens of their own."""
        rare = "\u2e3b \U0001fae8 \ua66f"
        ids = self._plain.encode(rare)
        return self.backend.unk_token_id not in ids and self._plain.decode(ids).strip() == rare

    @cached_property
    def _space_within(self) -> str:
        """What makes text that is encoded alone begin as a word within text does: a space, unless that comes anyway."""
        word = self._plain.encode("a")
        return "" if self._plain.encode("a a")[-len(word) :] == word else " "

    def encode(self, text: str) -> list[int]:
        return self._plain.encode_behind(self._lead, join_surrogates(text).strip())

    def encode_within(self, word: str) -> list[int]:
        return self._plain.encode_behind(self._space_within, join_surrogates(word).strip())

    def decode(self, ids: Iterable[int]) -> str:
        return self._plain.decode([i for i in ids if i not in self.ending_ids]).strip()

    def _verbatim(self, ids: Sequence[int]) -> str:
        return self._plain.decode(ids)

    def begins_word(self, token: str) -> bool:
        return token[:1] in _SPACES + SENTENCE_MARKS or self.vocab.get(token) in self.ending_ids

    def lost_share(self, text: str, ids: Sequence[int]) -> float:
        if self._spells_everything:
            return 0.0
        if self.unknown_id is not None:  # each stands for one character or a run of them
            return ids.count(self.unknown_id) / max(1, len(ids))
        text = "".join(text.split())
        return max(0.0, 1 - len("".join(self.decode(ids).split())) / max(1, len(text)))

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's own files, its chat template with them."""
        self.backend.save_pretrained(folder)

    @cached_property
    def fingerprint(self) -> str:
        content = [self._plain.pipeline, self._description()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def _description(self) -> dict[str, Any]:
        return {"layout": self.layout, "lead": self._lead}


def _without_thoughts(template: str | dict[str, str]) -> str | dict[str, str]:
    """Return a chat template, or several by name, that asks for thoughts only if it is told to."""
    if isinstance(template, dict):
        return {name: str(_without_thoughts(text)) for name, text in template.items()}
    can_think = "enable_thinking" in template and not template.startswith(_WITHOUT_THOUGHTS)
    return _WITHOUT_THOUGHTS + template if can_think else template


def _control_tokens(backend: PreTrainedTokenizerFast) -> dict[str, ControlToken]:
    """Return the tokens that no text of people's may become: special ones, and those that the chat template writes.

    As transformers' sanitize_control_tokens; white space is text, even where it has tokens of its own.
    """
    template = backend.chat_template or ""
    if isinstance(template, dict):  # several, by name; without a default there will be none to use
        template = template.get("default", "")
    vocab = backend.get_vocab()
    # A file in GGUF's format does not always say which of its tokens are special.
    control = {str(token): ControlToken(vocab[str(token)]) for token in backend.all_special_tokens if token in vocab}
    for token_id, token in backend.added_tokens_decoder.items():
        if token.special or (token.content in template and not token.content.isspace()):
            control[token.content] = ControlToken(token_id, token.lstrip, token.rstrip)
    return control


def plain_pipeline(backend: PreTrainedTokenizerFast, control: Iterable[str]) -> str:
    """Return a tokenizer's pipeline with these tokens as its special ones, which neither cuts nor pads text."""
    pipeline = json.loads(backend.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    names = set(control)
    for token in pipeline["added_tokens"]:
        token["special"] = token["content"] in names
    return json.dumps(pipeline)


def load_pretrained_tokenizer(folder: Path, family: str, layout: str | None) -> PretrainedTokenizer:
    """Load the tokenizer of a checkpoint folder in a layout.

    By default that is speakers where the vocabulary has speakers' tokens already, else chat where there is a chat
    template. Raises UserError where there is no tokenizer that transformers reads without code of the checkpoint, no
    such layout, or no way to use it (see PretrainedTokenizer).
    """
    try:
        backend = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # of transformers, tokenizers and of the packages that some formats need
        raise UserError(f"{folder}: its tokenizer cannot be read ({_reason(folder, error)}); use another checkpoint "
                        "with a tokenizer.json.") from error  # fmt: skip
    if not isinstance(backend, PreTrainedTokenizerFast):
        raise UserError(f"{folder}: its tokenizer ({type(backend).__name__}) has no tokenizer.json; use another "
                        "checkpoint, or one converted by transformers.")  # fmt: skip
    has_template = bool(backend.chat_template)
    if layout == "chat" and not has_template:
        raise UserError(f"{folder}: its tokenizer has no chat template; give {argument('layout')} speakers.")
    is_trained = {"<speaker1>", "<speaker2>"} <= backend.get_vocab().keys()
    return PretrainedTokenizer(backend, family, layout or ("chat" if has_template and not is_trained else "speakers"))


def _reason(folder: Path, error: Exception) -> str:
    path = folder / "tokenizer_config.json"
    if path.is_file() and "auto_map" in read_json_object(path) and "trust_remote_code" in str(error):
        return "it needs code of its own, which is never run"
    return one_line(str(error)).rstrip(".") or type(error).__name__
