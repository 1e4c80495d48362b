"""Dialogs written in another form: what all forms hold comes back as it was, what one cannot hold is counted."""

import gzip
import json
import logging
import random
from pathlib import Path

import pytest
import tokenized_dialogs
from conftest import needs
from dialog_files import load, warnings_in
from test_rows import DIALOGS, SIDES, in_every_format, messages_of, write_lines
from tokenized_dialogs import bytes_of, dialog, in_memory, turn

from convai.data.example_world import example_dataset
from convai.data.formats import find_source, read_splits
from convai.data.schema import Losses
from convai.data.writing import FORMS, convert
from convai.errors import UserError
from convai.options import FORM_NAMES
from utils import get_dataset

tokenizer = tokenized_dialogs.tokenizer
FILES = {"messages": "a.jsonl", "personachat": "a.json", "parlai": "a.txt"}
by_form = pytest.mark.parametrize("form", FORMS)


def stream(parts: dict):
    for name, dialogs in parts.items():
        yield name, None
        yield from ((name, one) for one in dialogs)


def write(folder: Path, form: str, dialogs: list[dict]) -> Path:
    folder.mkdir(exist_ok=True)
    (written,) = convert(stream({"": dialogs}), form, folder / FILES[form])
    return written.path


def test_the_options_name_the_forms():
    assert list(FORMS) == FORM_NAMES == list(FILES)


# What comes back


def examples_of(dialogs, tokenizer) -> list:
    return list(in_memory(tokenizer, dialogs)["train"])


@pytest.mark.parametrize("distractors", [[], ["a sailor .", "no ."]])
def test_every_format_comes_back_out_of_every_form_with_the_same_examples(tmp_path, tokenizer, distractors, caplog):
    dialogs = [
        {**d, "utterances": [{**u, "candidates": [*distractors, *u["candidates"]]} for u in d["utterances"]]}
        for d in DIALOGS
    ]
    examples = examples_of(dialogs, tokenizer)
    for number, path in enumerate(in_every_format(tmp_path, dialogs).values()):
        for form in FORMS:
            if form != "messages" or not distractors:
                again = read_splits(write(tmp_path / str(number), form, read_splits(path)[""]))
                assert again == {"": dialogs} and examples_of(again[""], tokenizer) == examples, (path, form)
    assert not warnings_in(caplog)


@by_form
def test_the_stores_of_a_data_set_and_of_what_it_was_written_as_are_equal_bytes(tmp_path, tokenizer, form):
    dialogs = [dialog(turn(f"hi {n}", candidates=[f"yes {n}"]), personality=[f"i am {n}"]) for n in range(30)]
    path, caches = write(tmp_path, "personachat", dialogs), []
    for number, source in enumerate([path, write(tmp_path / "other", form, dialogs)]):
        get_dataset(tokenizer, str(source), str(tmp_path / f"cache{number}"))
        (cache,) = tmp_path.glob(f"cache{number}.*")
        caches.append(bytes_of(cache))
    assert caches[0] == caches[1]


@by_form
@pytest.mark.parametrize("content", [
    SIDES,
    '{"dialog": ["hi", "ho", "so ?", "so ."]}\n{"dialog": ["a", "b"]}',
    '{"conversations": [{"from": "gpt", "value": "first !"}, {"from": "human", "value": "a"}, '
    '{"from": "gpt", "value": "b"}]}',
    "text:your persona: i row .\\nhi\tlabels:ho\ttepisode_done:False\ntext:so\\n2 lines\tlabels:a|b\tepisode_done:True",
])  # fmt: skip
def test_forms_without_distractors_come_back(tmp_path, form, content, caplog):
    (tmp_path / "b").write_text(content)
    dialogs = read_splits(tmp_path / "b")[""]
    caplog.clear()
    assert read_splits(write(tmp_path, form, dialogs)) == {"": [dict(one) for one in dialogs]}
    wanted = "conversations whose two sides will no longer be held out together: 2" if content == SIDES else ""
    assert " ".join(warnings_in(caplog)).endswith(wanted) and bool(warnings_in(caplog)) == bool(wanted)


def test_preferences_keep_the_rejected_reply_where_a_form_can(tmp_path, caplog):
    path = write_lines(tmp_path / "b", [{"prompt": "any pets ?", "chosen": "a dog .", "rejected": "no ."}])
    wanted = read_splits(path)[""]
    for form in ("personachat", "parlai"):
        assert read_splits(write(tmp_path, form, wanted))[""] == wanted
    assert not warnings_in(caplog)
    assert read_splits(write(tmp_path, "messages", wanted))[""] == [dialog(turn("any pets ?", candidates=["a dog ."]))]
    assert warnings_in(caplog) == [f"{tmp_path / 'a.jsonl'}: distractors, which are left out: 1"]


def test_a_folder_of_parquet_comes_back(tmp_path, monkeypatch):
    pyarrow, pq, datasets = needs("pyarrow"), needs("pyarrow.parquet"), needs("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "table").mkdir()
    pq.write_table(pyarrow.Table.from_pylist(list(map(messages_of, DIALOGS))), tmp_path / "table" / "train.parquet")
    for form in FORMS:
        (written,) = convert(find_source(str(tmp_path / "table")).stream(), form, tmp_path / FILES[form])
        assert list(read_splits(written.path).values()) == [DIALOGS]


def test_silence_before_the_first_reply_is_parlai_s_name_for_an_empty_history(tmp_path):
    (tmp_path / "a.txt").write_text("1 your persona: i row .\n2 __SILENCE__\thello !\n3 hi\tho\n4 __SILENCE__\tso ?\n")
    (found,) = read_splits(tmp_path / "a.txt")[""]
    assert [u["history"] for u in found["utterances"]] == [
        [],
        ["hello !", "hi"],
        ["hello !", "hi", "ho", "__SILENCE__"],
    ]
    assert read_splits(write(tmp_path / "b", "parlai", [found]))[""] == [found]


# What a form cannot hold

LOSSES = [
    (dialog(turn("a", "b", "c", candidates=["d"])), "earlier replies that were only read, which become replies to le"),
    (dialog(turn("a", candidates=["b"]), turn("c", candidates=["d"])), "conversations more than dialogs, as a history"),
    (dialog(turn("a ", candidates=["b"])), "texts with white space around them, which is removed: 1"),
    (dialog(turn("a"), personality=["x\ny"]), "line breaks within persona sentences, which become spaces: 1"),
    (dialog(turn("a"), personality=["x", " "]), "persona sentences without text, which are left out: 1"),
]


@pytest.mark.parametrize("form", ["messages", "parlai"])
@pytest.mark.parametrize("given, loss", LOSSES)
def test_what_is_lost_is_counted_once(tmp_path, form, given, loss, caplog):
    again = read_splits(write(tmp_path, form, [given]))[""]
    (warning,) = warnings_in(caplog)
    assert loss in warning and ";" not in warning
    caplog.clear()
    assert again != [given] and read_splits(write(tmp_path / "again", form, again))[""] == again
    assert not warnings_in(caplog)


@pytest.mark.parametrize("given, loss", [
    (dialog(turn(r"c:\new", candidates=["b"])), "texts with what means something else in ParlAI's text, which get a"),
    (dialog(turn("hi\nyour persona: x", candidates=["b"])), "texts with what means something else in ParlAI's text"),
    (dialog(turn("a", candidates=["B !", "", "b"])), "distractors that repeat the reply or have no text, which are"),
    (dialog(turn("a", candidates=["\ud800"])), "texts with halves of characters or NUL, which are replaced: 1"),
    (dialog(turn("a\0", candidates=["b"])), "texts with halves of characters or NUL, which are replaced: 1"),
    (dialog(turn("a", candidates=["b"]), turn("a", "b", "c", candidates=[" "])), "replies without text, which are l"),
])  # fmt: skip
def test_what_parlai_s_text_cannot_hold_is_counted(tmp_path, given, loss, caplog):
    write(tmp_path, "parlai", [given])
    assert loss in warnings_in(caplog)[0]


def test_a_half_of_a_character_stands_in_json_as_an_escape(tmp_path):
    given = [dialog(turn("é", candidates=["\ud83d"]))]
    for form in ("personachat", "messages"):
        assert read_splits(write(tmp_path, form, given))[""] == given


TEXTS = ["a", "b c", " a", "", "\n", "x\ny", "\t", "a|b", "__PIPE|", r"\n", r"\t|", "__PIPE__", "__SILENCE__", "é😀"]
TEXTS += ["your persona: p", "hi\npartner's persona: q", "A !", "\ud800", "\r", "a\rb", "\u2028", "text:x", "1 a", "{"]
TEXTS += ["\x00", "\xa0"]


def random_dialog(rng: random.Random) -> dict:
    def texts(lowest: int, highest: int) -> list[str]:
        n = rng.randint(lowest, highest)
        return [rng.choice(TEXTS) if rng.random() < odd else f"plain text {rng.random():.3f}" for _ in range(n)]

    odd = rng.choice([0.1, 0.9])
    spoken: list[str] = []
    utterances: list[dict] = []
    for _ in range(rng.randint(1, 3)):
        spoken = [*spoken, *texts(1, 1)] if utterances and rng.random() < 0.8 else texts(0, 2)
        candidates = texts(1, 3)
        utterances.append({"history": spoken, "candidates": candidates})
        spoken = [*spoken, candidates[-1]]
    return {"personality": texts(0, 2), "utterances": utterances}


@by_form
def test_any_dialog_is_read_back_as_it_was_unless_a_loss_is_counted_and_then_nothing_more_is_lost(tmp_path, form):
    rng = random.Random(1)
    n_whole = 0
    for n in range(400):
        given, losses = random_dialog(rng), Losses()
        text = FORMS[form].text_of(given, losses)
        if not text:
            assert losses.counts.total()
            continue
        path = tmp_path / "a"
        path.write_text(text if form != "personachat" else f"[{text}]", encoding="utf-8", newline="")
        found = read_splits(path)[""]
        if not losses.counts.total():
            n_whole += 1
            assert found == [given], n
        more = Losses()
        again = "".join(FORMS[form].text_of(one, more) for one in found)
        if form != "personachat":
            assert (again, more.counts.total()) == (text, 0), n
    assert n_whole == 400 if form == "personachat" else n_whole > 10


# Files


def test_parts_are_one_file_or_a_file_each_which_are_read_as_a_pair_and_as_a_folder(tmp_path):
    parts = {"valid": DIALOGS[2:], "train": DIALOGS[:2], "test": DIALOGS[:1]}
    (one,) = convert(stream(parts), "personachat", tmp_path / "a.json")
    assert one == (tmp_path / "a.json", 4, 6) and read_splits(one.path) == parts
    written = convert(stream(parts), "messages", tmp_path / "new" / "a.jsonl")
    assert [(path.name, n) for path, n, _ in written] == [
        ("train_a.jsonl", 2),
        ("valid_a.jsonl", 1),
        ("test_a.jsonl", 1),
    ]
    wanted = {"train": DIALOGS[:2], "valid": DIALOGS[2:]}
    assert load(tmp_path / "new") == load(f"{written[0].path},{written[1].path}") == wanted


@by_form
def test_no_dialogs_are_no_file(tmp_path, form):
    with pytest.raises(UserError, match="there are no dialogs to write into"):
        convert([("train", None)], form, tmp_path / FILES[form])
    assert not list(tmp_path.iterdir())


@by_form
def test_a_name_in_gz_is_of_a_packed_file_that_is_the_same_each_time(tmp_path, form):
    path = tmp_path / f"{FILES[form]}.gz"
    convert(stream({"": DIALOGS}), form, path)
    content = path.read_bytes()
    assert gzip.decompress(content) and read_splits(path) == {"": DIALOGS}
    path.unlink()
    convert(stream({"": DIALOGS}), form, path)
    assert path.read_bytes() == content


def test_nothing_is_overwritten_and_a_failure_leaves_nothing(tmp_path):
    (tmp_path / "train_a.jsonl").write_text("mine")
    with pytest.raises(UserError, match=r"train_a\.jsonl exists already; choose another name, or remove it"):
        convert(stream({"train": DIALOGS, "valid": DIALOGS}), "messages", tmp_path / "a.jsonl")

    def broken():
        yield DIALOGS[0]
        raise UserError("line 2 is not JSON")

    with pytest.raises(UserError, match="line 2"):
        convert(stream({"": broken()}), "messages", tmp_path / "b.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["train_a.jsonl"]
    assert (tmp_path / "train_a.jsonl").read_text() == "mine"


@pytest.mark.parametrize("form, name, reason", [
    ("messages", "a.jsonl.zst", "would be compressed by zstd, which is only read; end its name in .gz"),
    ("parlai", "a.json", "would be read as JSON; give parlai another ending"),
    ("parlai", "a.csv.gz", "would be read as CSV"),
    ("messages", ".", "is a folder; name a file in it"),
])  # fmt: skip
def test_names_that_would_not_be_read_are_refused(tmp_path, form, name, reason):
    with pytest.raises(UserError) as refusal:
        convert(stream({"": DIALOGS}), form, tmp_path / name)
    assert reason in str(refusal.value)


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--to: .* cannot be written"):
        convert(stream({"": DIALOGS}), "messages", tmp_path / "file" / "a.jsonl")


def test_the_example_set_through_parlai_is_the_example_set(tmp_path):
    parts = example_dataset(n_train_dialogs=50, n_valid_dialogs=5)
    convert(stream(parts), "parlai", tmp_path / "a.txt.gz")
    assert load(tmp_path) == parts


def test_a_written_file_is_a_line_a_dialog(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write(tmp_path, "messages", DIALOGS)
    write(tmp_path, "personachat", DIALOGS)
    assert [
        json.loads(line)["messages"][-1]["content"] for line in (tmp_path / "a.jsonl").read_text().splitlines()
    ] == [
        "only my hens .",
        "sleep well !",
        "i row .",
    ]
    assert (tmp_path / "a.json").read_text().count("\n") == 5
