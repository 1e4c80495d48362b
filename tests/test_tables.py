"""Dialogs from .parquet folders, and data sets on the hub as far as they can be had without it."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT, make_dialogs, needs

from convai.data import tables
from convai.data.formats import find_source, load_for_evaluation
from convai.errors import UserError
from utils import get_dataset

datasets = needs("datasets")
pq = needs("pyarrow.parquet")

TRAIN, VALID = make_dialogs(5), make_dialogs(2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


def write_parquet(path, rows):
    import pyarrow

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder as the hub has it: the training data in two files, the validation data named in full."""
    folder = tmp_path / "persona-chat"
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", TRAIN[:3])
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", TRAIN[3:])
    write_parquet(folder / "data" / "validation-00000-of-00001.parquet", VALID)
    return folder


def replies_of(dialogs) -> list[dict]:
    return [
        {"personality": dialog["personality"], **utterance, "conv_id": number, "utterance_idx": index}
        for number, dialog in enumerate(dialogs)
        for index, utterance in enumerate(dialog["utterances"])
    ]


def test_a_row_a_dialog(folder):
    assert find_source(str(folder)).load() == {"train": TRAIN, "valid": VALID}
    assert load_for_evaluation(str(folder)) == (TRAIN, VALID)


def test_a_row_a_reply_in_any_order(tmp_path):
    write_parquet(tmp_path / "flat" / "train.parquet", replies_of(TRAIN)[::-1])
    write_parquet(tmp_path / "flat" / "valid.parquet", replies_of(VALID))
    assert find_source(str(tmp_path / "flat")).load() == {"train": TRAIN[::-1], "valid": VALID}


def test_replies_without_a_dialog_stand_alone(tmp_path):
    rows = [{"history": ["hi"], "candidates": ["no .", "yes ."]}] * 2
    write_parquet(tmp_path / "train.parquet", rows)
    write_parquet(tmp_path / "validation.parquet", rows[:1])
    dialog = {"personality": [], "utterances": rows[:1]}
    assert find_source(str(tmp_path)).load() == {"train": [dialog, dialog], "valid": [dialog]}


def test_utterances_written_as_one_object_of_lists(tmp_path):
    rows = [
        {**dialog, "utterances": {key: [u[key] for u in dialog["utterances"]] for key in ("history", "candidates")}}
        for dialog in TRAIN
    ]
    write_parquet(tmp_path / "train.parquet", rows)
    write_parquet(tmp_path / "validation.parquet", rows)
    assert find_source(str(tmp_path)).load() == {"train": TRAIN, "valid": TRAIN}


@pytest.mark.parametrize("name", ["valid", "validation", "dev", "val", "eval"])
@pytest.mark.parametrize("layout", ["{}.parquet", "{}-00000-of-00001.parquet", "{}/0.parquet"])
def test_the_validation_part_by_any_of_its_names(tmp_path, name, layout):
    """The package takes eval* for test."""
    for part, rows in (("train", TRAIN), (name, VALID), ("test", TRAIN[:1])):
        write_parquet(tmp_path / "data" / layout.format(part), rows)
    assert find_source(str(tmp_path / "data")).load() == {"train": TRAIN, "valid": VALID}
    assert load_for_evaluation(str(tmp_path / "data")) == (TRAIN, VALID)


def test_a_test_part_is_evaluated_on_but_not_validated_on(tmp_path, caplog):
    write_parquet(tmp_path / "data" / "train.parquet", TRAIN)
    write_parquet(tmp_path / "data" / "test.parquet", VALID)
    with caplog.at_level("INFO", "convai.data"):
        splits = find_source(str(tmp_path / "data")).load()
    assert splits["valid"][0] in TRAIN and "its test split is not used" in caplog.text
    assert load_for_evaluation(str(tmp_path / "data")) == (TRAIN, VALID)


def test_null_counts_as_missing(tmp_path):
    write_parquet(tmp_path / "dialogs" / "train.parquet", [{**TRAIN[0], "personality": None}, TRAIN[1]])
    assert [d["personality"] for d in find_source(str(tmp_path / "dialogs")).splits()["train"]] == [
        [],
        TRAIN[1]["personality"],
    ]
    turns = [{"history": ["hi"], "candidates": [reply]} for reply in ("a", "b", "c", "d")]
    ids = [(None, 5), (None, None), (7, 1), (7, None)]
    rows = [
        {**turn, "personality": ["i ski ."] if index == 1 else None, "conv_id": number, "utterance_idx": index}
        for turn, (number, index) in zip(turns, ids, strict=True)
    ]
    write_parquet(tmp_path / "replies" / "train.parquet", rows)
    assert find_source(str(tmp_path / "replies")).splits()["train"] == [
        {"personality": [], "utterances": [turns[0]]},
        {"personality": [], "utterances": [turns[1]]},
        {"personality": ["i ski ."], "utterances": [turns[3], turns[2]]},
    ]


def test_unknown_columns_are_named(tmp_path, caplog):
    write_parquet(tmp_path / "a" / "train.parquet", [{**dialog, "id": 1} for dialog in TRAIN])
    write_parquet(tmp_path / "b" / "train.parquet", [{**reply, "topic": "x"} for reply in replies_of(TRAIN)])
    for folder, named in (("a", '"id" (5 times)'), ("b", '"topic" (10 times)')):
        caplog.clear()
        find_source(str(tmp_path / folder)).splits()
        assert [r.getMessage() for r in caplog.records if r.name == "convai.data.schema"] == [
            f"{tmp_path / folder}: ignored, as no such keys are known: {named}"
        ]


def test_byte_order_marks_within_tables_are_dropped(tmp_path):
    write_parquet(tmp_path / "train.parquet", [{"history": ["\ufeffhi"], "candidates": ["no .", "\ufeffyes ."]}])
    (dialog,) = find_source(str(tmp_path)).splits()["train"]
    assert dialog["utterances"] == [{"history": ["hi"], "candidates": ["no .", "yes ."]}]


def test_without_a_validation_split_dialogs_are_held_out(tmp_path):
    write_parquet(tmp_path / "train.parquet", TRAIN)
    splits = find_source(str(tmp_path)).load()
    assert len(splits["train"]) == 4 and len(splits["valid"]) == 1 and splits["valid"][0] in TRAIN
    assert load_for_evaluation(str(tmp_path)) == ([], TRAIN)


def test_the_same_tokens_as_from_json(folder, dataset_file, tokenizer, tmp_path):
    write_parquet(tmp_path / "again" / "train.parquet", make_dialogs(12))
    write_parquet(tmp_path / "again" / "validation.parquet", make_dialogs(4))
    ours = get_dataset(tokenizer, str(tmp_path / "again"), str(tmp_path / "cache"))
    theirs = get_dataset(tokenizer, str(dataset_file), "")
    for split, n_dialogs in (("train", 12), ("valid", 4)):
        assert ours[split].n_dialogs == n_dialogs and len(ours[split]) == len(theirs[split])
        assert ours[split][3] == theirs[split][3]


def test_the_digest_follows_the_content(folder, tmp_path):
    digest = find_source(str(folder)).digest()
    assert find_source(str(folder)).digest() == digest
    write_parquet(folder / "data" / "validation-00000-of-00001.parquet", VALID[:1])
    assert find_source(str(folder)).digest() != digest


def test_a_name_on_the_hub_takes_the_same_way(folder, monkeypatch):
    real, asked = datasets.load_dataset, []

    def load_dataset(name):
        asked.append(name)
        return real(str(folder))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert find_source("hub:AlekseyKorshuk/persona-chat").load() == {"train": TRAIN, "valid": VALID}
    assert asked == ["AlekseyKorshuk/persona-chat"]


def test_an_unreachable_hub_is_one_line(tmp_path):
    code = (
        "from convai.data.formats import find_source; "
        "from convai.errors import report_user_errors as r; r(find_source('hub:a/b').load)()"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "--dataset_path hub:a/b cannot be read: Couldn't reach" in done.stderr and "local file" in done.stderr


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "hi"}], "its columns are text; needed are personality and utterances, or"),
        ([{"personality": ["a ."], "utterances": []}], "train dialog 0 has no turns"),
        ([{"history": ["hi"], "candidates": []}], '"candidates" is empty'),
        (
            [{"persona": ["a ."], "utterances": [{"history": ["hi"], "candidates": ["b"]}]}],
            'train dialog 0: the key "persona" is unknown; did you mean "personality"',
        ),
        (
            [{"persona": ["a ."], "history": ["hi"], "candidates": ["b"]}],
            'train row 0: the key "persona" is unknown; did you mean "personality"',
        ),
        (
            [{"context": ["hi"], "candidates": ["b"]}],
            "its columns are candidates, context; .*mean history by con",
        ),
        ([{"history": "hi", "candidates": ["yes ."]}], 'key "history" must be a list of strings, not a string'),
    ],
)
def test_wrong_tables_are_refused_with_their_place(tmp_path, rows, message):
    write_parquet(tmp_path / "train.parquet", rows)
    with pytest.raises(UserError, match=message) as caught:
        find_source(str(tmp_path)).load()
    assert str(tmp_path) in str(caught.value)


def test_damaged_file(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="cannot be read") as caught:
        find_source(str(tmp_path)).load()
    assert "\n" not in str(caught.value)


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'datasets>=4'"):
        find_source("hub:a/b").load()


def test_reading_other_forms_does_not_import_the_package():
    code = "import sys, convai.data.formats as f; f.find_source('example').load(); sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_published_download_failing_names_both_ways_out(monkeypatch, tmp_path):
    monkeypatch.setenv("CONVAI_CACHE", str(tmp_path))
    monkeypatch.setattr("convai.data.formats.PERSONACHAT_URL", "http://127.0.0.1:9/personachat.json")
    with pytest.raises(UserError, match=r"cannot download .* hub:AlekseyKorshuk/persona-chat .*--dataset_path FILE"):
        find_source("")


def test_parquet_is_found_in_the_folder_or_one_below(folder, tmp_path):
    assert tables.holds_parquet(str(folder)) and tables.holds_parquet(str(folder / "data"))
    (tmp_path / "empty").mkdir()
    assert not tables.holds_parquet(str(tmp_path / "empty"))
