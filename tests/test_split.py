"""A split has no persona sentence on both sides, a seed decides it, and it is written as ConvAI2 writes where asked."""

import json

import pytest
from conftest import make_dialogs

from bench.plain import as_convai2
from bench.split import main, sentence_keys
from convai.data.formats import find_source

CONVAI2_LINES = [
    "hi ! ! my moms here . . . don't you think so ?",
    "i'm ok , she's 90 ; that's old i cannot lie . mr . smith is a dr",
    "they're at the 7 11 store at 8pm , i've the 80s on and it is fun . gonna be great , im sure",
    "dont tell , wont you ? i'dn't go . isn'thing ok , cant say . ill go , its in the us , etc .",
    "i won't , he's not able and i'd say you'll see there's more",
]
NATURAL = """\
1 your persona: I bake bread{n}.
2 your persona: I'm from village {n}.
3 Hi! What's up?\tI’m baking "rye" - it's bread {n}.
4 Nice...\tDon't you like bread?
"""


def persona(*sentences: str, turn: str = "hi there") -> dict:
    return {"personality": list(sentences), "utterances": [{"history": [turn], "candidates": ["no .", "yes ."]}]}


@pytest.fixture
def sources(tmp_path):
    """One source of each kind: (evaluation dialogs, ConvAI2-like JSON, natural text)."""
    valid = [persona("i'm a nurse .", "i own 2 boats ."), persona("i sing .")]
    train = [
        persona("I am a nurse!", "I own 2 boats."),  # the first persona, written otherwise
        persona("i sing . ", "i ski ."),
        *(persona(f"i have {n} hats .", f"my street is number {n} .", turn=f"hello {n}") for n in range(8)),
        persona("i have 3 hats .", "my car is red ."),
    ]
    (tmp_path / "valid.json").write_text(json.dumps({"train": [persona("i ski .")], "valid": valid}))
    (tmp_path / "ours.json").write_text(json.dumps({"train": train, "test": [persona("i test .")]}))
    texts = [NATURAL.format(n=n) for n in range(3)] + [NATURAL.format(n=9).replace("I bake bread9", "I SING")]
    (tmp_path / "others.txt").write_text("".join(texts), encoding="utf-8")
    return [str(tmp_path / name) for name in ("valid.json", "ours.json", "others.txt")]


def split(sources, folder, *more):
    valid, *train = sources
    main(["--valid", valid, "--train", *train, "--output", str(folder), "--holdout", "2", *more])
    return [json.loads((folder / name).read_text(encoding="utf-8")) for name in ("final.json", "tuning.json")]


def letters(dialogs) -> set[str]:
    """The persona sentences by the plainest rule, written anew here so that it does not share a mistake."""
    sentences = {sentence.lower().replace("i'm", "i am") for dialog in dialogs for sentence in dialog["personality"]}
    return {"".join(char for char in sentence if char.isalnum()) for sentence in sentences}


@pytest.mark.parametrize("more", [[], ["--plain"]])
@pytest.mark.parametrize("seed", range(4))
def test_no_persona_sentence_is_on_both_sides(sources, tmp_path, more, seed):
    final, tuning = split(sources, tmp_path / "out", "--seed", str(seed), *more)
    valid = json.loads((tmp_path / "valid.json").read_text())["valid"]
    assert final["valid"] == valid and len(final["train"]) == 9 + 3
    assert len(tuning["valid"]) == 2 and len(tuning["train"]) in (9, 10)
    assert len({*letters(valid)}) == 3
    assert not letters(final["train"]) & letters(valid)
    assert not letters(tuning["train"]) & letters(tuning["valid"])
    assert not letters(tuning["train"] + tuning["valid"]) & letters(valid)
    assert all(dialog in final["train"] for dialog in tuning["train"] + tuning["valid"])


def test_what_shares_a_sentence_with_the_holdout_is_dropped(sources, tmp_path):
    ours = tmp_path / "ours.json"
    ours.write_text(json.dumps([persona("i run .", f"i have {n} hats .") for n in range(3)] + [persona("i fly .")]))
    dropped = 0
    for seed in range(6):
        _, tuning = split(sources, tmp_path / "out", "--seed", str(seed))
        n_runners = sum("i run ." in dialog["personality"] for dialog in tuning["valid"])
        assert n_runners and sum("i run ." in dialog["personality"] for dialog in tuning["train"]) == 0
        dropped += 4 + 3 - 2 - len(tuning["train"])
    assert dropped > 0


def test_a_seed_decides_the_holdout_which_is_of_the_first_source(sources, tmp_path):
    first, again, other = (split(sources, tmp_path / name, "--seed", seed)
                           for name, seed in (("a", "1"), ("b", "1"), ("c", "2")))  # fmt: skip
    assert first == again and first[0] == other[0] and first[1] != other[1]
    ours = json.loads((tmp_path / "ours.json").read_text())["train"]
    for _, tuning in (first, other):
        assert all(dialog in ours for dialog in tuning["valid"])


def test_the_files_are_what_training_reads(sources, tmp_path):
    final, tuning = split(sources, tmp_path / "out", "--plain")
    for name, parts in (("final.json", final), ("tuning.json", tuning)):
        assert find_source(str(tmp_path / "out" / name)).load() == parts
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["final.json", "tuning.json"]


def test_natural_text_is_rewritten_where_asked(sources, tmp_path):
    (as_it_was, _), (final, _) = split(sources, tmp_path / "a"), split(sources, tmp_path / "b", "--plain")
    assert as_it_was["train"][-1]["personality"] == ["I bake bread2.", "I'm from village 2."]
    assert final["train"][-1] == {
        "personality": ["i bake bread2 .", "i'm from village 2 ."],
        "utterances": [
            {"candidates": ["i'm baking rye it is bread 2 ."], "history": ["hi ! what is up ?"]},
            {
                "candidates": ["don't you like bread ?"],
                "history": ["hi ! what is up ?", "i'm baking rye it is bread 2 .", "nice . . ."],
            },
        ],
    }
    assert final["train"][:9] == as_it_was["train"][:9]  # already in that form


@pytest.mark.parametrize("line", CONVAI2_LINES)
def test_text_of_convai2s_form_stays(line):
    assert as_convai2(line) == line


@pytest.mark.parametrize(
    ("natural", "plain"),
    [
        ("You’re “right”, I can't!!", "you are right , i can't ! !"),
        ("It's been 10,000 years (or so); let's go.", "it has been 10000 years or so ; let us go ."),
        ("Mr. Smith's R&B café in the U.S.", "mr smiths r and b cafe in the us ."),
        ("Were you in the U.S.?", "were you in the us ?"),
        ("My parents' well-known '80s songs…", "my parents well known 80s songs . . ."),
        ("We've got 5.5 or 8:30pm?", "we have got 5 . 5 or 8 30pm ?"),
        ("I cannot. You CANNOT.\nGonna?", "i cannot . you cannot . gonna ?"),
        (":-)", ":-)"),
        ("", ""),
    ],
)
def test_natural_text_as_convai2_writes_it(natural, plain):
    assert as_convai2(natural) == plain
    assert as_convai2(plain) == plain


def test_sentences_are_known_by_their_letters_and_by_their_long_form():
    assert sentence_keys("i've a dog.") & sentence_keys("I have a dog !")
    assert sentence_keys("i won't sing") & sentence_keys("I will not sing.")
    assert sentence_keys("im tall .") & sentence_keys("I'm tall")
    assert not sentence_keys("i have a dog") & sentence_keys("i have a dogs")
    assert not sentence_keys(". . .")


def test_the_table_counts_what_was_shared(sources, tmp_path, capsys):
    split(sources, tmp_path / "out", "--seed", "1")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["ours.json", "11", "11", "2", "9", "9"]
    assert lines[2].split() == ["others.txt", "4", "8", "1", "3", "6"]
    assert "evaluation: 2 dialogs, 2 replies" in lines
    assert "  whole personas in training: 2 of 2 before, 0 in final.json" in lines
    assert "  persona sentences in training: 3 of 3 before, 0 in final.json" in lines
    assert lines[-1].endswith("in training: 0 of 4; of the evaluation dialogs in either part: 0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "ours.json", "--output", "out"], "--valid is missing"),
        (["--valid", "valid.json", "--train", "nowhere.json", "--output", "out"], "--train: there is no nowhere.json"),
        (["--valid", "nowhere", "--train", "ours.json", "--output", "out"], "--valid: there is no nowhere"),
        (["--valid", "valid.json", "--train", "test.json", "--output", "out"], "test, but no train part"),
        (["--valid", "valid.json", "--train", "empty.json", "--output", "out"], "no dialogs to train on"),
        (["--valid", "valid.json", "--train", "ours.json", "--output", "out", "--holdout", "10"], "hold out fewer"),
        (["--valid", "valid.json", "--train", "ours.json", "--output", "out", "--holdout", "9"], "hold out fewer"),
        (["--valid", "valid.json", "--train", "ours.json", "--output", "ours.json", "--holdout", "1"], "--output"),
    ],
)
def test_mistakes_are_one_line(sources, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test.json").write_text(json.dumps({"test": make_dialogs(2)}))
    (tmp_path / "empty.json").write_text(json.dumps({"train": []}))
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count("\n") == 1 and message in error
    assert not (tmp_path / "out").exists()
