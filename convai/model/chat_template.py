"""A tokenizer's chat template, taken apart: the fixed text between persona and turns, and what ends a reply.

A template is a program that writes a list of messages as one text (https://huggingface.co/docs/transformers/
chat_templating). Run on marks instead of sentences it shows what it puts around them. That text is cut at control
tokens into spans: tokenizers never join text across those, so a span can be encoded by itself. Whether the pieces
within a span may be encoded apart, too, each tokenizer must show (`ChatTemplate.check`).

The persona is the system message, a sentence a line; where a template takes none, it stands at the head of the first
user turn. A template that wants the user to open the dialog gets SILENCE as a first turn where the agent did, and so
does every template where there is nothing at all, as no other program could ask for a reply to no messages.
"""

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from string import punctuation
from typing import Any, NamedTuple, Protocol

from convai.errors import UserError, argument, one_line

TokenIds = list[int]
Message = dict[str, str]

SILENCE = "..."  # the user's first turn, where a template needs one and there was none
PERSONA_JOINT = "\n"
PERSONA_END = "\n\n"  # between persona and first turn, where there is no system message
# What an utterance is encoded behind, tried in this order: nothing, the space that the template writes before a reply
# (which then is part of the reply, as tokenizers join it with the first word), or a line, for vocabularies that put a
# space before all text that is encoded alone (SentencePiece); the line break's own tokens are left out again.
LEADS = ("", " ", "\n")
MAX_REMEMBERED = 50_000
_MARK = "QzMark{}zQ"
_MARKS = re.compile(r"QzMark(\d+)zQ")

logger = logging.getLogger(__name__)


class ChatTokenizer(Protocol):
    """What of transformers' tokenizers a template needs."""

    @property
    def apply_chat_template(self) -> Callable[..., Any]: ...


class Codec(Protocol):
    """Text to ids and back, where control tokens in text are text (see pretrained_tokenizer.PlainText)."""

    def encode(self, text: str, is_start: bool = True) -> TokenIds:
        """Return the ids of text as at the start of an input, or as behind a control token."""

    def encode_behind(self, lead: str, text: str) -> TokenIds:
        """Return the ids of an utterance as behind one of LEADS."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""


class ControlToken(NamedTuple):
    """A token that only the template may write, and whether it swallows the white space around it."""

    id: int
    strips_before: bool = False
    strips_after: bool = False


class Arrangement(NamedTuple):
    """How persona and turns become messages that a template takes."""

    has_system: bool  # the persona is a system message, rather than the head of the user's first turn
    has_opening: bool  # SILENCE stands before the turns


class _Joined(NamedTuple):
    """A span that is encoded as a whole: fixed text and the numbers of the pieces that stand between."""

    parts: tuple[str | int, ...]
    is_start: bool


class _Shape(NamedTuple):
    """What contexts of one number of sentences and turns have in common: ids, numbers of pieces, joined spans."""

    arrangement: Arrangement
    steps: list["TokenIds | int | _Joined"]


class _Apart(NamedTuple):
    """What may be encoded apart from the text around it."""

    persona: bool = False
    turns: bool = False


class ChatTemplate:
    """Builds chat inputs out of pieces that are encoded once each, behind `lead` (see LEADS)."""

    def __init__(self, tokenizer: ChatTokenizer, codec: Codec, control_tokens: Mapping[str, ControlToken]):
        """Raises UserError for a template that takes no dialog, or that does not end a reply by a control token."""
        self._tokenizer = tokenizer
        self._codec = codec
        self._control_tokens = control_tokens
        by_length = sorted(control_tokens, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, by_length)) or r"(?!)")
        self._ids_of_joined: dict[tuple[bool, str], TokenIds] = {}
        self._shapes: dict[tuple[int, int], _Shape] = {}
        self._apart = _Apart()
        self.lead = LEADS[0]
        self.end_id, self.written_ids = self._find_end()

    def context(self, persona: Sequence[TokenIds], history: Sequence[TokenIds]) -> TokenIds:
        """Return the ids of persona and turns, the last one the user's, up to where the agent's reply begins."""
        ids: TokenIds = []
        for part, _ in self.parts(persona, history):
            ids += part
        return ids

    def parts(self, persona: Sequence[TokenIds], history: Sequence[TokenIds]) -> Iterator[tuple[TokenIds, int | None]]:
        """Yield the context in parts, each with the number of what it holds; None for what the template writes.

        Persona sentences, empty ones left out, are numbered before turns. Of several in one part it is the last one's.
        """
        persona = [sentence for sentence in persona if sentence]
        pieces = [*persona, *history]
        for step in self._shape(len(persona), len(history)).steps:
            if isinstance(step, int):
                yield pieces[step], step
            elif isinstance(step, _Joined):
                yield self._encode_joined(step, pieces), max(part for part in step.parts if isinstance(part, int))
            else:
                yield step, None

    def messages(self, persona: Sequence[str], history: Sequence[str]) -> list[Message]:
        """Return persona and turns as messages, roles counted from the reply backwards."""
        persona = [sentence for sentence in persona if sentence]
        return _arrange(persona, history, self._shape(len(persona), len(history)).arrangement)

    def check(self) -> None:
        """Find out how pieces must be encoded to give the template's ids; UserError where there is no such way.

        It is sought on turns as people write them, and as they hardly do.
        """
        for self.lead, apart in product(LEADS, product((True, False), repeat=2)):
            self._apart = _Apart(*apart)
            self._shapes.clear()
            if all(self.is_exact(persona, turns) for persona, turns in _probes()):
                break
        else:
            raise UserError("this tokenizer's chat template cannot be built from persona and turns, whose tokens "
                            f"differ within the whole; give {argument('layout')} speakers.")  # fmt: skip
        self._ids_of_joined.clear()  # nobody will say the probes
        self._compare_prompt()

    def is_exact(self, persona: Sequence[str], turns: Sequence[str]) -> bool:
        """Whether the ids of this dialog, reply last, are those of the template run on the whole of it.

        White space that it writes between reply and end does not count: one token ends a reply.
        """
        encoded = [self._codec.encode_behind(self.lead, text) for text in (*persona, *turns)]
        ours = self.context(encoded[: len(persona)], encoded[len(persona) : -1]) + encoded[-1]
        messages = [*self.messages(persona, turns[:-1]), {"role": "assistant", "content": turns[-1]}]
        try:
            whole = self._apply(messages, tokenize=True, return_dict=False)
        except Exception:  # a template is a program, which may fail in any way
            return False
        rest = whole[len(ours) :]
        if whole[: len(ours)] != ours or self.end_id not in rest:
            return False
        return not self._codec.decode(rest[: rest.index(self.end_id)]).strip()

    def _apply(self, messages: Sequence[Message], **settings: Any) -> Any:
        return self._tokenizer.apply_chat_template(list(messages), **settings)

    def _shape(self, n_persona: int, n_turns: int) -> _Shape:
        shape = self._shapes.get((n_persona, n_turns))
        if shape is None:
            arrangement, text = self._write(n_persona, n_turns)
            opening = text.partition(_MARK.format(n_persona + n_turns))[0].removesuffix(" ")
            shape = self._shapes[n_persona, n_turns] = _Shape(arrangement, self._steps(opening, n_persona))
        return shape

    def _write(self, n_persona: int, n_turns: int) -> tuple[Arrangement, str]:
        """Return the first arrangement of marks, the last of them the reply, that the template writes in full."""
        marks = [_MARK.format(number) for number in range(n_persona + n_turns + 1)]
        reply = {"role": "assistant", "content": marks[-1]}
        reason = "it leaves out or changes what is said"
        for arrangement in _arrangements(n_persona, n_turns):
            try:
                text: str = self._apply(
                    [*_arrange(marks[:n_persona], marks[n_persona:-1], arrangement), reply], tokenize=False
                )
            except Exception as error:  # a template is a program, which may fail in any way
                reason = one_line(str(error)) or type(error).__name__
                continue
            opening = text.partition(marks[-1])[0].strip()  # without one there is nothing to foretell a reply from
            if opening and [int(number) for number in _MARKS.findall(text)] == list(range(len(marks))):
                return arrangement, text
        raise UserError(f"this tokenizer's chat template takes no dialog of {n_turns} turns and {n_persona} sentences "
                        f"of persona ({reason.rstrip('.')}); give {argument('layout')} speakers.")  # fmt: skip

    def _steps(self, text: str, n_persona: int) -> list["TokenIds | int | _Joined"]:
        """Cut a context of marks at control tokens, and encode what is fixed."""
        steps: list[TokenIds | int | _Joined] = []
        start, strips_after = 0, False
        for match in (*self._control.finditer(text), None):
            span = text[start : match.start() if match else None]
            token = self._control_tokens[match.group()] if match else None
            span = span.lstrip() if strips_after else span
            span = span.rstrip() if token and token.strips_before else span
            for step in self._span_steps(span, start == 0, n_persona):
                _append(steps, step)
            if match and token:
                _append(steps, [token.id])
                start, strips_after = match.end(), token.strips_after
        return steps

    def _span_steps(self, span: str, is_start: bool, n_persona: int) -> Iterator["TokenIds | int | _Joined"]:
        parts: list[str | int] = [*_MARKS.split(span)]
        parts[1::2] = map(int, parts[1::2])
        parts = [part for part in parts if part != ""]
        numbers = [part for part in parts if isinstance(part, int)]
        has_persona = any(number < n_persona for number in numbers)
        if numbers and not (self._apart.persona if has_persona else self._apart.turns):
            yield _Joined(tuple(parts), is_start)
            return
        for n, part in enumerate(parts):
            yield part if isinstance(part, int) else self._codec.encode(part, is_start and n == 0)

    def _encode_joined(self, span: _Joined, pieces: Sequence[TokenIds]) -> TokenIds:
        """Encode a span as one text. Most recur: one dialog's persona and turns are those of many examples."""
        decode = self._codec.decode
        text = "".join(part if isinstance(part, str) else decode(pieces[part]).strip() for part in span.parts)
        key = (span.is_start, text)
        if key not in self._ids_of_joined:
            if len(self._ids_of_joined) >= MAX_REMEMBERED:
                self._ids_of_joined.clear()
            self._ids_of_joined[key] = self._codec.encode(text, span.is_start)
        return self._ids_of_joined[key]

    def _find_end(self) -> tuple[int, frozenset[int]]:
        """Return the control token that the template puts after a reply, and all that it writes in a dialog."""
        text = self._write(1, 3)[1]
        after = text.partition(_MARK.format(4))[2].lstrip()
        end = self._control.match(after)
        if end is None:
            raise UserError("this tokenizer's chat template does not end a reply by a special token; give "
                            f"{argument('layout')} speakers.")  # fmt: skip
        written = {self._control_tokens[token].id for token in self._control.findall(text)}
        return self._control_tokens[end.group()].id, frozenset(written)

    def _compare_prompt(self) -> None:
        """Say so where a template asks for a reply otherwise than it writes one, as some that make models think do."""
        arrangement, text = self._write(1, 1)
        marks = [_MARK.format(number) for number in range(2)]
        try:
            messages = _arrange(marks[:1], marks[1:], arrangement)
            asking = self._apply(messages, tokenize=False, add_generation_prompt=True)
        except Exception:  # as in _write
            asking = ""
        if asking.rstrip() != text.partition(_MARK.format(2))[0].rstrip():
            logger.warning("the chat template asks for a reply otherwise than it writes one in a dialog; here replies "
                           "begin as in dialogs, but other programs will ask in the other way")  # fmt: skip


def _arrangements(n_persona: int, n_turns: int) -> Iterator[Arrangement]:
    """Yield the arrangements that are possible, the most natural first."""
    user_opens, is_empty = n_turns % 2 == 1, not n_persona and not n_turns
    for has_system, has_opening in product((True, False), (False, True)):
        has_place = has_system or (n_persona and (user_opens or has_opening))
        if has_place and not (user_opens and has_opening) and (has_opening or not is_empty):
            yield Arrangement(has_system, has_opening)


def _arrange(persona: Sequence[str], history: Sequence[str], arrangement: Arrangement) -> list[Message]:
    turns = [
        {"role": "user" if n_to_reply % 2 else "assistant", "content": text}
        for n_to_reply, text in zip(range(len(history), 0, -1), history, strict=True)
    ]
    if arrangement.has_opening:
        turns = [{"role": "user", "content": SILENCE}, *turns]
    if not persona:
        return turns
    text = PERSONA_JOINT.join(persona)
    if arrangement.has_system:
        return [{"role": "system", "content": text}, *turns]
    return [{"role": "user", "content": text + PERSONA_END + turns[0]["content"]}, *turns[1:]]


def _append(steps: list["TokenIds | int | _Joined"], step: "TokenIds | int | _Joined") -> None:
    """Append a step; ids join those before them."""
    if isinstance(step, list) and steps and isinstance(steps[-1], list):
        steps[-1] = steps[-1] + step
    else:
        steps.append(step)


def _probes() -> Iterator[tuple[list[str], list[str]]]:
    """Yield personas and turns that a tokenizer must encode alike apart and in a template.

    What may join with the fixed text are the ends of texts, so there are many kinds of them: vocabularies have tokens
    such as a full stop with line breaks.
    """
    plain = ["i have 2 dogs and a cat .", "hi ! how are you ?", "I'm great, thanks.", "It's 7:30", "ok"]
    for n_persona, n_turns in product(range(3), range(1, 6)):
        yield plain[:n_persona], plain[::-1][:n_turns]
    marks = [*punctuation, "...", "?!", "!!", ".)", '."', "--", ":)", "…", "’", "”", "»", "—", "。", "！", "？", "、"]
    texts = [text for mark in marks for text in (f"{mark}so", f"so{mark}", f"so {mark}")]
    texts += [
        "1987",
        "7 up",
        "Émile",
        "café",
        "😀",
        "hi 👋🏽",
        "Привет",
        "你好",
        "'s",
        "a&b<c>d",
        r"C:\temp",
        'it\'s "so"',
    ]
    texts += ["two  spaces", "one\ntwo", "a.\n\nb", "tab\tbed", " ".join(plain) * 20]
    for n, (one, other) in enumerate(zip(texts, [*texts[1:], texts[0]], strict=True)):
        history = [one, other, one] if n % 2 else [other, one]
        yield [one, other, one], [*history, one]
