"""hits@1, perplexity and F1 by our own implementation, on data of any form that training reads; needs no ParlAI."""

import logging
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

from convai.data.build import build_arrays
from convai.data.conversation import Dialog
from convai.data.formats import load_each_for_evaluation
from convai.data.lost_text import LostText
from convai.data.same_reply import without_twins
from convai.data.store import N_VALIDATION_DISTRACTORS, DialogSplit
from convai.dialog.agent import Context, DialogAgent
from convai.errors import NoFigure, argument
from convai.evaluation.metrics import (
    WordPerplexity,
    count_words,
    dictionary_texts,
    f1_summands,
    figures,
    gold_rank,
    hit_summands,
    perplexity_summands,
)
from convai.evaluation.report import Ranking
from convai.options import EvaluationOptions

logger = logging.getLogger(__name__)


class GoldReply(NamedTuple):
    """One reply to evaluate, as text: what it answers to, and the candidates that it is the last of."""

    context: Context
    candidates: Sequence[str]

    @property
    def gold(self) -> str:
        return self.candidates[-1]

    @property
    def n_characters(self) -> int:
        """About how long its tree is: what batches are sorted by."""
        return sum(map(len, [*self.context.persona, *self.context.history, *self.candidates]))


class OwnEvaluation:
    """The metrics by our own implementation, on data of any form that training reads."""

    def __init__(self, args: EvaluationOptions):
        self.name = args.dataset_path
        self.batch_size = args.batch_size
        self.max_history = args.max_history
        self.rank_by = args.rank_by
        self.ranking: Ranking | None = None  # known once the candidates of all examples are
        self.seed = args.sampling_seed
        self.distractors = args.distractors
        loaded = load_each_for_evaluation(args.dataset_path, args.reading())
        self.train = [dialog for train, _ in loaded for dialog in train]
        self.by_source = [valid for _, valid in loaded]
        self.valid = [dialog for valid in self.by_source for dialog in valid]
        self.has_told_losses = False
        logger.info("%s: %d dialogs to evaluate on", self.name, len(self.valid))

    def start(self, eval_type: str, agent: DialogAgent) -> tuple[int, Iterator[dict[str, float]]]:
        """Return the number of examples and an iterator that scores them, yielding the figures so far.

        Raises NoFigure where there is nothing to rank: a single candidate is a hit by definition.
        """
        self.agent = agent
        self._tell_losses()
        examples = self.examples_to_rank(agent) if eval_type == "hits@1" else self.gold_replies()
        if eval_type == "ppl":
            self.words = WordPerplexity(agent.tokenizer, count_words(dictionary_texts(self.train, self.valid)))
            logger.info("dictionary: %d entries", self.words.n_entries)
        return len(examples), self._steps(eval_type, examples)

    def examples_to_rank(self, agent: DialogAgent) -> list[GoldReply]:
        """Return the examples with the candidates that this agent is to rank; NoFigure as `start` does."""
        self.agent = agent
        return self._with_distractors(self.gold_replies())

    def gold_replies(self) -> list[GoldReply]:
        """Return the examples with the candidates that the data offer."""
        return [
            GoldReply(Context(dialog["personality"], utterance["history"]), utterance["candidates"])
            for dialog in self.valid
            for utterance in dialog["utterances"]
        ]

    def _steps(self, eval_type: str, examples: Sequence[GoldReply]) -> Iterator[dict[str, float]]:
        score = {"hits@1": self._hits, "ppl": self._perplexities, "f1": self._f1}[eval_type]
        totals: Counter = Counter()
        for batch in shuffled_batches(examples, self.batch_size):
            for summands in score(batch):
                totals.update(summands)
            yield figures(totals)

    def _hits(self, batch: Sequence[GoldReply]) -> list[dict[str, float]]:
        scores = self.agent.rank_batch([(example.context, example.candidates) for example in batch], self.rank_by)
        return [hit_summands(gold_rank(e.candidates, row, e.gold)) for e, row in zip(batch, scores, strict=True)]

    def _perplexities(self, batch: Sequence[GoldReply]) -> list[dict[str, float]]:
        scores = self.words.score(self.agent, [(example.context, example.gold) for example in batch])
        return list(map(perplexity_summands, scores))

    def _f1(self, batch: Sequence[GoldReply]) -> list[dict[str, float]]:
        replies = self.agent.reply_batch([example.context for example in batch], self.seed)
        return [f1_summands(reply, example.gold) for reply, example in zip(replies, batch, strict=True)]

    def _with_distractors(self, examples: Sequence[GoldReply]) -> list[GoldReply]:
        """Give each example the candidates that training's validation ranks.

        Those that are the gold reply once more are left out; where it alone is left, distractors are drawn.
        """
        encode = cache(self.agent.tokenizer.encode)
        examples = [e._replace(candidates=without_twins(e.candidates, [e.gold], encode)) for e in examples]
        alone = [i for i, example in enumerate(examples) if len(example.candidates) == 1]
        for i, drawn in self._drawn_for(alone):
            examples[i] = examples[i]._replace(candidates=[*(examples[j].gold for j in drawn), examples[i].gold])
        n_single = sum(len(example.candidates) == 1 for example in examples)
        if n_single == len(examples):
            raise NoFigure(f"{argument('dataset_path')} {self.name}: no example has candidates to rank, and other "
                           "dialogs have no other replies to draw them from; hits@1 needs some.")  # fmt: skip
        self.ranking = Ranking.of(self.rank_by, [len(e.candidates) - 1 for e in examples], len(alone), self.distractors)
        if n_single:
            logger.warning("%d examples have a single candidate, which is a hit by definition", n_single)
        return examples

    def _drawn_for(self, alone: Sequence[int]) -> Iterator[tuple[int, list[int]]]:
        """Yield for each of these examples those of its source whose gold replies distract, as in training."""
        start, tokenizer = 0, self.agent.tokenizer
        for dialogs in self.by_source if alone else ():
            split = DialogSplit(build_arrays({"valid": dialogs}, tokenizer), "valid")
            split.draw_by(self.distractors, tokenizer.decode)
            for i in alone:
                if start <= i < start + len(split):
                    drawn = split.draw_distractors(i - start, N_VALIDATION_DISTRACTORS)
                    yield i, [start + other for other in drawn]
            start += len(split)

    def _tell_losses(self) -> None:
        """Say once what the vocabulary cannot spell of the utterances: of candidates only the gold replies count."""
        if self.has_told_losses:
            return
        self.has_told_losses = True
        if sentence := LostText(self.agent.tokenizer).add_all(_texts(self.valid)).sentence():
            logger.warning("%s", sentence)


def _texts(dialogs: Sequence[Dialog]) -> Iterator[str]:
    """Yield persona sentences, turns and gold replies."""
    for dialog in dialogs:
        yield from dialog["personality"]
        for utterance in dialog["utterances"]:
            yield from (*utterance["history"], utterance["candidates"][-1])


def shuffled_batches(examples: Sequence[GoldReply], batch_size: int) -> list[list[GoldReply]]:
    """Return batches of examples of similar length, in an order that makes those done at any time a fair sample."""
    by_length = sorted(examples, key=lambda example: example.n_characters)
    batches = [by_length[start : start + batch_size] for start in range(0, len(examples), batch_size)]
    random.Random(0).shuffle(batches)
    return batches
