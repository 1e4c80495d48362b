"""How persona and turns become one sequence: the paper's, with speakers' tokens, or the model's own chat template.

    speakers   <bos> persona... | <speaker2> user turn | <speaker1> own turn | ... | <speaker1>     reply <eos>
    chat       system message | user turn | assistant turn | ... | what opens an assistant's turn   reply <its end>

A layout gives the context of a reply; candidates and their end follow it (see inputs.InputBuilder).
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from convai.data.store import TokenIds
from convai.model.chat_template import ChatTemplate
from convai.model.tokenization import DialogTokenizer
from convai.model.vocabulary import SPECIAL_TOKENS


class TokenNumbers(Protocol):
    """What has an id for each of the dialog tokens: our tokenizers, and those of transformers."""

    def convert_tokens_to_ids(self, tokens: Sequence[str], /) -> list[int]: ...


class Segment(NamedTuple):
    """Token ids that one speaker says, given by the speaker's token; `is_target` where they are to be predicted."""

    ids: Sequence[int]
    speaker: int
    is_target: bool = False


def lay_out(
    persona: Sequence[TokenIds],
    history: Sequence[TokenIds],
    reply: TokenIds,
    tokenizer: TokenNumbers,
    with_eos: bool = True,
) -> list[Segment]:
    """Return the segments of one input in their order (Wolf et al., 2019, section 3).

    <bos> persona... | <speaker2> user turn | <speaker1> own turn | ... | <speaker1> reply <eos>
    """
    bos, eos, speaker1, speaker2 = tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS[:4])
    segments = [Segment([bos], speaker1), *(Segment(sentence, speaker1) for sentence in persona)]
    for n_turns_to_reply, turn in zip(range(len(history), 0, -1), history, strict=True):
        # Counted backwards from the reply, so that a history that starts with an own turn keeps its roles.
        speaker = speaker2 if n_turns_to_reply % 2 else speaker1
        segments.append(Segment([speaker, *turn], speaker))
    target = Segment([*reply, eos] if with_eos else reply, speaker1, is_target=True)
    return [*segments, Segment([speaker1], speaker1), target]


def n_speakers_context(persona: Sequence[TokenIds], history: Sequence[TokenIds]) -> int:
    """Return how many tokens stand before a reply: <bos>, persona, turns with their speakers, the reply's speaker."""
    return 1 + sum(map(len, persona)) + sum(len(turn) + 1 for turn in history) + 1


class ContextIds(NamedTuple):
    """What stands before a reply, and who says it."""

    input_ids: list[int]
    token_type_ids: list[int]  # the speaker's token


class Part(NamedTuple):
    """Token ids of a context, and whose they are: "persona", "user", "agent", or "" where they belong to the layout."""

    ids: Sequence[int]
    who: str


class Layout(Protocol):
    """Makes the context of a reply."""

    reply_type: int  # token type of the reply
    end_id: int  # ends it

    def context(self, persona: Sequence[TokenIds], history: Sequence[TokenIds]) -> ContextIds:
        """Return persona and history, the user's turn last, up to where the reply begins."""

    def n_context(self, persona: Sequence[TokenIds], history: Sequence[TokenIds]) -> int:
        """Return how many tokens that is."""

    def parts(self, persona: Sequence[TokenIds], history: Sequence[TokenIds]) -> list[Part]:
        """Return the same in parts, to be shown."""


class SpeakersLayout:
    """The paper's: all candidates share the reply's <speaker1>, which ends the context."""

    def __init__(self, tokenizer: DialogTokenizer):
        self.tokenizer = tokenizer
        self.reply_type = tokenizer.speaker1_id
        self.end_id = tokenizer.eos_id

    def context(self, persona: Sequence[TokenIds], history: Sequence[TokenIds]) -> ContextIds:
        segments = lay_out(persona, history, [], self.tokenizer, with_eos=False)
        return ContextIds(
            [token for segment in segments for token in segment.ids],
            [segment.speaker for segment in segments for _ in segment.ids],
        )

    def n_context(self, persona: Sequence[TokenIds], history: Sequence[TokenIds]) -> int:
        return n_speakers_context(persona, history)

    def parts(self, persona: Sequence[TokenIds], history: Sequence[TokenIds]) -> list[Part]:
        *segments, _ = lay_out(persona, history, [], self.tokenizer, with_eos=False)
        names = ["", *("persona" for _ in persona), *_speakers(len(history)), ""]
        return [Part(segment.ids, who) for segment, who in zip(segments, names, strict=True)]


class ChatLayout:
    """The tokenizer's own chat template; without token types, all of which are 0."""

    def __init__(self, template: ChatTemplate):
        self.template = template
        self.reply_type = 0
        self.end_id = template.end_id

    def context(self, persona: Sequence[TokenIds], history: Sequence[TokenIds]) -> ContextIds:
        ids = self.template.context(persona, history)
        return ContextIds(ids, [self.reply_type] * len(ids))

    def n_context(self, persona: Sequence[TokenIds], history: Sequence[TokenIds]) -> int:
        return len(self.template.context(persona, history))

    def parts(self, persona: Sequence[TokenIds], history: Sequence[TokenIds]) -> list[Part]:
        names = [*("persona" for sentence in persona if sentence), *_speakers(len(history))]
        numbered = self.template.parts(persona, history)
        return [Part(ids, "" if number is None else names[number]) for ids, number in numbered]


def _speakers(n_turns: int) -> list[str]:
    """Return who says the turns before a reply of the agent's."""
    return ["user" if n_to_reply % 2 else "agent" for n_to_reply in range(n_turns, 0, -1)]


def layout_of(tokenizer: DialogTokenizer) -> Layout:
    """Return the layout that a tokenizer was loaded for."""
    template: ChatTemplate | None = getattr(tokenizer, "template", None)
    return ChatLayout(template) if template else SpeakersLayout(tokenizer)
