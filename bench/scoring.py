"""Scoring: hits@1 over 20 candidates, and word perplexity, as the evaluation computes them and plainly."""

from typing import Any

import torch

from bench import reference
from bench.measure import Measurement, compare, ratio
from bench.setting import MAX_HISTORY, Setting, longest_sequence
from convai.data.batches import collate_trees
from convai.dialog.agent import Context, DialogAgent
from convai.dialog.ranking import TREES_ON_CPU
from convai.evaluation.metrics import SMOOTHING, WordPerplexity, count_words, dictionary_texts, split_words

EVALUATION_BATCH = 16


def hits(setting: Setting) -> list[dict[str, Any]]:
    """Measure the scoring of every candidate of `--examples` examples."""
    dataset = setting.dataset("valid")
    indices = setting.draw(len(dataset), setting.options.examples or 32)
    n_theirs = min(len(indices), setting.options.reference_examples or 4)
    examples = [dataset.example(index) for index in indices[:n_theirs]]
    length = longest_sequence(dataset)
    model, theirs = setting.load_ours(setting.options.dtype), setting.load_reference()

    size = TREES_ON_CPU if setting.device.type == "cpu" else EVALUATION_BATCH

    @torch.inference_mode()
    def ours(chosen: list[int]) -> dict[int, list[float]]:
        order = sorted(chosen, key=lambda index: -len(dataset[index].input_ids))
        scores = {}
        for start in range(0, len(order), size):
            part = order[start : start + size]
            batch = collate_trees([dataset[index] for index in part]).to(setting.device)
            rows = model(**batch.model_inputs() | {"lm_indices": batch.lm_indices[:0]}).mc_logits
            scores |= dict(zip(part, rows.tolist(), strict=True))
        return scores

    @torch.inference_mode()
    def plainly(chosen: list) -> list[list[float]]:
        scores = []
        for example in chosen:
            batch = reference.pad_candidates([example], setting.tokenizer, length)
            batch = {name: tensor.to(setting.device) for name, tensor in batch.items()}
            scores += reference.score_candidates(theirs, batch)[1].tolist()
        return scores

    n_checked = min(2, n_theirs)
    scores = ours(indices[:n_checked])
    difference = setting.check_same(
        "candidate scores",
        [score for index in indices[:n_checked] for score in scores[index]],
        [score for row in plainly(examples[:n_checked]) for score in row],
    )
    ways = {"ours": lambda: len(ours(indices)), "reference": lambda: len(plainly(examples))}
    measured = compare(ways, setting.options.repeats)
    return [{"name": "hits", **summary(measured), "examples": len(indices),
             "reference_examples": n_theirs, "difference": difference}]  # fmt: skip


def ppl(setting: Setting) -> list[dict[str, Any]]:
    """Measure word perplexity: one pass for a batch of replies, against one pass for each word."""
    words = WordPerplexity(setting.tokenizer, count_words(dictionary_texts(*setting.dialogs.values())))
    questions = [
        (Context(dialog["personality"], utterance["history"]), utterance["candidates"][-1])
        for dialog in setting.dialogs["valid"]
        for utterance in dialog["utterances"]
    ]
    questions = [questions[index] for index in setting.draw(len(questions), setting.options.examples or 64)]
    n_theirs = min(len(questions), setting.options.reference_examples or 2)
    agent = DialogAgent(setting.load_ours(setting.options.dtype), setting.tokenizer, max_history=MAX_HISTORY)
    plain = PlainPerplexity(setting)

    def ours(chosen: list) -> list[float]:
        chosen = sorted(chosen, key=lambda question: -sum(map(len, [*question[0].persona, *question[0].history])))
        losses = []
        for start in range(0, len(chosen), EVALUATION_BATCH):
            scores = words.score(agent, chosen[start : start + EVALUATION_BATCH])
            losses += [-word.published for score in scores for word in score.words]
        return losses

    n_checked = min(1, n_theirs)
    difference = setting.check_same("word losses", ours(questions[:n_checked]), plain.losses(questions[:n_checked]))

    def run(score, chosen: list):
        return lambda: score(chosen) and len(chosen)

    ways = {"ours": run(ours, questions), "reference": run(plain.losses, questions[:n_theirs])}
    measured = compare(ways, setting.options.repeats)
    return [{"name": "ppl", **summary(measured), "examples": len(questions), "reference_examples": n_theirs,
             "difference": difference}]  # fmt: skip


class PlainPerplexity:
    """Word perplexity as published: a pass for each word, then the probability of every dictionary word."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.model = setting.load_reference()
        tokenizer = setting.tokenizer
        counts = count_words(dictionary_texts(*setting.dialogs.values()))
        spelled = {word: tokenizer.encode(word) for word in counts}
        self.spelled = {w: ids for w, ids in spelled.items() if ids and tokenizer.vocab.get("<unk>") not in ids}
        frequencies = torch.tensor([counts[word] + SMOOTHING for word in self.spelled], dtype=torch.float)
        self.first_pieces = torch.tensor([ids[0] for ids in self.spelled.values()])
        totals = torch.zeros(len(tokenizer)).index_add_(0, self.first_pieces, frequencies)
        self.shares = frequencies / totals[self.first_pieces]
        self.number = {word: number for number, word in enumerate(self.spelled)}

    def losses(self, questions: list[tuple[Context, str]]) -> list[float]:
        """Return the loss of each dictionary word of the gold replies."""
        return [loss for context, gold in questions for loss in self._losses_of_reply(context, gold)]

    def _losses_of_reply(self, context: Context, gold: str) -> list[float]:
        encode = self.setting.tokenizer.encode
        persona = [encode(sentence) for sentence in context.persona]
        history = [encode(turn) for turn in context.history[-(2 * MAX_HISTORY + 1) :]]
        words = split_words(gold)
        pieces = [self.spelled.get(word) or encode(word) for word in words]
        losses = []
        rows = reference.word_logits(self.model, persona, history, pieces, self.setting.tokenizer)
        for word, logits in zip(words, rows, strict=True):
            if word in self.number:
                probabilities = logits.float().softmax(-1).cpu()[self.first_pieces] * self.shares
                losses.append(-(probabilities[self.number[word]] / probabilities.sum()).log().item())
        return losses


def summary(measured: dict[str, Measurement]) -> dict[str, Any]:
    """Return both rates, their ratio and the memory that the work took."""
    return {
        **{name: round(way.rate, 3) for name, way in measured.items()},
        "unit": "examples/s",
        "ratio": round(ratio(measured["ours"], measured["reference"]), 2),
        "peak_mb": round(measured["ours"].peak_mb or 0),
        "reference_peak_mb": round(measured["reference"].peak_mb or 0),
    }
