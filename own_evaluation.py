"""hits@1, perplexity and F1 by our own implementation, on data of any form that training reads; needs no ParlAI."""

import logging
import random
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from agent import Context, DialogAgent
from convai_metrics import (
    WordPerplexity,
    count_words,
    dictionary_texts,
    f1_summands,
    figures,
    gold_rank,
    hit_summands,
    perplexity_summands,
)
from formats import load_for_evaluation
from options import chosen_seed
from store import DialogSplit, build_arrays
from updates import N_VALIDATION_DISTRACTORS

logger = logging.getLogger(__name__)


class Example(NamedTuple):
    """One reply to evaluate, as text."""

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

    def __init__(self, args: Namespace):
        self.name = args.dataset_path
        self.batch_size = args.batch_size
        self.max_history = args.max_history
        self.seed = chosen_seed(vars(args))
        self.train, self.valid = load_for_evaluation(args.dataset_path)
        logger.info("%s: %d dialogs to evaluate on", self.name, len(self.valid))

    def start(self, eval_type: str, agent: DialogAgent) -> tuple[int, Iterator[dict[str, float]]]:
        """Return the number of examples and an iterator that scores them, yielding the figures so far."""
        self.agent = agent
        examples = [
            Example(Context(dialog["personality"], utterance["history"]), utterance["candidates"])
            for dialog in self.valid
            for utterance in dialog["utterances"]
        ]
        if eval_type == "hits@1":
            examples = self._with_distractors(examples)
        if eval_type == "ppl":
            self.words = WordPerplexity(agent.tokenizer, count_words(dictionary_texts(self.train, self.valid)))
            logger.info("dictionary: %d entries", self.words.n_entries)
        return len(examples), self._steps(eval_type, examples)

    def _steps(self, eval_type: str, examples: Sequence[Example]) -> Iterator[dict[str, float]]:
        score = {"hits@1": self._hits, "ppl": self._perplexities, "f1": self._f1}[eval_type]
        totals: Counter = Counter()
        for batch in shuffled_batches(examples, self.batch_size):
            for summands in score(batch):
                totals.update(summands)
            yield figures(totals)

    def _hits(self, batch: Sequence[Example]) -> list[dict[str, float]]:
        scores = self.agent.rank_batch([(example.context, example.candidates) for example in batch])
        return [hit_summands(gold_rank(e.candidates, row, e.gold)) for e, row in zip(batch, scores, strict=True)]

    def _perplexities(self, batch: Sequence[Example]) -> list[dict[str, float]]:
        scores = self.words.score(self.agent, [(example.context, example.gold) for example in batch])
        return list(map(perplexity_summands, scores))

    def _f1(self, batch: Sequence[Example]) -> list[dict[str, float]]:
        replies = self.agent.reply_batch([example.context for example in batch], self.seed)
        return [f1_summands(reply, example.gold) for reply, example in zip(replies, batch, strict=True)]

    def _with_distractors(self, examples: Sequence[Example]) -> list[Example]:
        """Give the examples that offer only the gold reply the distractors that validation draws in training."""
        if all(len(example.candidates) > 1 for example in examples):
            return list(examples)
        split = DialogSplit(build_arrays({"valid": self.valid}, self.agent.tokenizer), "valid")
        text_of = {tuple(split[i].candidates[-1]): example.gold for i, example in enumerate(examples)}
        drawn = []
        for i, example in enumerate(examples):
            if len(example.candidates) == 1:
                distractors = split.example(i, n_drawn=N_VALIDATION_DISTRACTORS).candidates[:-1]
                example = Example(example.context, [*(text_of[tuple(ids)] for ids in distractors), example.gold])
            drawn.append(example)
        if n_single := sum(len(example.candidates) == 1 for example in drawn):
            logger.warning("%d examples have a single candidate, which is a hit by definition", n_single)
        return drawn


def shuffled_batches(examples: Sequence[Example], batch_size: int) -> list[list[Example]]:
    """Return batches of examples of similar length, in an order that makes those done at any time a fair sample."""
    by_length = sorted(examples, key=lambda example: example.n_characters)
    batches = [by_length[start : start + batch_size] for start in range(0, len(examples), batch_size)]
    random.Random(0).shuffle(batches)
    return batches
