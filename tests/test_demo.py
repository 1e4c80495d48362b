"""What the demo promises: trained on the example set for minutes, a tiny model ranks and answers by its persona."""

import math
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT

from convai.data.example_world import FACTS, draw_persona, example_dataset, facts_in
from convai.dialog.agent import Context, DialogAgent
from convai.dialog.decoding import DecodingSettings
from convai.evaluation.metrics import WordPerplexity, count_words, dictionary_texts

pytestmark = pytest.mark.slow
MOST_MINUTES = 6


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Path, str]:
    """The demo's model and what the demo printed; CONVAI_DEMO_MODEL names a folder to keep or take them from."""
    folder = Path(os.environ.get("CONVAI_DEMO_MODEL") or tmp_path_factory.mktemp("demo"))
    printed = folder / "printed.txt"
    if not printed.is_file():
        started = time.monotonic()
        environment = os.environ | {"PYTHON": sys.executable}
        command = ["bash", ROOT / "scripts/demo.sh", folder]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        assert result.returncode == 0, result.stderr
        print(f"the demo took {time.monotonic() - started:.0f} s")
        assert time.monotonic() - started < 60 * MOST_MINUTES
        printed.write_text(result.stdout)
    return folder, printed.read_text()


@pytest.fixture(scope="module")
def agent(demo) -> DialogAgent:
    return DialogAgent.load(demo[0], max_history=0, settings=DecodingSettings(no_sample=True), device="cpu")


@pytest.fixture(scope="module")
def data() -> dict:
    return example_dataset()


def examples_of(dialogs: list[dict], personas: list[list[str]]) -> list[tuple[Context, list[str]]]:
    return [
        (Context(persona, utterance["history"]), utterance["candidates"])
        for dialog, persona in zip(dialogs, personas, strict=True)
        for utterance in dialog["utterances"]
    ]


def hits_at_1(agent: DialogAgent, examples: list) -> float:
    hits = []
    for start in range(0, len(examples), 16):
        batch = examples[start : start + 16]
        hits += [scores.index(max(scores)) == len(scores) - 1 for scores in agent.rank_batch(batch)]
    return sum(hits) / len(hits)


def test_it_prints_its_figures_and_a_conversation(demo):
    assert float(re.search(r"^hits@1 (\d\.\d{3}) of 20 candidates", demo[1], re.MULTILINE)[1]) >= 0.70
    replies = demo[1].split("== 3.")[1]
    assert all(fact in replies for fact in ("cairo", "parrot", "nurse", "jazz"))


def test_it_ranks_by_the_persona(agent, data):
    valid = data["valid"]
    trained_on = {frozenset(map(str, map(facts_in, dialog["personality"]))) for dialog in data["train"]}
    unseen = [dialog for dialog in valid if frozenset(map(str, map(facts_in, dialog["personality"]))) not in trained_on]
    assert len(unseen) == len(valid)
    own = [dialog["personality"] for dialog in valid]
    another_s = [*own[1:], own[0]]
    right, wrong = (hits_at_1(agent, examples_of(valid, personas)) for personas in (own, another_s))
    print(f"hits@1 {right:.3f} with the persona, {wrong:.3f} with that of another dialog")
    assert right >= 0.70
    assert wrong < 0.25


def test_its_perplexity_is_at_most_half_a_unigram_model_s(agent, data):
    def replies(split: str) -> list[list[int]]:
        golds = [utterance["candidates"][-1] for dialog in data[split] for utterance in dialog["utterances"]]
        return [[*agent.tokenizer.encode(gold), agent.tokenizer.eos_id] for gold in golds]

    counts = Counter(token for reply in replies("train") for token in reply)
    total = counts.total() + len(agent.tokenizer)  # add-one smoothing
    losses = [-math.log((counts[token] + 1) / total) for reply in replies("valid") for token in reply]
    unigram = math.exp(sum(losses) / len(losses))

    own = [dialog["personality"] for dialog in data["valid"]]
    loss, n = 0.0, 0
    for (context, _), reply in zip(examples_of(data["valid"], own), replies("valid"), strict=True):
        log_probs = agent.reply_logits([(context, reply[:-1])])[0].log_softmax(-1)
        loss -= log_probs[range(len(reply)), reply].sum().item()
        n += len(reply)
    print(f"token perplexity {math.exp(loss / n):.3f}, of the unigram model {unigram:.1f}")
    assert math.exp(loss / n) <= unigram / 2


def test_int8_weights_hardly_change_it(demo, agent, data):
    small = DialogAgent.load(demo[0], max_history=0, device="cpu", precision="int8")
    examples = examples_of(data["valid"], [dialog["personality"] for dialog in data["valid"]])
    words = WordPerplexity(agent.tokenizer, count_words(dictionary_texts(data["train"], data["valid"])))

    def perplexity(which: DialogAgent) -> float:
        scores = [words.score(which, [(context, candidates[-1])])[0] for context, candidates in examples]
        losses = [-word.published for score in scores for word in score.words]
        return math.exp(sum(losses) / len(losses))

    hits, ppl = ([of(agent), of(small)] for of in (partial(hits_at_1, examples=examples), perplexity))
    print(f"hits@1 {hits[0]:.4f} in fp32, {hits[1]:.4f} in int8; word perplexity {ppl[0]:.4f} and {ppl[1]:.4f}")
    assert abs(hits[0] - hits[1]) < 0.01
    assert abs(ppl[1] / ppl[0] - 1) < 0.01


def test_its_replies_name_the_fact_that_was_asked_for(agent):
    rng, named = random.Random(2026), []
    for _ in range(10):
        persona = draw_persona(rng)
        agent.persona = [rng.choice(FACTS[kind].persona_templates).format(value) for kind, value in persona.items()]
        for kind, value in persona.items():
            agent.reset()
            reply = agent.reply(rng.choice(FACTS[kind].questions))
            named.append(re.search(rf"\b{value}\b", reply) is not None)
    print(f"{sum(named)} of {len(named)} greedy replies name the fact")
    assert sum(named) >= 0.8 * len(named)
