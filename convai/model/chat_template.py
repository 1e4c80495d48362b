"""A tokenizer's chat template, taken apart: the fixed text between persona and turns, and what ends a reply.

A template is a program that writes a list of messages as one text (https://huggingface.co/docs/transformers/
chat_templating). Run on marks instead of sentences it shows what it puts around them. Around the marks the text is cut
at special tokens into spans: tokenizers never join text across those, so a span can be encoded by itself. Whether the
pieces within a span may be encoded apart, too, each tokenizer must show (`ChatTemplate.check`).

The persona is the system message, a sentence a line; templates without that role get it at the head of the first user
turn. A template that wants the user to open the dialog gets SILENCE as a first turn where the agent did.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from jinja2.exceptions import TemplateError

from convai.errors import UserError, argument

TokenIds = list[int]
Message = dict[str, str]
Span = tuple["str | int", ...]  # fixed text and the numbers of the pieces that stand between

SILENCE = "..."  # the user's first turn, where a template needs one and there was none
PERSONA_JOINT = "\n"
PERSONA_END = "\n\n"  # between persona and first turn, where there is no system message
MAX_REMEMBERED = 50_000
_MARK = "QzMark{}zQ"
_MARKS = re.compile(r"QzMark(\d+)zQ")
# What a tokenizer must show that it encodes alike apart and in a template: turns as people and data sets write them.
PROBE_PERSONAS = (
    ["i like to ski .", "i have 2 dogs and a cat .", "my mom's name is jo"],
    ["I work as a nurse.", "My favourite colour is blue!", "Café owner, born in 1987 (Zürich)"],
    [],
)
PROBE_TURNS = (
    ["hi ! how are you doing today ?", "i'm great , thanks .", "what do you do for a living ?"],
    ["Hello there! It's 7:30 - isn't it late?", "Not at all :)", '"Really?", she said...'],
    ["ok", "1, 2 & 3", "émile 😀 says hi"],
)


class ChatTokenizer(Protocol):
    """What of transformers' tokenizers a template needs."""

    eos_token_id: Any

    def apply_chat_template(self, conversation: Any, /, **settings: Any) -> Any: ...


class ChatTemplate:
    """Builds chat inputs out of pieces that are encoded once each.

    `encode_text` encodes text in which special tokens are plain text, `encode_fixed` the template's own, `decode` turns
    the first's ids back; `special_tokens` maps the special tokens' strings to their ids.
    """

    def __init__(
        self,
        tokenizer: ChatTokenizer,
        encode_text: Callable[[str], TokenIds],
        decode: Callable[[Sequence[int]], str],
        special_tokens: dict[str, int],
    ):
        self._tokenizer = tokenizer
        self._encode = encode_text
        self._decode = decode
        self._ids_of_text: dict[str, TokenIds] = {}
        self._spans_of: dict[tuple[int, int], list[Span]] = {}
        self._special_tokens = special_tokens
        by_length = sorted(special_tokens, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, by_length)) or r"(?!)")
        self._are_apart = {"persona": True, "turns": True}
        self.has_system_role = self._shows([_message("system", 0), _message("user", 1)], 2)
        self.takes_agent_first = self._shows([_message("assistant", 0), _message("user", 1)], 2)
        self.takes_no_user = self._shows([_message("system", 0)] if self.has_system_role else [], self.has_system_role)
        self.end_id = self._find_end()

    def context(self, persona: Sequence[TokenIds], history: Sequence[TokenIds]) -> TokenIds:
        """Return the ids of persona and turns, the last one the user's, up to where the agent's reply begins."""
        ids: TokenIds = []
        pieces = [*persona, *history]
        for span in self._spans(len(persona), len(history)):
            ids += self._encode_span(span, pieces, len(persona))
        return ids

    def check(self) -> None:
        """Find out what can be encoded apart; raise UserError where not even whole spans give the template's ids."""
        for part, personas in (("turns", [persona[:1] for persona in PROBE_PERSONAS]), ("persona", PROBE_PERSONAS)):
            if all(self.is_exact(persona, turns) for persona in personas for turns in PROBE_TURNS):
                continue
            self._are_apart[part] = False
        for persona in PROBE_PERSONAS:
            for turns in PROBE_TURNS:
                if not self.is_exact(persona, turns):
                    raise UserError("this tokenizer's chat template cannot be built from persona and turns: encoded as "
                                    "a whole, the text gives other tokens than in its parts; give "
                                    f"{argument('layout')} speakers.")  # fmt: skip

    def _encode_text(self, text: str) -> TokenIds:
        """Encode text that recurs: the template's own, and the spans of one dialog."""
        if text not in self._ids_of_text:
            if len(self._ids_of_text) >= MAX_REMEMBERED:
                self._ids_of_text.clear()
            self._ids_of_text[text] = self._encode(text)
        return self._ids_of_text[text]

    def is_exact(self, persona: Sequence[str], turns: Sequence[str]) -> bool:
        """Whether the ids of this dialog, reply last, are those of the template run on the whole of it."""
        *history, reply = turns
        encoded = [self._encode_text(text) for text in (*persona, *turns)]
        apart = self.context(encoded[: len(persona)], encoded[len(persona) : -1])
        messages = self.messages(persona, history)
        settings: dict[str, Any] = {"tokenize": True, "return_dict": False}
        try:
            prompt = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, **settings)
            whole = self._tokenizer.apply_chat_template(
                [*messages, {"role": "assistant", "content": reply}], **settings
            )
        except TemplateError:
            return False
        with_reply = [*apart, *encoded[-1], self.end_id]
        # Some templates write the reply's own opening otherwise than the one that asks for a reply.
        is_continued = whole[: len(prompt)] != prompt or whole[: len(with_reply)] == with_reply
        return bool(apart == prompt and is_continued)

    def messages(self, persona: Sequence[str], history: Sequence[str]) -> list[Message]:
        """Return persona and turns as messages, roles counted from the reply backwards."""
        turns = [
            {"role": "user" if n_to_reply % 2 else "assistant", "content": text}
            for n_to_reply, text in zip(range(len(history), 0, -1), history, strict=True)
        ]
        starts_with_user = bool(turns) and turns[0]["role"] == "user"
        needs_opening = not turns and (not self.takes_no_user or not (persona and self.has_system_role))
        if not starts_with_user and (needs_opening or (turns and not self.takes_agent_first)):
            turns = [{"role": "user", "content": SILENCE}, *turns]
        if not persona:
            return turns
        text = PERSONA_JOINT.join(persona)
        if self.has_system_role:
            return [{"role": "system", "content": text}, *turns]
        first = next((turn for turn in turns if turn["role"] == "user"), None)
        if first is not turns[0]:
            turns = [{"role": "user", "content": SILENCE}, *turns]
        turns[0] = {"role": "user", "content": text + PERSONA_END + turns[0]["content"]}
        return turns

    def render(self, messages: Sequence[Message], opens_reply: bool = True) -> str:
        """Return the messages as the template writes them. Raises jinja2's TemplateError where it refuses them."""
        text: str = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=opens_reply
        )
        return text

    def _spans(self, n_persona: int, n_turns: int) -> list[Span]:
        """Return the spans of a context of that many sentences and turns, whose numbers run on."""
        if (n_persona, n_turns) not in self._spans_of:
            self._spans_of[n_persona, n_turns] = self._make_spans(n_persona, n_turns)
        return self._spans_of[n_persona, n_turns]

    def _make_spans(self, n_persona: int, n_turns: int) -> list[Span]:
        marks = [_MARK.format(number) for number in range(n_persona + n_turns)]
        return self._cut(self.render(self.messages(marks[:n_persona], marks[n_persona:])))

    def _cut(self, text: str) -> list[Span]:
        """Cut a rendered text at special tokens, each of which is a span of its own."""
        spans: list[Span] = []
        start = 0
        for match in self._special.finditer(text):
            spans += [self._parts(text[start : match.start()]), (match.group(),)]
            start = match.end()
        return [span for span in (*spans, self._parts(text[start:])) if span]

    @staticmethod
    def _parts(text: str) -> Span:
        parts: list[str | int] = [*_MARKS.split(text)]
        parts[1::2] = map(int, parts[1::2])
        return tuple(part for part in parts if part != "")

    def _encode_span(self, span: Span, pieces: Sequence[TokenIds], n_persona: int) -> TokenIds:
        if len(span) == 1 and isinstance(span[0], str) and span[0] in self._special_tokens:
            return [self._special_tokens[span[0]]]
        numbers = [part for part in span if isinstance(part, int)]
        part = "persona" if any(number < n_persona for number in numbers) else "turns"
        if self._are_apart[part] or not numbers:
            return [
                token for part in span for token in (self._encode_text(part) if isinstance(part, str) else pieces[part])
            ]
        return self._encode_text("".join(p if isinstance(p, str) else self._decode(pieces[p]) for p in span))

    def _find_end(self) -> int:
        """Return the special token that the template puts after a reply; without one, the end of text."""
        turns = [_message("user", 0), _message("assistant", 1), _message("user", 2)]
        try:
            text = self.render(turns, opens_reply=False)
        except TemplateError as error:
            raise UserError(f"this tokenizer's chat template takes no dialog ({_reason(error)}); give "
                            f"{argument('layout')} speakers.") from error  # fmt: skip
        after = text.partition(_MARK.format(1))[2].partition(_MARK.format(2))[0].lstrip()
        match = self._special.match(after)
        end = self._special_tokens[match.group()] if match else self._tokenizer.eos_token_id
        if end is None:
            raise UserError("this tokenizer's chat template does not end a reply by a special token, and there is no "
                            f"end of text; give {argument('layout')} speakers.")  # fmt: skip
        return int(end)

    def _shows(self, messages: Sequence[Message], n_marks: int) -> bool:
        """Whether the template takes these messages and writes all of their marks, in order."""
        try:
            text = self.render(messages)
        except (TemplateError, IndexError, TypeError, KeyError):
            return False
        return [int(number) for number in _MARKS.findall(text)] == list(range(n_marks))


def _message(role: str, number: int) -> Message:
    return {"role": role, "content": _MARK.format(number)}


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
