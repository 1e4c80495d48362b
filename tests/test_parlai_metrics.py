"""Our F1, hits and dictionary against ParlAI's own."""

import random
from collections import Counter

import pytest
from conftest import tiny_model
from parlai_evaluations import by_parlai, write_dialogs

from convai.data.formats import read_splits
from convai.dialog.agent import DialogAgent
from convai.evaluation import parlai_task
from convai.evaluation.metrics import (
    best_first,
    count_words,
    dictionary_texts,
    f1_score,
    gold_rank,
    hit_summands,
    split_words,
)
from convai.evaluation.parlai_task import parlai_options
from convai.options import evaluation_parser


def adversarial_pairs() -> list[tuple[str, str]]:
    rng = random.Random(0)
    words = ["a", "an", "the", "The", "cat", "Cat", "dogs", "it's", "’", "–", "a’b", "theatre", "ß", "İ", "é", "日本",
             ",a,", "_an_", "!?", "...", "\n", "\t", "\u00a0", "1.5", "(the", "`^", "~", "¿", "A\\B", ""]  # fmt: skip
    texts = [" ".join(rng.choices(words, k=rng.randrange(12))) for _ in range(1500)]
    characters = [chr(rng.choice([rng.randrange(32, 127), rng.randrange(0x20, 0x2FFF)])) for _ in range(4000)]
    texts += ["".join(characters[i : i + 8]) for i in range(0, 4000, 8)]
    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    return [*pairs, *((text, text) for text in texts[:50]), ("", ""), ("", "cat"), ("cat", ""), ("the", "a")]


def test_f1_equals_parlai_s():
    from parlai.core.metrics import F1Metric

    pairs = adversarial_pairs()
    assert len(pairs) >= 1000
    found = [f1_score(reply, gold) for reply, gold in pairs]
    assert found == pytest.approx([F1Metric.compute(reply, [gold]).value() for reply, gold in pairs], abs=1e-12)
    assert sum(0 < f1 < 1 for f1 in found) > 100


def test_hits_equal_parlai_s():
    from parlai.core.metrics import TeacherMetrics

    rng = random.Random(0)
    theirs, totals = TeacherMetrics("none"), Counter()
    for n in range(300):
        gold = rng.choice(["Yes .", "no", "the end"])
        candidates = [rng.choice(["yes", "no !", "end", *map(str, range(30))]) for _ in range(rng.randrange(1, 20))]
        candidates += [gold] * (n % 10 != 0)
        scores = [rng.choice([0.1, 0.2, 0.3]) + rng.choice([0, 1e-3]) for _ in candidates]
        theirs.evaluate_response({"text_candidates": best_first(candidates, scores, gold)}, [gold])
        totals.update(hit_summands(gold_rank(candidates, scores, gold)))
    for name in ("hits@1", "hits@5", "hits@10"):
        assert totals[name] / totals["n_examples"] == pytest.approx(theirs.report()[name].value())
    assert 0 < totals["hits@1"] < totals["hits@10"] < 300


class TestDictionary:
    def test_words_are_parlai_s(self):
        from parlai.core.dict import DictionaryAgent

        opt = {"dict_tokenizer": "split", "dict_lower": True}
        for text, other in adversarial_pairs():
            assert split_words(text + other) == list(DictionaryAgent(opt).tokenize(text + other))

    def test_counts_are_those_of_build_dict(self, tmp_path, tokenizer):
        """ParlAI's own dictionary of a training and a validation file, validation included."""
        from parlai.core.loader import register_teacher
        from parlai.core.params import ParlaiParser
        from parlai.core.teachers import FbDeprecatedDialogTeacher
        from parlai.scripts.build_dict import build_dict, setup_args

        files = {
            "train": write_dialogs(tmp_path / "train.txt", 7, 4),
            "valid": write_dialogs(tmp_path / "valid.txt", 4, 4),
        }

        @register_teacher("pair")
        class PairTeacher(FbDeprecatedDialogTeacher):
            def __init__(self, opt, shared=None):
                super().__init__(opt | {"datafile": str(files[opt["datatype"].split(":")[0]])}, shared)

        opt = setup_args(ParlaiParser(True, False)).parse_args(["-t", "pair", "--dict-file", str(tmp_path / "words")])
        opt |= {"dict_tokenizer": "split", "dict_lower": True, "dict_include_valid": True}
        theirs = build_dict(opt).freq
        train, valid = (read_splits(files[name])[""] for name in ("train", "valid"))
        assert count_words(dictionary_texts(train, valid)) == theirs

        # Our agent's dictionary of that task is the same, and that of a lone file counts it once.
        task = parlai_options(evaluation_parser().parse_args([]), ["-t", "pair"])
        agent = DialogAgent(tiny_model(tokenizer), tokenizer)
        assert parlai_task.word_perplexity(agent, task).n_entries == len(theirs)
        found = [parlai_task.task_dialogs(task, "pair", kind) for kind in ("train:evalmode", "valid")]
        assert count_words(dictionary_texts(*found)) == theirs
        lone = by_parlai(files["valid"])
        both = [parlai_task.task_dialogs(lone.opt, lone.name, kind) for kind in ("train:evalmode", "valid")]
        assert both[0] == both[1]
        assert count_words(dictionary_texts([], both[1])) == count_words(dictionary_texts([], valid))
