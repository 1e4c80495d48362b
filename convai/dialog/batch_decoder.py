"""Replies token by token, for rows that come and go: each with its own prompt, settings and random numbers.

    decoder = BatchDecoder(model, tokenizer)
    keys = decoder.admit([ReplyRequest(prompt, settings, seed)])    # at any time, whoever else is there
    while decoder.n_rows:
        for key, token, end in decoder.step():                      # a token for every row
            ...

In fp32 what a row says does not depend on who else is there; in fewer bits its logits do, by rounding.

Shapes: B rows, K tokens of the longest, V vocabulary.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from convai.data.inputs import Prompt
from convai.dialog.prefix_memory import PrefixMemory
from convai.dialog.sampling import block_ngrams, choose_tokens
from convai.model.heads import DoubleHeads
from convai.model.row_cache import CacheOfRows
from convai.model.tokenization import DialogTokenizer
from convai.options import DecodingSettings


class ReplyRequest(NamedTuple):
    """What is to be replied to, and how; num_beams is not looked at.

    With a seed what is drawn depends on it and the prompt alone; without one torch's global generator is used.
    """

    prompt: Prompt
    settings: DecodingSettings
    seed: int | None = None


class Said(NamedTuple):
    """What a step chose for a row. A row that has ended is out of the batch."""

    key: int
    token: int | None  # None: a special token, which ends a reply and is no part of it
    end: str | None = None  # "stop" at such a token; "length" where this token was the last that there is room for


@dataclass
class _Row:
    key: int
    request: ReplyRequest
    generator: random.Random | None
    max_length: int
    min_length: int
    n_read: int  # tokens of prompt and reply in the cache
    reply: list[int] = field(default_factory=list)

    @property
    def choice(self) -> tuple[object, ...]:
        """What rows whose tokens are chosen in one go have in common."""
        settings = self.request.settings
        if not settings.samples:
            return ()
        return (settings.temperature, settings.top_k, settings.top_p, self.generator is None)

    def tokens_read(self) -> Prompt:
        """Return what the cache holds of it."""
        prompt, n_said = self.request.prompt, self.n_read - len(self.request.prompt.input_ids)
        first = prompt.position_ids[-1] + 1
        return Prompt(
            prompt.input_ids + self.reply[:n_said],
            prompt.token_type_ids + prompt.token_type_ids[-1:] * n_said,
            prompt.position_ids + list(range(first, first + n_said)),
        )


@dataclass
class _Group:
    """Rows that share a cache, and stand in its order."""

    cache: CacheOfRows
    rows: list[_Row] = field(default_factory=list)
    logits: Tensor | None = None  # (B, V) of what follows the rows, where that is known already

    def leave(self, row: _Row) -> None:
        """Leave out a row; the last one takes its place."""
        i, last = self.rows.index(row), len(self.rows) - 1
        self.rows[i] = self.rows[last]
        del self.rows[last]
        self.cache.drop(i)
        if self.rows:
            self.cache.narrow(max(row.n_read for row in self.rows))
        if self.logits is not None:
            self.logits = torch.cat([self.logits[:i], self.logits[last:], self.logits[i + 1 : last]])[:last]


class BatchDecoder:
    """Rows in flight of one model. Not for several threads at once."""

    def __init__(self, model: DoubleHeads, tokenizer: DialogTokenizer, memory: PrefixMemory | None = None):
        """`memory`, where given, keeps what was read for rows that have ended, for those that begin alike."""
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.memory = memory
        self.n_tokens_read = 0  # in all, by the model
        self._keys = count()
        self._batch = _Group(model.new_cache())
        self._newcomers: list[_Group] = []  # they join the batch in the next step
        # What stands for text without a token would show as "<unk>"; rows without one only pad the matrix.
        unsayable = [] if tokenizer.unknown_id is None else [tokenizer.unknown_id]
        unsayable += range(len(tokenizer), model.config.vocab_size)
        self._unsayable = torch.tensor(unsayable, dtype=torch.long, device=model.device)
        self._ending = sorted(tokenizer.ending_ids)

    @property
    def n_rows(self) -> int:
        """How many rows are in flight."""
        return sum(len(group.rows) for group in (self._batch, *self._newcomers))

    @torch.inference_mode()
    def admit(self, requests: Sequence[ReplyRequest]) -> list[int]:
        """Read the requests' prompts, let them join the batch, and return a key for each.

        Every reply gets as many tokens as its settings and the model's positions leave room for.
        """
        rows = list(map(self._row, requests))
        unread: list[_Row] = []
        alike: list[tuple[_Row, int]] = []  # whose prompt is that of a place among the unread
        for row in rows:
            prompt = row.request.prompt
            place = next((i for i, other in enumerate(unread) if other.request.prompt == prompt), None)
            if place is not None:
                alike.append((row, place))
            elif known := self.memory.take(prompt) if self.memory else None:
                # Alone, as what is known has no padding within.
                logits = self._read([prompt], known.n_tokens, known.cache)
                self._newcomers.append(_Group(known.cache, [row], logits))
            else:
                unread.append(row)
        if unread:
            cache = self.model.new_cache()
            logits = self._read([row.request.prompt for row in unread], 0, cache)
            copies = [_Group(cache.part(i, row.n_read, row.n_read), [row], logits[i : i + 1]) for row, i in alike]
            self._newcomers += [_Group(cache, unread, logits), *copies]
        return [row.key for row in rows]

    def _row(self, request: ReplyRequest) -> _Row:
        prompt, settings = request.prompt, request.settings
        n_used, n_positions = 1 + prompt.position_ids[-1], self.model.config.n_positions
        assert n_used <= n_positions, f"{n_used} tokens exceed {n_positions} positions"
        room = n_positions - n_used + 1  # the last token is read by nobody and needs no position
        is_seeded = request.seed is not None and settings.samples
        generator = random.Random(f"{request.seed} {prompt.input_ids}") if is_seeded else None
        max_length, min_length = min(settings.max_length, room), min(settings.min_length, room)
        return _Row(next(self._keys), request, generator, max_length, min_length, len(prompt.input_ids))

    def _read(self, prompts: Sequence[Prompt], n_known: int, cache: CacheOfRows) -> Tensor:
        """Read prompts together behind the first `n_known` tokens, which the cache holds; return the logits (B, V)."""
        lengths = [len(prompt.input_ids) for prompt in prompts]
        longest = max(lengths)

        def padded(key: str, padding: int) -> Tensor:
            rows = [getattr(prompt, key)[n_known:] for prompt in prompts]
            return torch.tensor([[padding] * (longest - n_known - len(row)) + row for row in rows])

        self.n_tokens_read += sum(lengths) - n_known * len(prompts)
        ids, types = (padded(key, self.tokenizer.pad_id) for key in ("input_ids", "token_type_ids"))
        return self._logits(ids, types, padded("position_ids", 0), lengths, cache)

    def _logits(
        self, ids: Tensor, types: Tensor, positions: Tensor, lengths: Sequence[int], cache: CacheOfRows
    ) -> Tensor:
        """Return the logits (B, V) of what follows ids (B, Q), the last of rows that have `lengths` with them."""
        device = self.model.device
        longest = max(lengths)
        mask = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
        ids, types, positions, mask = (x.to(device) for x in (ids, types, positions, mask.long()))
        return self.model.next_token_logits(ids, types, positions, mask, cache)

    @torch.inference_mode()
    def step(self) -> list[Said]:
        """Choose a token for every row, in the order of their keys; those that have ended leave the batch."""
        rows, logits = self._batch.rows, []
        if rows:
            logits.append(self._read_last_tokens())
        for newcomers in self._newcomers:
            self._batch.cache.join(newcomers.cache)
            rows += newcomers.rows
            assert newcomers.logits is not None
            logits.append(newcomers.logits)
        self._newcomers = []
        if not rows:
            return []
        tokens = self._choose(torch.cat(logits))
        said = [self._say(row, token) for row, token in zip(rows, tokens, strict=True)]
        for one in said:
            if one.end:
                self.drop(one.key)
        return sorted(said)

    def _read_last_tokens(self) -> Tensor:
        """Let the model read what the last step chose; return the logits (B, V) of what follows."""
        rows = self._batch.rows
        ids = [[row.reply[-1]] for row in rows]
        types = [row.request.prompt.token_type_ids[-1:] for row in rows]
        positions = [[row.request.prompt.position_ids[-1] + len(row.reply)] for row in rows]
        for row in rows:
            row.n_read += 1
        self.n_tokens_read += len(rows)
        lengths = [row.n_read for row in rows]
        return self._logits(torch.tensor(ids), torch.tensor(types), torch.tensor(positions), lengths, self._batch.cache)

    def _choose(self, logits: Tensor) -> list[int]:
        """Return the next token of every row by logits (B, V) of what follows them."""
        scores = logits.to(torch.float32, copy=True)
        all_rows = self._batch.rows
        if len(self._unsayable):
            scores.index_fill_(1, self._unsayable, -math.inf)
        groups: dict[tuple[object, ...], list[int]] = {}
        for i, row in enumerate(all_rows):
            if len(row.reply) < row.min_length:
                scores[i, self._ending] = -math.inf
            if n := row.request.settings.no_repeat_ngram_size:
                block_ngrams(scores[i], row.reply, n)
            groups.setdefault(row.choice, []).append(i)
        tokens = [0] * len(all_rows)
        for members in groups.values():
            rows = [all_rows[i] for i in members]
            generators = [row.generator for row in rows if row.generator is not None]
            some = scores if len(groups) == 1 else scores[members]
            chosen = choose_tokens(some, rows[0].request.settings, generators or None)
            for i, token in zip(members, chosen, strict=True):
                tokens[i] = token
        return tokens

    def _say(self, row: _Row, token: int) -> Said:
        if token in self.tokenizer.ending_ids:
            # Any special token ends a reply, as published: after it the turn would be another's.
            return Said(row.key, None, "stop")
        row.reply.append(token)
        return Said(row.key, token, "length" if len(row.reply) == row.max_length else None)

    @torch.inference_mode()
    def drop(self, key: int) -> None:
        """Leave out a row, whatever it still had to say. KeyError where it has ended or never was."""
        for group in (self._batch, *self._newcomers):
            for place, row in enumerate(group.rows):
                if row.key == key:
                    if self.memory:
                        self.memory.put(row.tokens_read(), group.cache.part(place, row.n_read, row.n_read))
                    group.leave(row)
                    self._newcomers = [others for others in self._newcomers if others.rows]
                    return
        raise KeyError(key)
