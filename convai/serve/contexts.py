"""Persona and turns to the model's input, exactly as the chat makes it."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate

from convai.data.inputs import InputBuilder, Prompt, cut_history
from convai.data.store import TokenIds
from convai.dialog.agent import DialogAgent
from convai.dialog.ranking import LikelihoodAlone, score_candidates
from convai.io.plain_text import plain_line
from convai.options import DecodingSettings
from convai.serve.messages import Asked

MAX_REMEMBERED = 10_000  # replies
MAX_ALONE = 5_000  # candidates
SHORT = 500  # characters of texts whose tokens are kept


class OwnReplies:
    """The token ids of replies as they were made: decoded, "hello ." is "hello.", which GPT-2 would read as others.

    A reply is known by all turns up to it, whose hash is all that is kept of what was said.
    """

    def __init__(self, size: int = MAX_REMEMBERED):
        self.size = size
        self._ids: OrderedDict[bytes, TokenIds] = OrderedDict()

    def add(self, turns: Sequence[str], reply: str, ids: TokenIds) -> None:
        """Remember the reply to `turns`; the first of several ways to spell it stays."""
        self._ids.setdefault(_hashes([*turns, reply])[-1], ids)
        while len(self._ids) > self.size:
            self._ids.popitem(last=False)

    def of(self, turns: Sequence[str]) -> list[TokenIds | None]:
        """Return for each turn the ids that it was made of; None for what was not made here."""
        return [self._ids.get(key) for key in _hashes(turns)]


def _hashes(turns: Iterable[str]) -> list[bytes]:
    """Return for each turn a hash of it and of all before it."""

    def extend(so_far: bytes, turn: str) -> bytes:
        return hashlib.sha256(so_far + turn.encode("utf-8", "surrogatepass")).digest()

    return list(accumulate(turns, extend, initial=b""))[1:]


class Contexts:
    """Makes the inputs of one agent's model. Not to be used by several threads at once."""

    def __init__(self, agent: DialogAgent):
        self.agent = agent
        self.max_history = agent.max_history
        self.inputs = InputBuilder(agent.tokenizer, agent.model.config.n_positions, agent.model.config.history_start)
        self.own = OwnReplies()
        self._encode_short = lru_cache(maxsize=5_000)(agent.tokenizer.encode)
        self._alone = LikelihoodAlone(MAX_ALONE)

    def limited(self, settings: DecodingSettings) -> DecodingSettings:
        """Return settings by which a reply takes at most half the model's positions, as in the chat."""
        max_length = min(settings.max_length, self.inputs.max_positions // 2)
        return replace(settings, max_length=max_length, min_length=min(settings.min_length, max_length))

    def prompt(self, asked: Asked, max_length: int) -> Prompt:
        """Return the open input of a dialog, cut so that a reply of `max_length` tokens still has positions."""
        persona, history = self.encoded(asked)
        return self.inputs.prompt(persona, history, max_length)

    def encoded(self, asked: Asked) -> tuple[list[TokenIds], list[TokenIds]]:
        turns = cut_history(asked.turns, self.max_history)
        made = cut_history(self.own.of(asked.turns), self.max_history)
        history = [ids or self._encode(plain_line(turn)) for turn, ids in zip(turns, made, strict=True)]
        return list(map(self._encode, asked.persona)), history

    def _encode(self, text: str) -> TokenIds:
        return self._encode_short(text) if len(text) <= SHORT else self.agent.tokenizer.encode(text)

    def scores(self, asked: Asked, candidates: Sequence[str], by: str) -> tuple[list[float], int]:
        """Return the candidates' scores, in their order, and how many tokens were read.

        Raises NoFigure for a ranking head that has never been trained.
        """
        persona, history = self.encoded(asked)
        encoded = [self._encode(plain_line(candidate)) for candidate in candidates]
        question = (persona, history, encoded)
        scored = score_candidates(self.agent.model, self.inputs, [question], (by,), self._alone)
        return scored[by][0], sum(map(len, (*persona, *history, *encoded)))
