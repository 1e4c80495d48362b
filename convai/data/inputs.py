"""THE input builder: persona, history and replies as one sequence, a prompt or a candidate tree.

Training, chat and evaluation all build their inputs here. From file to batch:

    get_dataset -> DialogSplit[i] -> Example -> InputBuilder.fit -> InputBuilder.tree -> collate_trees -> TreeBatch
    (file, cache)  (token ids)                  (length limit)      (one sequence)      (tensors)

How persona and turns are laid out is for layouts.py; the published sequence can be read in
utils.build_input_from_segments.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, TypeVar

from convai.data.layouts import ChatLayout, Layout, layout_of, n_speakers_context
from convai.data.mixture import AnySplit
from convai.data.store import TokenIds
from convai.errors import UserError, argument
from convai.model.tokenization import DialogTokenizer

Turn = TypeVar("Turn")  # text or token ids


def cut_history(history: Sequence[Turn], max_history: int) -> Sequence[Turn]:
    """Return the last `2 * max_history + 1` utterances: `max_history` exchanges and the turn to answer."""
    return history[-(2 * max_history + 1) :]


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


def longest_persona(split: AnySplit) -> int:
    """Return how many positions the longest persona of a split takes, <bos> before it included."""
    return 1 + max(sum(map(len, split.persona(dialog))) for dialog in range(split.n_dialogs))


def fit_segments(
    persona: Sequence[TokenIds],
    history: Sequence[TokenIds],
    candidates: Sequence[TokenIds],
    max_positions: int,
    history_start: int | None = None,
    n_context: Callable[[Sequence[TokenIds], Sequence[TokenIds]], int] = n_speakers_context,
) -> Fitted:
    """Cut segments until context and longest candidate take at most `max_positions` positions.

    First the oldest utterances go, then the beginning of the last one (its final token stays as long as possible), then
    persona sentences from the last, then that token. Candidates too long even so lose their ends, never their end mark.

    With `history_start` the persona takes the positions before it, no more and no less: a longer one loses its end.
    `n_context` counts the tokens of a layout's context. Raises UserError where not even an empty dialog fits.
    """
    longest = max(map(len, candidates)) + 1  # its end
    was_cut = False
    if history_start is not None and 1 + sum(map(len, persona)) > history_start:  # <bos>
        persona, was_cut = _cut_end(persona, history_start - 1), True

    def excess() -> int:
        n_skipped = 0 if history_start is None else history_start - 1 - sum(map(len, persona))
        return n_skipped + n_context(persona, history) + longest - max_positions

    if excess() <= 0:
        return Fitted(persona, history, candidates, was_cut)
    persona, history = list(persona), list(history)
    while len(history) > 1 and excess() > 0:
        history.pop(0)
    # Once will do, unless what is left of the turn is encoded anew, together with the text around it.
    while history and len(history[0]) > 1 and (n_over := excess()) > 0:
        history[0] = history[0][min(n_over, len(history[0]) - 1) :]
    while persona and history_start is None and excess() > 0:
        persona.pop()
    if history and excess() > 0:
        history.pop()
    if (n_over := excess()) > 0:
        if n_over >= longest:
            raise UserError(f"the model's {max_positions} positions are too few: what stands before any reply takes "
                            f"{max_positions + n_over - longest}; use a model of more.")  # fmt: skip
        candidates = [candidate[: longest - 1 - n_over] for candidate in candidates]
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

    The context ends with what opens a reply, which all candidates share, so it also predicts their first token.
    """

    input_ids: list[int]
    token_type_ids: list[int]
    position_ids: list[int]  # every branch continues where the context ends
    branch_ids: list[int]  # 0 context, k the k-th candidate
    mc_indices: list[int]  # (C,) each candidate's last position
    lm_indices: list[int]  # (N,) the positions that predict the gold reply and its end, or those of every candidate
    lm_targets: list[int]  # (N,) what they should predict
    was_cut: bool  # whether something was left out to fit the model
    source: int = 0  # which of several data sets the example is of

    @property
    def lengths(self) -> list[int]:
        """How many tokens each of the C candidates has, its end included."""
        ends = [self.lm_indices[0], *self.mc_indices]  # first of all, that of the context
        return [end - start for start, end in pairwise(ends)]


@dataclass(frozen=True)
class InputBuilder:
    """Builds the inputs of one model: its vocabulary, its number of positions, and where its history starts."""

    tokenizer: DialogTokenizer
    max_positions: int
    history_start: int | None = None  # position of the first token after the persona; None: wherever the persona ends

    def __post_init__(self) -> None:
        """Raises UserError for aligned histories in a layout that has text of its own within the persona's part."""
        if self.history_start is not None and isinstance(self.layout, ChatLayout):
            raise UserError(f"{argument('align_history')} is for {argument('layout')} speakers; leave it out.")

    @cached_property
    def layout(self) -> Layout:
        return layout_of(self.tokenizer)

    def fit(self, persona: Sequence[TokenIds], history: Sequence[TokenIds], candidates: Sequence[TokenIds]) -> Fitted:
        """Cut segments until context and longest candidate fit the model; see fit_segments."""
        return fit_segments(persona, history, candidates, self.max_positions, self.history_start, self.layout.n_context)

    def prompt(self, persona: Sequence[TokenIds], history: Sequence[TokenIds], n_reserved: int = 0) -> Prompt:
        """Build an input that is open at its end, cut so that a reply of `n_reserved` tokens still has positions."""
        fitted = self.fit(persona, history, [[0] * n_reserved])
        return self._context(fitted.persona, fitted.history)

    def tree(
        self,
        persona: Sequence[TokenIds],
        history: Sequence[TokenIds],
        candidates: Sequence[TokenIds],
        *,
        predicts_all: bool = False,
    ) -> CandidateTree:
        """Put an example's candidate replies (the gold last) into one sequence behind their shared context.

        Under model.transformer.tree_mask each branch computes what the input of that candidate alone would. The limit
        of positions applies to context and longest candidate together, not to the tree. Its targets are the gold
        reply's or, with `predicts_all`, those of all candidates, one after the other.
        """
        persona, history, candidates, was_cut = self.fit(persona, history, candidates)
        input_ids, token_type_ids, position_ids = self._context(persona, history)
        n_context = len(input_ids)
        branch_start, branch_ids = position_ids[-1] + 1, [0] * n_context
        mc_indices: list[int] = []
        lm_indices: list[int] = []
        lm_targets: list[int] = []
        for branch, candidate in enumerate(candidates, start=1):
            start, length = len(input_ids), len(candidate) + 1
            input_ids += [*candidate, self.layout.end_id]
            position_ids += range(branch_start, branch_start + length)
            branch_ids += [branch] * length
            mc_indices.append(start + length - 1)
            if predicts_all or branch == len(candidates):
                lm_indices += [n_context - 1, *range(start, start + length - 1)]
                lm_targets += input_ids[start:]
        token_type_ids += [self.layout.reply_type] * (len(input_ids) - n_context)
        return CandidateTree(
            input_ids, token_type_ids, position_ids, branch_ids, mc_indices, lm_indices, lm_targets, was_cut
        )

    def _context(self, persona: Sequence[TokenIds], history: Sequence[TokenIds]) -> Prompt:
        """Return what stands before a reply, which all candidates share."""
        input_ids, token_type_ids = self.layout.context(persona, history)
        n_persona = 1 + sum(map(len, persona))  # <bos>; of use only where the history is aligned
        position_ids = (
            list(range(len(input_ids)))
            if self.history_start is None
            else positions(n_persona, len(input_ids), self.history_start)
        )
        return Prompt(input_ids, token_type_ids, position_ids)
