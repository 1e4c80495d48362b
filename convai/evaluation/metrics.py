"""The metrics of ConvAI2 (Dinan et al., 2019, arXiv 1902.00098) as the competition and ParlAI define them.

hits@k: is the gold reply among the k best-scored candidates? F1: word overlap of a generated reply and the gold one.
Word perplexity: how surprising are the gold reply's words, over a fixed dictionary. Its two definitions here are not to
be mixed with each other, nor with perplexity per token:

    published    a word's probability is that of its first BPE piece, shared out by frequency among the dictionary's
                 words that start with this piece
    all pieces   the product over all of its pieces, and of a word boundary after them

Both are divided by the published probability of the whole dictionary, and are means over its words in the gold replies.
The published one is for GPT and GPT-2 alone: in other vocabularies a first piece may be a mere space or a part of a
word that it says little of.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from convai.data.conversation import Dialog
from convai.data.same_reply import is_gold, normalize_answer
from convai.data.store import TokenIds
from convai.dialog.agent import Context, DialogAgent
from convai.model.tokenization import SENTENCE_MARKS, DialogTokenizer

OFFICIAL_N_ENTRIES = 19_304
RANKS_COUNTED = (1, 5, 10)
SMOOTHING = 5  # added to every word's frequency
# ParlAI's dictionaries hold these four, with such counts, which are among the official one's entries.
SPECIAL_ENTRIES = {
    "__null__": 1_000_000_003,
    "__start__": 1_000_000_002,
    "__end__": 1_000_000_001,
    "__unk__": 1_000_000_000,
}


def f1_score(reply: str, gold: str) -> float:
    """Return the harmonic mean of precision and recall of the reply's words; 0 where either has none."""
    said, wanted = normalize_answer(reply), normalize_answer(gold)
    n_common = (Counter(said) & Counter(wanted)).total()
    return 2 * n_common / (len(said) + len(wanted)) if n_common else 0.0


def gold_rank(candidates: Sequence[str], scores: Sequence[float], gold: str) -> int | None:
    """Return the gold reply's rank by score, 1 for the best; among equal scores it comes last.

    None where the gold is missing from the candidates: then it is no hit for any k. The only candidate is always one.
    """
    flags = [is_gold(candidate, gold) for candidate in candidates]
    if not any(flags):
        return None
    best = max(score for score, flag in zip(scores, flags, strict=True) if flag)
    return 1 + sum(score >= best and not flag for score, flag in zip(scores, flags, strict=True))


def split_words(text: str) -> list[str]:
    """Return the words of a text by ParlAI's "split" rule: lower case, parted by spaces, sentence marks apart."""
    text = text.lower()
    for mark in SENTENCE_MARKS:
        text = text.replace(mark, f" {mark} ")
    return text.split()


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Return a dictionary: how often each word occurs in `texts`, and ParlAI's special entries."""
    counts = Counter(SPECIAL_ENTRIES)
    for text in texts:
        counts.update(split_words(text))
    return counts


def dictionary_texts(train: Sequence[Dialog], valid: Sequence[Dialog]) -> Iterable[str]:
    """Yield what the ConvAI2 dictionary counts: train text and labels, and valid text but not its labels.

    Text is persona lines and the turns that the gold replies answer. Without training dialogs the labels of the others
    count too.
    """
    for dialogs, with_labels in ((train, True), (valid, not train)):
        for dialog in dialogs:
            # As they stand in ParlAI's files: "your" and "persona" are frequent words of the official dictionary.
            yield from (f"your persona: {sentence}" for sentence in dialog["personality"])
            said: list[str] = []
            for utterance in dialog["utterances"]:
                history, gold = utterance["history"], utterance["candidates"][-1]
                yield from history[len(said) :] if history[: len(said)] == said else history
                if with_labels:
                    yield gold
                said = [*history, gold]


class WordScore(NamedTuple):
    """The natural logarithm of a word's probability, by either definition."""

    word: str
    published: float
    all_pieces: float


class ReplyScore(NamedTuple):
    """What one gold reply adds to the perplexities; losses are negative log-probabilities."""

    words: list[WordScore]  # those in the dictionary, in order
    n_skipped: int  # words not scored: not in the dictionary, not spellable, or cut off to fit the model
    token_loss: float  # of all tokens of the reply as it stands, and its end
    n_tokens: int
    has_published: bool = True  # whether the words' published probabilities mean anything


def best_first(candidates: Sequence[str], scores: Sequence[float], gold: str | None) -> list[str]:
    """Return the candidates by score; among equal scores the gold reply, where it is known, comes last."""
    pairs = zip(candidates, scores, strict=True)
    return [c for c, _ in sorted(pairs, key=lambda pair: (-pair[1], gold is not None and is_gold(pair[0], gold)))]


def hit_summands(rank: int | None) -> dict[str, float]:
    """Return what an example adds to the totals of hits@k."""
    return {"n_examples": 1, **{f"hits@{k}": float(rank is not None and rank <= k) for k in RANKS_COUNTED}}


def f1_summands(reply: str, gold: str) -> dict[str, float]:
    """Return what an example adds to the totals of F1."""
    return {"n_examples": 1, "f1": f1_score(reply, gold)}


def perplexity_summands(score: ReplyScore) -> dict[str, float]:
    """Return what an example adds to the totals of the perplexities."""
    published = {"loss": -math.fsum(word.published for word in score.words)} if score.has_published else {}
    return published | {
        "n_examples": 1,
        "loss_all_pieces": -math.fsum(word.all_pieces for word in score.words),
        "n_words": len(score.words),
        "n_words_skipped": score.n_skipped,
        "token_loss": score.token_loss,
        "n_tokens": score.n_tokens,
    }


def figures(totals: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of totals of such summands: means over examples; perplexities over words, and over tokens.

    `ppl` is word perplexity by the published definition, where it is defined, `ppl_all_pieces` by all pieces,
    `token_ppl` what training's validation reports. They are NaN where nothing was scored. Totals of no examples have
    no figures.
    """
    if not totals.get("n_examples"):
        return {}
    counts = {name: total for name, total in totals.items() if name.startswith("n_")}
    means = {name: totals[name] / totals["n_examples"] for name in totals if name.startswith(("hits@", "f1"))}
    losses = {
        "ppl": ("loss", "n_words"),
        "ppl_all_pieces": ("loss_all_pieces", "n_words"),
        "token_ppl": ("token_loss", "n_tokens"),
    }
    perplexities = {name: perplexity(totals[loss], totals[n]) for name, (loss, n) in losses.items() if loss in totals}
    return means | perplexities | counts


def perplexity(loss: float, n: float) -> float:
    """Return exp of the mean of `n` negative log-probabilities that sum to `loss`; NaN for none."""
    try:
        return math.exp(loss / n) if n else math.nan
    except OverflowError:
        return math.inf


class Spelling:
    """The pieces of every dictionary word, as `encode` spells them, and what the two definitions need of them."""

    _masks: Tensor

    def __init__(self, tokenizer: DialogTokenizer, dictionary: Mapping[str, int], encode: Callable[[str], TokenIds]):
        """`dictionary` maps words to their frequencies; words that the vocabulary cannot spell are left out."""
        self.tokenizer = tokenizer
        self.encode = encode
        self.pieces: dict[str, tuple[int, ...]] = {}
        for word in tqdm(dictionary, desc="dictionary", unit=" words", disable=None, leave=False):
            if pieces := self.spell(word):
                self.pieces[word] = pieces
        # Built from what the encoder gives: the published table lacked GPT-2's leading space, and for GPT it did not
        # split words such as "i'm" as the encoder does, so these looked up pieces that never occur there.
        self.words_of_piece: dict[int, list[str]] = defaultdict(list)
        self.words_of_pieces: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for word, pieces in self.pieces.items():
            self.words_of_piece[pieces[0]].append(word)
            self.words_of_pieces[pieces].append(word)
        self.log_share = _log_shares(self.words_of_piece.values(), dictionary)
        # Words that the encoder spells alike ("don't" with either apostrophe) are one event to the model.
        self.log_share_alike = _log_shares(self.words_of_pieces.values(), dictionary)
        self._prepare_boundaries()

    def spell(self, word: str) -> tuple[int, ...]:
        """Return a word's pieces as they occur in a reply; none where the vocabulary cannot spell it."""
        pieces = tuple(self.encode(word))
        return () if self.tokenizer.unknown_id in pieces else pieces

    def masks(self, log_probs: Tensor) -> Tensor:
        """Return which of the V pieces of log_probs (..., V) start a dictionary word, and which end the word before
        them: ones and zeros (V, 2)."""
        n_padding = log_probs.shape[-1] - len(self._masks)  # rows of the model that stand for no piece
        if n_padding > 0:
            padding = torch.tensor([[0.0, 1.0]]).expand(n_padding, 2)
            self._masks = torch.cat([self._masks, padding.to(self._masks)])
        self._masks = self._masks.to(log_probs)
        return self._masks

    def _prepare_boundaries(self) -> None:
        """Work out which pieces start a dictionary word, and which tell that the word before them has ended."""
        starts_entry = torch.zeros(len(self.tokenizer))
        starts_entry[list(self.words_of_piece)] = 1
        begins_word = [self._may_begin_word(token) for token in self.tokenizer.tokens]
        self._masks = torch.stack([starts_entry, torch.tensor(begins_word).float()], dim=1)  # (V, 2)
        # GPT's pieces do not tell that "n't" belongs to the word before it: here a piece that makes another dictionary
        # word of this one goes on with it, and any other ends it.
        self.continuations: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for pieces in self.words_of_pieces:
            for n in range(1, len(pieces)):
                if pieces[:n] in self.words_of_pieces and begins_word[pieces[n]]:
                    self.continuations[pieces[:n]].add(pieces[n])

    def _may_begin_word(self, token: str | None) -> bool:
        return token is None or token in self.tokenizer.special_ids or self.tokenizer.begins_word(token)


class WordPerplexity:
    """Scores the words of gold replies, from one pass over each reply (published: one per word).

    A reply is read word by word, as the published script fed it: lower case, words joined by spaces. So a word's pieces
    are always those that the dictionary knows it by, in GPT-2's vocabulary with the leading space; for a model that was
    trained without it at the beginning of utterances, the first word has a dictionary of its own.
    """

    def __init__(self, tokenizer: DialogTokenizer, dictionary: Mapping[str, int]):
        """`dictionary` maps words to their frequencies; words that the vocabulary cannot spell are left out."""
        self.tokenizer = tokenizer
        self.n_entries = len(dictionary)
        self.within = Spelling(tokenizer, dictionary, tokenizer.encode_within)
        # The same for nearly all checkpoints, so it is not worked out twice.
        starts_alike = tokenizer.encode("a") == tokenizer.encode_within("a")
        self.first = self.within if starts_alike else Spelling(tokenizer, dictionary, tokenizer.encode)

    def score(self, agent: DialogAgent, questions: Sequence[tuple[Context, str]]) -> list[ReplyScore]:
        """Score gold replies in their contexts, all in one pass."""
        plans = [self._plan(gold) for _, gold in questions]
        asked: list[tuple[Context, TokenIds]] = []
        for (context, _), plan in zip(questions, plans, strict=True):
            asked += [(context, ids) for ids in plan.sequences]
        logits = iter(agent.reply_logits(asked))
        return [self._score_reply(plan, [next(logits).float() for _ in plan.sequences]) for plan in plans]

    def next_word_probability(self, agent: DialogAgent, context: Context, words: Sequence[str]) -> dict[str, float]:
        """Return the published probability of every dictionary word to come after `words` of the reply.

        They do not sum to 1: that takes dividing by their sum.
        """
        ids = [i for number, word in enumerate(words) for i in self._spelling(number).encode(word)]
        probabilities = agent.reply_logits([(context, ids)])[0][-1].float().softmax(-1).tolist()
        table = self._spelling(len(words))
        return {word: probabilities[table.pieces[word][0]] * math.exp(share) for word, share in table.log_share.items()}

    def _spelling(self, number: int) -> "Spelling":
        """Return the table for the word of this number in a reply."""
        return self.within if number else self.first

    def _plan(self, gold: str) -> "_Plan":
        words = split_words(gold)
        tables = [self._spelling(number) for number in range(len(words))]
        spelled = [list(t.pieces.get(word) or t.encode(word)) for t, word in zip(tables, words, strict=True)]
        ids = [i for pieces in spelled for i in pieces]
        as_it_stands = self.tokenizer.encode(gold)
        return _Plan(words, spelled, [ids] if ids == as_it_stands else [ids, as_it_stands])

    def _score_reply(self, plan: "_Plan", logits: list[Tensor]) -> ReplyScore:
        """Score a planned reply from the logits (T + 1, V) of each of its sequences."""
        log_probs = [rows.log_softmax(-1) for rows in logits]
        words = self._score_words(plan, log_probs[0])
        targets = [*plan.sequences[-1][: len(log_probs[-1]) - 1], self.tokenizer.eos_id]
        return ReplyScore(
            words=words,
            n_skipped=len(plan.words) - len(words),
            token_loss=-math.fsum(_gather(log_probs[-1], range(len(targets)), targets)),
            n_tokens=len(targets),
            has_published=self.tokenizer.has_published_perplexity,
        )

    def _score_words(self, plan: "_Plan", log_probs: Tensor) -> list[WordScore]:
        ids = plan.sequences[0][: len(log_probs) - 1]
        of_piece = _gather(log_probs, range(len(ids)), ids)
        sums = (log_probs.exp() @ self.within.masks(log_probs)).tolist()  # (T + 1, 2)
        if self.first is not self.within:
            sums[0] = (log_probs[0].exp() @ self.first.masks(log_probs)).tolist()
        scores, start = [], 0
        for number, (word, pieces) in enumerate(zip(plan.words, plan.spelled, strict=True)):
            end, table = start + len(pieces), self._spelling(number)
            if word in table.pieces and end <= len(ids):
                in_dictionary, ended = sums[start][0], sums[end][1]
                more = list(table.continuations.get(tuple(pieces), ()))
                ended -= math.fsum(map(math.exp, _gather(log_probs, [end] * len(more), more)))
                published = of_piece[start] + table.log_share[word]
                all_pieces = math.fsum(of_piece[start:end]) + table.log_share_alike[word] + _log(ended)
                scores.append(WordScore(word, published - _log(in_dictionary), all_pieces - _log(in_dictionary)))
            start = end
        return scores


class _Plan(NamedTuple):
    """How a gold reply is scored."""

    words: list[str]
    spelled: list[TokenIds]  # their pieces
    sequences: list[TokenIds]  # to run through the model: all pieces, and the reply as it stands where that differs


def _log_shares(groups: Iterable[Sequence[str]], frequencies: Mapping[str, int]) -> dict[str, float]:
    """Return the logarithm of each word's share of its group, by smoothed frequency."""
    shares: dict[str, float] = {}
    for words in groups:
        total = sum(frequencies[word] + SMOOTHING for word in words)
        shares |= {word: math.log((frequencies[word] + SMOOTHING) / total) for word in words}
    return shares


def _gather(log_probs: Tensor, rows: Sequence[int], ids: Sequence[int]) -> list[float]:
    """Return log_probs[row, id] of each pair."""
    return log_probs[list(rows), list(ids)].tolist()


def _log(probability: float) -> float:
    return math.log(max(probability, 1e-30))  # rounding may leave nothing of what is nearly nothing
