"""The example world: the format, and that its replies can be ranked with the persona and not without it."""

import re
from collections import Counter

import pytest

from convai.data.example_world import (
    FACTS,
    KIND_OF_VALUE,
    OPEN_QUESTIONS,
    OPENERS,
    REACTIONS,
    RETURNED_QUESTIONS,
    SMALL_TALK_REPLIES,
    example_dataset,
    facts_in,
)
from example_entry import EXAMPLE_ENTRY

N_TRAIN, N_VALID = 600, 100


@pytest.fixture(scope="module")
def dataset():
    return example_dataset(seed=3, n_train_dialogs=N_TRAIN, n_valid_dialogs=N_VALID)


def persona_of(entry: dict) -> dict[str, str]:
    return {kind: value for sentence in entry["personality"] for kind, value in facts_in(sentence).items()}


def turns(dataset: dict) -> list[tuple[dict[str, str], list[str], list[str]]]:
    """(persona, history, candidates) of every turn of both splits."""
    return [
        (persona_of(entry), turn["history"], turn["candidates"])
        for entry in dataset["train"] + dataset["valid"]
        for turn in entry["utterances"]
    ]


def fact_turns(dataset: dict) -> list[tuple[dict[str, str], str, list[str], str]]:
    """(persona, kind that was asked for, distractors, gold) of every turn that is not small talk."""
    return [
        (persona, kind, candidates[:-1], candidates[-1])
        for persona, _, candidates in turns(dataset)
        for kind in facts_in(candidates[-1])
    ]


def assert_persona_chat_format(entry: dict) -> None:
    assert set(entry) == {"personality", "utterances"}
    assert entry["personality"] and all(isinstance(sentence, str) for sentence in entry["personality"])
    said: list[str] = []
    for turn in entry["utterances"]:
        assert set(turn) == {"candidates", "history"}
        *before, user_line = turn["history"]
        assert before == said, "a history continues the one before it with the gold reply and a line of the user"
        assert isinstance(user_line, str) and user_line
        assert turn["candidates"] and all(isinstance(reply, str) and reply for reply in turn["candidates"])
        assert len(set(turn["candidates"])) == len(turn["candidates"])
        said = [*turn["history"], turn["candidates"][-1]]


def test_documented_entry_has_the_format_and_shows_unequal_candidate_lists():
    assert_persona_chat_format(EXAMPLE_ENTRY)
    assert [len(turn["candidates"]) for turn in EXAMPLE_ENTRY["utterances"]] == [3, 2, 1]


def test_dataset_has_the_format(dataset):
    assert [len(dataset[split]) for split in ("train", "valid")] == [N_TRAIN, N_VALID]
    for entry in dataset["train"] + dataset["valid"]:
        assert_persona_chat_format(entry)
        assert len(entry["personality"]) == len(persona_of(entry)) in (4, 5)
        assert 4 <= len(entry["utterances"]) <= 6
        assert all(len(turn["candidates"]) == 20 for turn in entry["utterances"])


def test_same_seed_same_dataset(dataset):
    assert example_dataset(seed=3, n_train_dialogs=N_TRAIN, n_valid_dialogs=N_VALID) == dataset
    assert example_dataset(seed=4, n_train_dialogs=N_TRAIN, n_valid_dialogs=N_VALID) != dataset


@pytest.mark.parametrize("n_candidates", [2, 4, 20])
def test_number_of_candidates(n_candidates):
    small = example_dataset(n_train_dialogs=20, n_valid_dialogs=5, n_candidates=n_candidates)
    assert {len(candidates) for _, _, candidates in turns(small)} == {n_candidates}


def test_valid_personas_are_new_combinations_of_known_facts(dataset):
    train = {frozenset(persona_of(entry).items()) for entry in dataset["train"]}
    valid = {frozenset(persona_of(entry).items()) for entry in dataset["valid"]}
    assert not train & valid
    assert frozenset().union(*valid) <= frozenset().union(*train)


def test_a_value_is_one_word_of_one_kind_and_occurs_in_no_other_text():
    assert len(KIND_OF_VALUE) == sum(len(fact.values) for fact in FACTS.values())
    for kind, fact in FACTS.items():
        for value in fact.values:
            for template in fact.persona_templates + fact.answers:
                assert facts_in(template.format(value)) == {kind: value}
    fixed_text = [*SMALL_TALK_REPLIES, *OPENERS, *REACTIONS, *RETURNED_QUESTIONS, *OPEN_QUESTIONS]
    fixed_text += [question for fact in FACTS.values() for question in fact.questions]
    assert not any(facts_in(sentence) for sentence in fixed_text)


def test_text_is_short_lowercase_words_and_single_punctuation_marks(dataset):
    replies = {sentence for entry in dataset["train"] for sentence in entry["personality"]}
    replies |= {reply for _, _, candidates in turns(dataset) for reply in candidates}
    user_lines = {history[-1] for _, history, _ in turns(dataset)}
    words = {word for sentence in replies | user_lines for word in sentence.split(" ")}
    assert all(re.fullmatch(r"[a-z]+|[.,!?]", word) for word in words), words
    assert len(words) <= 300
    assert max(len(sentence.split()) for sentence in replies) <= 10


def test_no_fact_is_asked_for_twice_in_a_dialog(dataset):
    for entry in dataset["train"]:
        kinds = [kind for turn in entry["utterances"] for kind in facts_in(turn["candidates"][-1])]
        assert len(set(kinds)) == len(kinds)


def test_only_the_gold_is_true_of_the_persona(dataset):
    for persona, _, candidates in turns(dataset):
        true = [reply for reply in candidates if facts_in(reply).items() & persona.items()]
        small_talk = [reply for reply in candidates if reply in SMALL_TALK_REPLIES]
        gold = candidates[-1]
        assert true == [gold] or (true == [] and small_talk == [gold])


def test_at_least_half_of_the_distractors_answer_the_question_in_the_whole_list_and_at_its_end(dataset):
    n_at_end = n_turns = 0
    for persona, kind, distractors, _ in fact_turns(dataset):
        values = [facts_in(reply).get(kind) for reply in distractors]
        assert sum(value is not None for value in values) >= len(distractors) / 2
        assert persona[kind] not in values
        n_at_end += sum(value is not None for value in values[-3:])
        n_turns += 1
    assert n_at_end / (3 * n_turns) == pytest.approx(12 / 19, abs=0.03)  # training keeps the last few


def expected_hits(dataset: dict, personas: list[dict[str, str]]) -> float:
    """hits@1 on valid of a reader who knows which replies fit the question, and `personas` (one per dialog).

    Small talk is always told apart. Otherwise the reader takes a fitting reply that is true of the persona, or when
    there is none, any fitting one; ties count by their chance.
    """
    hits = []
    for entry, persona in zip(dataset["valid"], personas, strict=True):
        for turn in entry["utterances"]:
            gold = turn["candidates"][-1]
            if gold in SMALL_TALK_REPLIES:
                hits.append(1.0)
                continue
            fitting = [reply for reply in turn["candidates"] if facts_in(reply).keys() == facts_in(gold).keys()]
            choices = [reply for reply in fitting if facts_in(reply).items() & persona.items()] or fitting
            hits.append((gold in choices) / len(choices))
    return sum(hits) / len(hits)


def test_the_persona_decides(dataset):
    personas = [persona_of(entry) for entry in dataset["valid"]]
    assert expected_hits(dataset, personas) == 1.0
    # 1/13 of the questions (0.077) and all small talk (0.05 of the turns) can be had without it.
    assert 0.08 < expected_hits(dataset, [{}] * N_VALID) < 0.16
    assert expected_hits(dataset, personas[1:] + personas[:1]) < 0.25


def test_golds_and_distractors_have_the_same_phrasings_and_values(dataset):
    """Shares of each answer template, and of each value, by their place in the world's tables."""
    gold_counts: Counter = Counter()
    distractor_counts: Counter = Counter()
    for _, kind, distractors, gold in fact_turns(dataset):
        fact = FACTS[kind]
        for counts, replies in ((gold_counts, [gold]), (distractor_counts, distractors)):
            for reply in replies:
                if value := facts_in(reply).get(kind):
                    counts["phrasing", fact.answers.index(reply.replace(value, "{}"))] += 1
                    counts["value", fact.values.index(value)] += 1
                    counts["all"] += 1
    assert set(gold_counts) == set(distractor_counts)
    for key in gold_counts:
        gold_share = gold_counts[key] / gold_counts["all"]
        assert gold_share == pytest.approx(distractor_counts[key] / distractor_counts["all"], abs=0.03), key


def test_what_users_tell_is_independent_of_the_answer(dataset):
    """A user who says "i live in oslo . and you ?" meets an agent from oslo as often as chance has it: 1 in 5."""
    equal = [
        told[kind] == persona[kind]
        for persona, history, candidates in turns(dataset)
        for kind in facts_in(candidates[-1])
        if kind in (told := facts_in(history[-1]))
    ]
    assert len(equal) > 150
    assert sum(equal) / len(equal) == pytest.approx(0.2, abs=0.08)


def test_facts_in_reads_a_reply():
    assert facts_in("i live in oslo . and you ?") == {"home": "oslo"}
    assert facts_in("thanks ! i like you too .") == {}
