"""Replies: one in a chat, and batches of them as F1 is measured on, with a key/value cache and without."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from bench import reference
from bench.measure import compare
from bench.scoring import summary
from bench.setting import Disagreement, Setting
from convai.data.inputs import Prompt
from convai.data.store import Example
from convai.dialog.decoding import DecodingSettings, generate_replies
from convai.model.double_heads import DoubleHeadsModel
from convai.model.tokenization import UNKNOWN_TOKEN

N_TOKENS = 20
N_CONTEXT = 100  # tokens; about what a dialog of five turns takes
BATCHES = (16, 64)
GREEDY = DecodingSettings(no_sample=True, max_length=N_TOKENS, min_length=N_TOKENS)


def reply(setting: Setting) -> list[dict[str, Any]]:
    """Measure one reply of 20 tokens to a context of about 100."""
    examples = by_distance_from(setting, N_CONTEXT)[: max(1, setting.options.examples or 2)]
    plain = PlainReplies(setting)
    n_agreeing = check_replies(setting, plain, examples[:1])
    model = setting.load_ours(setting.options.dtype)
    first_token_times = []

    def ours() -> int:
        for example in examples:
            start, times = time.perf_counter(), []
            stream_reply(setting, model, example, on_token=partial(note_time, times))
            first_token_times.append(times[0] - start)
        return len(examples)

    measured = compare({"ours": ours, "reference": lambda: plain(examples)}, setting.options.repeats)
    return [{"name": "reply", **summary(measured), "reply_ms": round(1000 / measured["ours"].rate),
             "first_token_ms": round(1000 * statistics.median(first_token_times)),
             "context_tokens": len(prompt(setting, examples[0]).input_ids), "tokens": N_TOKENS,
             "examples": len(examples), "tokens_checked": n_agreeing}]  # fmt: skip


def stream_reply(setting: Setting, model: DoubleHeadsModel, example: Example, on_token: Callable[[int], None]) -> None:
    generate_replies(model, setting.tokenizer, [prompt(setting, example)], GREEDY, on_token=on_token)


def note_time(times: list[float], token: int) -> None:
    times.append(time.perf_counter())


def f1(setting: Setting) -> list[dict[str, Any]]:
    """Measure batches of replies, of 20 tokens each, against one reply at a time."""
    model, plain = setting.load_ours(setting.options.dtype), PlainReplies(setting)
    dataset = setting.dataset("valid")
    reports = []
    for batch_size in BATCHES:
        examples = [dataset.example(index) for index in setting.draw(len(dataset), batch_size)]
        n_theirs = min(len(examples), setting.options.reference_examples or 1)
        n_checked = check_replies(setting, plain, examples[:n_theirs])

        def ours(examples=examples) -> int:
            generate_replies(model, setting.tokenizer, [prompt(setting, one) for one in examples], GREEDY)
            return len(examples)

        ways = {"ours": ours, "reference": lambda some=examples[:n_theirs]: plain(some)}
        measured = compare(ways, setting.options.repeats)
        reports.append({"name": f"f1-{batch_size}", **summary(measured), "examples": len(examples),
                        "reference_examples": n_theirs, "tokens_checked": n_checked})  # fmt: skip
    return reports


class PlainReplies:
    """Greedy replies by transformers' model, a pass over the whole sequence for each token."""

    def __init__(self, setting: Setting):
        self.tokenizer = setting.tokenizer
        self.model = setting.load_reference()
        # What ours never says before `min_length`: both are to make replies of the same length.
        unsayable = [*self.tokenizer.special_ids.values(), self.tokenizer.vocab.get(UNKNOWN_TOKEN)]
        self.unsayable = [token for token in unsayable if token is not None]

    def reply(self, example: Example) -> list[int]:
        return reference.greedy_reply(
            self.model, example.persona, example.history, self.tokenizer, N_TOKENS, self.unsayable
        )

    def __call__(self, examples: list[Example]) -> int:
        return sum(bool(self.reply(example)) for example in examples)


def check_replies(setting: Setting, plain: PlainReplies, examples: list[Example]) -> int:
    """Return how many tokens were compared; Disagreement where a reply differs. In fp32: others round to other ones."""
    said = generate_replies(setting.load_ours(), setting.tokenizer, [prompt(setting, one) for one in examples], GREEDY)
    expected = [plain.reply(example) for example in examples]
    if said != expected:
        raise Disagreement(f"replies: {said} of ours, {expected} of the reference")
    return sum(map(len, said))


def prompt(setting: Setting, example: Example) -> Prompt:
    return setting.dataset("valid").inputs.prompt(example.persona, example.history, N_TOKENS)


def by_distance_from(setting: Setting, n_tokens: int) -> list[Example]:
    """Return the validation examples, those whose context is closest to `n_tokens` first."""
    dataset = setting.dataset("valid")
    examples = [dataset.example(index) for index in range(len(dataset))]
    return sorted(examples, key=lambda one: abs(len(prompt(setting, one).input_ids) - n_tokens))
