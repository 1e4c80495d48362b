"""Dialogs as others keep them: messages, rows of replies, both sides, plain turns, preferences; in JSON and CSV."""

import gzip
import itertools
import json
import re

import numpy as np
import pytest
import tokenized_dialogs
from conftest import ROOT, needs
from dialog_files import GOOD, error_of, load, warnings_in, write_json
from tokenized_dialogs import bytes_of

from convai.data.compressed import zstd
from convai.data.formats import find_source, load_for_evaluation, read_splits
from convai.data.messages import message_line
from utils import get_dataset

tokenizer = tokenized_dialogs.tokenizer

DIALOGS = [
    {
        "personality": ["i keep hens .", "i am a baker ."],
        "utterances": [
            {"history": ["hi , who are you ?"], "candidates": ["a baker ."]},
            {"history": ["hi , who are you ?", "a baker .", "any pets ?"], "candidates": ["only my hens ."]},
        ],
    },
    {"personality": [], "utterances": [{"history": ["good night"], "candidates": ["sleep well !"]}]},
    {"personality": ["i row ."], "utterances": [{"history": ["any hobby ?"], "candidates": ["i row ."]}]},
]


def turns_of(dialog) -> list[str]:
    last = dialog["utterances"][-1]
    return [*last["history"], last["candidates"][-1]]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def messages_of(dialog, key="messages", role="role", text="content", names=("user", "assistant")) -> dict:
    persona = "\n".join(dialog["personality"])
    system = [{role: "system", text: persona}] if persona else []
    turns = [{role: names[n % 2], text: turn} for n, turn in enumerate(turns_of(dialog))]
    return {key: [*system, *turns]}


def sharegpt_of(dialog) -> dict:
    return messages_of(dialog, "conversations", "from", "value", ("human", "gpt"))


def replies_of(dialogs) -> list[dict]:
    return [
        {"personality": dialog["personality"], **utterance, "conv_id": number, "utterance_idx": index}
        for number, dialog in enumerate(dialogs)
        for index, utterance in enumerate(dialog["utterances"])
    ]


def parlai_of(dialogs) -> str:
    lines = []
    for dialog in dialogs:
        texts = [f"your persona: {sentence}" for sentence in dialog["personality"]]
        for u in dialog["utterances"]:
            distractors = "".join(f"\t\t{'|'.join(u['candidates'])}" for _ in u["candidates"][1:2])
            texts.append(f"{u['history'][-1]}\t{u['candidates'][-1]}{distractors}")
        lines += [f"{n} {text}\n" for n, text in enumerate(texts, start=1)]
    return "".join(lines)


def in_every_format(folder, dialogs) -> dict:
    """Files with the same dialogs, by format; those that hold no distractors only where there are none."""
    (folder / "dialogs.txt").write_text(parlai_of(dialogs))
    paths = {
        "PersonaChat": write_json(folder / "dialogs.json", dialogs),
        "ParlAI": folder / "dialogs.txt",
        "PersonaChat, a line each": write_lines(folder / "dialogs.jsonl", dialogs),
        "replies": write_lines(folder / "replies.jsonl", replies_of(dialogs)[:2][::-1] + replies_of(dialogs)[2:]),
        "replies, array": write_json(folder / "replies.json", replies_of(dialogs)),
    }
    if all(len(utterance["candidates"]) == 1 for dialog in dialogs for utterance in dialog["utterances"]):
        paths |= {
            "messages": write_lines(folder / "messages.jsonl", map(messages_of, dialogs)),
            "messages, array": write_json(folder / "messages.json", list(map(messages_of, dialogs))),
            "ShareGPT": write_lines(folder / "sharegpt.jsonl", map(sharegpt_of, dialogs)),
        }
    return paths


@pytest.mark.parametrize("distractors", [[], ["a sailor .", "no ."]])
def test_the_same_dialogs_give_the_same_store_in_every_format(tmp_path, tokenizer, distractors, caplog):
    dialogs = [
        {**d, "utterances": [{**u, "candidates": [*distractors, *u["candidates"]]} for u in d["utterances"]]}
        for d in DIALOGS
    ]
    stores = {}
    for name, path in in_every_format(tmp_path, dialogs).items():
        get_dataset(tokenizer, str(path), str(tmp_path / "caches" / name))
        (store,) = (tmp_path / "caches").glob(f"{name}.*")
        stores[name] = bytes_of(store)
    assert len(stores) == (5 if distractors else 8)
    for one, other in itertools.combinations(stores, 2):
        assert stores[one] == stores[other], (one, other)
    candidates = b"".join(stores["ParlAI"][f"{split}.candidates.bin"] for split in ("train", "valid"))
    assert len(np.frombuffer(candidates, dtype=np.int32)) == 4 * (1 + len(distractors))
    assert not warnings_in(caplog)


def test_lines_are_told_by_their_content_and_may_be_gzipped(tmp_path):
    rows = list(map(messages_of, DIALOGS))
    for name in ("a.json", "b.txt", "c"):
        assert read_splits(write_lines(tmp_path / name, rows)) == {"": DIALOGS}
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress((tmp_path / "c").read_bytes().replace(b"\n", b"\r\n\n")))
    assert read_splits(tmp_path / "d.jsonl.gz") == {"": DIALOGS}
    assert read_splits(write_lines(tmp_path / "one.jsonl", rows[:1])) == {"": DIALOGS[:1]}


def test_parts_pairs_and_folders_of_rows(tmp_path):
    rows = list(map(messages_of, DIALOGS))
    parts = write_json(tmp_path / "parts.json", {"train": rows[:2], "validation": rows[2:], "test": [GOOD]})
    wanted = {"train": DIALOGS[:2], "valid": DIALOGS[2:]}
    assert load(parts) == wanted
    assert load_for_evaluation(str(parts)) == (DIALOGS[:2], DIALOGS[2:])
    (tmp_path / "folder").mkdir()
    train = write_lines(tmp_path / "folder/train.jsonl", rows[:2])
    valid = write_lines(tmp_path / "folder/valid.jsonl", map(sharegpt_of, DIALOGS[2:]))
    assert load(f"{train},{valid}") == load(tmp_path / "folder") == wanted


def test_the_same_rows_in_parquet(tmp_path):
    pyarrow, pq, datasets = needs("pyarrow"), needs("pyarrow.parquet"), needs("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        for name, rows in (
            ("messages", list(map(messages_of, DIALOGS))),
            ("sharegpt", list(map(sharegpt_of, DIALOGS))),
        ):
            (tmp_path / name).mkdir()
            table = pyarrow.Table.from_pylist(rows)
            pq.write_table(table, tmp_path / name / "train.parquet")
            assert find_source(str(tmp_path / name)).splits() == {"train": DIALOGS}


def test_the_examples_of_the_documentation_are_read_as_they_stand(tmp_path, caplog):
    page = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```(json|csv)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    n_replies = []
    for kind, text in examples:
        path = tmp_path / f"example.{kind}"
        path.write_text(text)
        n_replies.append([len(dialog["utterances"]) for dialog in read_splits(path)[""]])
    assert n_replies == [[1, 1], [1], [1], [2, 1], [2], [1]]
    assert not warnings_in(caplog)


# Messages


def said(*pairs) -> dict:
    return {"messages": [{"role": role, "content": text} for role, text in pairs]}


def read_one(tmp_path, row) -> dict:
    (dialog,) = read_splits(write_lines(tmp_path / "a.jsonl", [row]))[""]
    return dialog


@pytest.mark.parametrize("text, persona", [
    ("i bake . i sing well !", ["i bake .", "i sing well !"]),
    ("i bake . i sing .\n\n i row .", ["i bake . i sing .", "i row ."]),
    ("i bake . i sing .\n", ["i bake . i sing ."]),
    (" ", []),
])  # fmt: skip
def test_the_system_message_is_the_persona(tmp_path, text, persona):
    assert read_one(tmp_path, said(("system", text), ("user", "hi"), ("assistant", "ho")))["personality"] == persona


def test_turns_of_one_role_are_joined_and_what_is_lost_is_counted_once(tmp_path, caplog):
    spoken = said(
        ("User", "hi"),
        ("user", " you there ? "),
        ("assistant", ""),
        ("tool", "{}"),
        ("assistant", "yes ."),
        ("tool", "{}"),
        ("critic", "bad"),
        ("assistant", "i am ."),
        ("system", "be brief ."),
        ("user", "ok"),
    )
    spoken["messages"].insert(3, {"role": "assistant", "content": None, "tool_calls": []})
    write_lines(tmp_path / "a.jsonl", [spoken, said(("user", "anyone ?")), said(("assistant", "hello !"))])
    utterances = [dialog["utterances"] for dialog in read_splits(tmp_path / "a.jsonl")[""]]
    assert utterances == [
        [{"history": ["hi you there ?"], "candidates": ["yes . i am ."]}],
        [{"history": [], "candidates": ["hello !"]}],
    ]
    keys, losses = warnings_in(caplog)
    assert keys.endswith('ignored, as no such keys are known: "tool_calls" (1 times)')
    assert losses == (
        f'{tmp_path / "a.jsonl"}: messages of the role "tool", which are left out: 2; messages of the role "critic", '
        "which are left out: 1; messages of the system after the first turn, which are left out: 1; turns without "
        "text, which are left out: 2; turns after a conversation's last reply, which are left out: 1; conversations "
        "without a reply to learn, which are left out: 1"
    )


@pytest.mark.parametrize("persona", [[], ["i bake . i sing ."], ["i bake .", "ich heiße émile ."]])
def test_a_dialog_written_as_messages_is_read_back_as_it_was(tmp_path, persona):
    path = tmp_path / "chat.jsonl"
    path.write_text(message_line(persona, ["hi", "ho . ho .", "bye ?", "bye !"]), encoding="utf-8")
    assert path.read_text(encoding="utf-8").count("\n") == 1
    assert read_splits(path)[""] == [
        {
            "personality": persona,
            "utterances": [
                {"history": ["hi"], "candidates": ["ho . ho ."]},
                {"history": ["hi", "ho . ho .", "bye ?"], "candidates": ["bye !"]},
            ],
        }
    ]


# Both sides, plain turns, preferences

SIDES = (
    "user 1 personas,user 2 personas,Best Generated Conversation\n"
    '"I bake.\nI row.",I ski.,"User 1: Hi!\nUser 2: Hello, you?\nUser 1: I bake,\nas you see."\n'
    ',I sew.,"User 1: Bye.\nUser 2: Bye."\n'
)


def test_a_conversation_of_two_is_a_dialog_of_each(tmp_path, caplog):
    (tmp_path / "a.csv").write_text(SIDES)
    first, second, third, fourth = read_splits(tmp_path / "a.csv")[""]
    assert first == {
        "personality": ["I bake.", "I row."],
        "utterances": [
            {"history": [], "candidates": ["Hi!"]},
            {"history": ["Hi!", "Hello, you?"], "candidates": ["I bake, as you see."]},
        ],
    }
    assert second == {"personality": ["I ski."], "utterances": [{"history": ["Hi!"], "candidates": ["Hello, you?"]}]}
    assert [third["personality"], fourth["personality"]] == [[], ["I sew."]]
    assert not warnings_in(caplog)


def test_both_sides_of_a_conversation_are_held_out_together(tmp_path, caplog):
    row = ',,"User 1: hi {0}\nUser 2: ho {0}"\n'
    (tmp_path / "a.csv").write_text(SIDES.split("\n")[0] + "\n" + "".join(row.format(n) for n in range(40)))
    with caplog.at_level("INFO"):
        splits = load(tmp_path / "a.csv")
    assert "4 of its 80 dialogs are held out" in caplog.text
    numbers = [dialog["utterances"][0]["candidates"][0].split()[1] for dialog in splits["valid"]]
    assert len(numbers) == 4 and len(set(numbers)) == 2
    (tmp_path / "b.csv").write_text("\n".join(SIDES.split("\n")[:6]) + "\n")
    assert "a lone dialog cannot be split" in error_of(tmp_path / "b.csv")


def test_of_plain_turns_every_second_is_a_reply(tmp_path, caplog):
    path = write_lines(tmp_path / "a.jsonl", [{"dialog": ["a", "b ", "c", "d", "e"], "act": [1]}, {"dialog": ["x"]}])
    assert read_splits(path)[""] == [
        {
            "personality": [],
            "utterances": [{"history": ["a"], "candidates": ["b"]}, {"history": ["a", "b", "c"], "candidates": ["d"]}],
        }
    ]
    keys, losses = warnings_in(caplog)
    assert '"act" (1 times)' in keys
    assert "last reply, which are left out: 1; conversations without a reply to learn, which are left out: 1" in losses


def chat(*pairs) -> list[dict]:
    return said(*pairs)["messages"]


ASKED = chat(("system", "i row ."), ("user", "hi"), ("assistant", "ho"), ("user", "any pets ?"))


@pytest.mark.parametrize("row, persona, history", [
    ({"prompt": "any pets ?", "chosen": "a dog .", "rejected": "no ."}, [], ["any pets ?"]),
    ({"prompt": "any pets ?", "chosen": chat(("assistant", "a dog .")), "rejected": "no ."}, [], ["any pets ?"]),
    ({"prompt": ASKED, "chosen": "a dog .", "rejected": "no ."}, ["i row ."], ["hi", "ho", "any pets ?"]),
    ({"prompt": "any pets ?", "messages": [],  # the prompt once more in both
      "chosen": chat(("user", "any pets ?"), ("assistant", "a dog .")),
      "rejected": chat(("user", "any pets ?"), ("assistant", "no ."))}, [], ["any pets ?"]),
    ({"chosen": [*ASKED, *chat(("assistant", "a dog ."))], "rejected": [*ASKED, *chat(("assistant", "no ."))]},
     ["i row ."], ["hi", "ho", "any pets ?"]),
])  # fmt: skip
def test_the_rejected_reply_is_the_distractor_of_the_chosen(tmp_path, row, persona, history):
    utterance = {"history": history, "candidates": ["no .", "a dog ."]}
    assert read_one(tmp_path, row) == {"personality": persona, "utterances": [utterance]}


# Mistakes


@pytest.mark.parametrize("row, wanted", [
    ({"messages": "hi"}, 'line 2, key "messages" must be a list of messages, not a string'),
    ({"text": "hi"}, 'line 2, key "messages" must be a list of messages, not missing or null'),
    ({"messages": ["hi"]}, 'line 2, key "messages", message 0 must be an object, not a string'),
    (said((None, "a")), 'message 0, key "role" must be a string, one of system, user, human, assistant, gpt, not miss'),
    (said(("user", ["a"])), 'line 2, key "messages", message 0, key "content" must be a string, not a list; write the'),
    ({"messages": [{"role": "user", "contnet": "a"}]}, 'the key "contnet" is unknown; did you mean "content"?'),
    ("hi", "line 2 must be an object, not a string"),
])  # fmt: skip
def test_wrong_messages_are_refused_with_their_line(tmp_path, row, wanted):
    message = error_of(write_lines(tmp_path / "a.jsonl", [messages_of(DIALOGS[0]), row]))
    assert message.startswith(str(tmp_path / "a.jsonl")) and wanted in message


@pytest.mark.parametrize("rows, wanted", [
    ([{"text": "hi"}] * 2, "a.jsonl, line 1: its columns are text; needed are personality and utterances, or"),
    ([GOOD, {"personality": []}], 'a.jsonl, line 2, key "utterances" must be a list, not missing or null'),
    ([{"history": ["a"], "candidates": ["b"]}, {"candidates": ["b"]}], 'line 2, key "history" must be a list of'),
    ([{"history": ["a"], "candidates": []}] * 2, 'line 1, key "candidates" is empty; it needs at least the gold'),
    ([{"history": ["a"], "candidates": ["b"], "conv_id": [1]}] * 2, 'key "conv_id" must be a number or a string'),
    ([{"history": ["a"], "candidates": ["b"], "utterance_idx": "1"}] * 2, 'key "utterance_idx" must be a number'),
    ([{"history": ["a"], "candidates": ["b"], "personality": "c"}] * 2, 'line 1, key "personality" must be a list of'),
    ([{"dialog": ["a", 1]}] * 2, 'line 1, key "dialog" must hold strings only, not a number'),
    ([{"chosen": "b", "rejected": "c"}] * 2, 'line 1: there is nothing that "chosen" replies to; give the'),
    ([{"prompt": "a", "chosen": " ", "rejected": "c"}] * 2, 'key "chosen" must end with a reply of the assistant; add'),
    ([{"prompt": "a", "chosen": "b", "rejected": None}] * 2, 'key "rejected" must be a list of messages, not missing'),
    ([{"chosen": chat(("user", "a"), ("assistant", "b")), "rejected": chat(("user", "x"), ("assistant", "b"))}] * 2,
     'line 1: "chosen" and "rejected" differ before their last replies'),
])  # fmt: skip
def test_wrong_rows_are_refused_with_their_line_and_key(tmp_path, rows, wanted):
    assert wanted in error_of(write_lines(tmp_path / "a.jsonl", rows))


def test_an_array_of_unknown_rows_is_refused_with_what_was_expected(tmp_path):
    path = write_json(tmp_path / "a.json", {"train": [{"personality": [], "text": "hi"}] * 2})
    assert "a.json: train row 0: its columns are personality, text; needed are personality and utt" in error_of(path)
    assert 'unknown; did you mean "utterances"?' in error_of(write_json(tmp_path / "b.json", [{"turns": []}]))


def test_a_line_that_is_no_json_is_named(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", map(messages_of, DIALOGS))
    path.write_text(path.read_text() + '{"messages": \n')
    assert f"{path}, line 4 is not JSON: Expecting value at column 14; mend it there" in error_of(path)


@pytest.mark.parametrize("content, wanted", [
    ("text,label\na,b\n", "a.csv: its columns are label, text; needed are personality and utterances"),
    (SIDES.replace("User 1: Bye", "Bye"), "a.csv: row 1, key \"Best Generated Conversation\": its lines start with"),
    (SIDES.replace("User 1: Bye.\nUser 2: Bye.", " "), "row 1, key \"Best Generated Conversation\" is empty; fill or"),
    (SIDES + "a,b,c,d\n", "a.csv: row 2 has more fields than the first line; put those with commas into quotes"),
    (SIDES + "a,b\n", 'row 2, key "Best Generated Conversation" must be a string of lines, not missing or null'),
    (SIDES + 'a,b,"User 1: c', "a.csv: row 2 is not CSV: unexpected end of data; mend the quotes there"),
])  # fmt: skip
def test_wrong_csv_is_refused_with_its_row(tmp_path, content, wanted):
    (tmp_path / "a.csv").write_text(content)
    assert wanted in error_of(tmp_path / "a.csv")


def test_zstd_is_undone_and_a_damaged_file_named(tmp_path):
    path, content = tmp_path / "a.jsonl.zst", write_lines(tmp_path / "plain", map(messages_of, DIALOGS)).read_bytes()
    packed = zstd.compress(content[:50]) + zstd.compress(content[50:])  # as `cat` joins files
    path.write_bytes(packed)
    assert read_splits(path) == {"": DIALOGS}
    path.write_bytes(packed[:-3])
    assert f"{path} cannot be read (" in error_of(path)
