"""THE input builder: persona, history and replies as one sequence, a prompt or a candidate tree.

Training, chat and evaluation all build their inputs here. From file to batch:

    get_dataset -> DialogSplit[i] -> Example -> InputBuilder.fit -> InputBuilder.tree -> collate_trees -> TreeBatch
    (file, cache)  (token ids)                  (length limit)      (one sequence)      (tensors)

The sequence itself, as published, can be read in utils.build_input_from_segments.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from convai.data.store import DialogSplit, TokenIds
from convai.model.tokenization import DialogTokenizer
from convai.model.vocabulary import SPECIAL_TOKENS

Turn = TypeVar("Turn")  # text or token ids


def cut_history(history: Sequence[Turn], max_history: int) -> Sequence[Turn]:
    """Return the last `2 * max_history + 1` utterances: `max_history` exchanges and the turn to answer."""
    return history[-(2 * max_history + 1) :]


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


def positions(n_persona: int, n_tokens: int, history_start: int | None = None) -> list[int]:
    """Return the positions of `n_tokens` tokens, of which the persona with <bos> is the first `n_persona`.

    What follows it is numbered from `history_start`, where that is given, however short the persona is.
    """
    start = n_persona if history_start is None else history_start
    return [*range(n_persona), *range(start, start + n_tokens - n_persona)]


class Prompt(NamedTuple):
    """An input that is open at its end, where a reply is to be generated; lists of length T."""

    input_ids: list[int]
    token_type_ids: list[int]
    position_ids: list[int]


class Fitted(NamedTuple):
    """Persona, history and candidate replies that fit a model, and whether anything was cut for that."""

    persona: Sequence[TokenIds]
    history: Sequence[TokenIds]
    candidates: Sequence[TokenIds]
    was_cut: bool


def longest_persona(split: DialogSplit) -> int:
    """Return how many positions the longest persona of a split takes, <bos> before it included."""
    return 1 + max(sum(map(len, split.persona(dialog))) for dialog in range(split.n_dialogs))


def fit_segments(
    persona: Sequence[TokenIds],
    history: Sequence[TokenIds],
    candidates: Sequence[TokenIds],
    max_positions: int,
    history_start: int | None = None,
) -> Fitted:
    """Cut segments until context and longest candidate take at most `max_positions` positions.

    First the oldest utterances go, then the beginning of the last one (its final token stays as long as possible), then
    persona sentences from the last, then that token. Candidates too long even so lose their ends, never their <eos>.

    With `history_start` the persona takes the positions before it, no more and no less: a longer one loses its end.
    """
    longest = max(map(len, candidates)) + 1  # <eos>
    n_persona = 1 + sum(map(len, persona))  # <bos>
    was_cut = False
    if history_start is not None and n_persona > history_start:
        persona, was_cut = _cut_end(persona, history_start - 1), True
    n_persona = n_persona if history_start is None else history_start
    excess = n_persona + sum(len(turn) + 1 for turn in history) + 1 + longest - max_positions  # 1: <speaker1>
    if excess <= 0:
        return Fitted(persona, history, candidates, was_cut)
    persona, history = list(persona), list(history)
    while excess > 0 and len(history) > 1:
        excess -= len(history.pop(0)) + 1
    if excess > 0 and history:
        n_cut = max(0, min(excess, len(history[0]) - 1))
        history[0] = history[0][n_cut:]
        excess -= n_cut
    while excess > 0 and persona and history_start is None:
        excess -= len(persona.pop())
    if excess > 0 and history:
        excess -= len(history.pop()) + 1
    if excess > 0:
        candidates = [candidate[: longest - 1 - excess] for candidate in candidates]
    return Fitted(persona, history, candidates, True)


def _cut_end(sentences: Sequence[TokenIds], n_tokens: int) -> list[TokenIds]:
    """Return the sentences up to the first `n_tokens` tokens."""
    kept = []
    for sentence in sentences:
        kept.append(sentence[:n_tokens])
        n_tokens -= len(kept[-1])
    return [sentence for sentence in kept if len(sentence)]


class CandidateTree(NamedTuple):
    """One example's context and, after it, its candidates as branches; lists of length T unless said otherwise.

    The context ends with the reply's <speaker1>, which all candidates share, so it also predicts their first token.
    """

    input_ids: list[int]
    token_type_ids: list[int]
    position_ids: list[int]  # every branch continues where the context ends
    branch_ids: list[int]  # 0 context, k the k-th candidate
    mc_indices: list[int]  # (C,) each candidate's last position
    lm_indices: list[int]  # (N,) the positions that predict the gold reply and its <eos>
    lm_targets: list[int]  # (N,) what they should predict
    was_cut: bool  # whether something was left out to fit the model


@dataclass(frozen=True)
class InputBuilder:
    """Builds the inputs of one model: its vocabulary, its number of positions, and where its history starts."""

    tokenizer: DialogTokenizer
    max_positions: int
    history_start: int | None = None  # position of the first token after the persona; None: wherever the persona ends

    def fit(self, persona: Sequence[TokenIds], history: Sequence[TokenIds], candidates: Sequence[TokenIds]) -> Fitted:
        """Cut segments until context and longest candidate fit the model; see fit_segments."""
        return fit_segments(persona, history, candidates, self.max_positions, self.history_start)

    def prompt(self, persona: Sequence[TokenIds], history: Sequence[TokenIds], n_reserved: int = 0) -> Prompt:
        """Build an input that is open at its end, cut so that a reply of `n_reserved` tokens still has positions."""
        fitted = self.fit(persona, history, [[0] * n_reserved])
        return self._context(fitted.persona, fitted.history)

    def tree(
        self, persona: Sequence[TokenIds], history: Sequence[TokenIds], candidates: Sequence[TokenIds]
    ) -> CandidateTree:
        """Put an example's candidate replies (the gold last) into one sequence behind their shared context.

        Under model.transformer.tree_mask each branch computes what the input of that candidate alone would. The limit
        of positions applies to context and longest candidate together, not to the tree.
        """
        persona, history, candidates, was_cut = self.fit(persona, history, candidates)
        input_ids, token_type_ids, position_ids = self._context(persona, history)
        n_context = len(input_ids)
        branch_start, branch_ids = position_ids[-1] + 1, [0] * n_context
        mc_indices = []
        for branch, candidate in enumerate(candidates, start=1):
            start, length = len(input_ids), len(candidate) + 1
            input_ids += [*candidate, self.tokenizer.eos_id]
            position_ids += range(branch_start, branch_start + length)
            branch_ids += [branch] * length
            mc_indices.append(start + length - 1)
        token_type_ids += [self.tokenizer.speaker1_id] * (len(input_ids) - n_context)
        lm_indices = [n_context - 1, *range(start, start + length - 1)]
        lm_targets = input_ids[start:]
        return CandidateTree(
            input_ids, token_type_ids, position_ids, branch_ids, mc_indices, lm_indices, lm_targets, was_cut
        )

    def _context(self, persona: Sequence[TokenIds], history: Sequence[TokenIds]) -> Prompt:
        """Return persona, history and the reply's <speaker1>, which all candidates share."""
        segments = lay_out(persona, history, [], self.tokenizer, with_eos=False)
        input_ids = [token for segment in segments for token in segment.ids]
        token_type_ids = [segment.speaker for segment in segments for _ in segment.ids]
        n_persona = 1 + sum(map(len, persona))
        return Prompt(input_ids, token_type_ids, positions(n_persona, len(input_ids), self.history_start))
