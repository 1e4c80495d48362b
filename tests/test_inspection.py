"""What data hold, counted: values small enough to check by hand, and the report of them as a reader sees it."""

import io

import pytest
import tokenized_dialogs
from decoder_folders import make_decoder
from rich.console import Console
from tokenized_dialogs import dialog, turn

from convai.data.inputs import InputBuilder
from convai.data.inspection import Inspection
from convai.data.inspection_report import Report, console_of
from convai.data.lengths import ASCII_BLOCKS, Bins, Lengths, Place, bins_of, drawn, quantile
from convai.data.measures import TokenMeasure, WordMeasure
from convai.data.shown_input import ShownPart, show_input, show_text
from convai.model.loading import load_tokenizer
from convai.model.tokenization import train_vocabulary

tokenizer = tokenized_dialogs.tokenizer

TRAIN = [
    dialog(turn("hi you", candidates=["no", "yes it is"]), turn("hi you", "yes it is", "so ?", candidates=["ok"]),
           personality=["i row .", "i am a nurse ."]),
    dialog(turn("hi you", candidates=["a", "b", "ok"]), personality=["I'm a nurse.", "I row."]),
    dialog(turn(candidates=["", "hello"]), turn("", candidates=["ok"])),
]  # fmt: skip
VALID = [
    dialog(turn("hi you", candidates=["ok"]), personality=["i am a nurse .", "i row ."]),
    dialog(turn("a", candidates=["b"]), personality=["i row .", "i sew ."]),
]


def inspected(parts, measure=None) -> Inspection:
    stream = ((name, one) for name, dialogs in parts.items() for one in [None, *dialogs])
    return Inspection(measure or WordMeasure(max_history=2)).add(stream)


def test_what_two_parts_hold_and_have_in_common():
    facts = inspected({"valid": VALID, "train": TRAIN}).facts()
    train, valid = facts["parts"]["train"], facts["parts"]["valid"]
    assert (train["dialogs"], train["replies"], train["dialogs_without_persona"]) == (3, 5, 1)
    assert train["replies_to_nothing"] == 1
    assert train["candidates_per_reply"] == {"1": 2, "2": 2, "3": 1}
    # "I'm a nurse." is not "i am a nurse .": letters are compared, not what they mean.
    assert train["different"] == {"dialogs": 3, "replies": 3, "personas": 2, "persona_sentences": 3}
    assert train["repeating"] == {"dialogs": 0, "replies": 3, "personas": 0, "persona_sentences": 2}
    assert train["empty"]["turns"] == {"n": 1, "first": {"dialog": 2, "utterance": 1}}
    assert train["empty"]["distractors"] == {"n": 1, "first": {"dialog": 2, "utterance": 0}}
    assert train["empty"]["replies"]["n"] == train["empty"]["persona_sentences"]["n"] == 0
    assert train["unknown_share"] is train["inputs_cut"] is None
    turns = train["lengths"]["turns"]
    assert turns["counts"] == {"0": 1, "2": 3} and (turns["min"], turns["median"], turns["max"]) == (0, 2, 2)
    inputs = train["lengths"]["inputs"]
    assert inputs["longest"] == {"dialog": 0, "utterance": 1} and inputs["max"] == 8 + 7 + 1
    assert (valid["dialogs"], valid["different"]["personas"]) == (2, 2)
    assert facts["shared"] == [{
        "part": "valid", "with": "train", "dialogs": {"n": 1, "of": 2},
        "dialogs_whose_persona_is_known": {"n": 1, "of": 2},
        "replies": {"n": 1, "of": 2}, "personas": {"n": 1, "of": 2}, "persona_sentences": {"n": 2, "of": 3},
    }]  # fmt: skip


def test_tokens_unknown_ones_and_inputs_that_are_cut(tokenizer):
    long = "hello ! " * 10
    dialogs = [dialog(turn("hello !", candidates=["日 hello", "日 !"])), dialog(turn(long, candidates=["hello"]))]
    builder = InputBuilder(tokenizer, max_positions=16)
    part = inspected({"": dialogs}, TokenMeasure(builder, max_history=2)).parts[""]
    # <bos> <speaker2> hello ! <speaker1>, 日 hello <eos>; the other has 24 before its reply
    assert part.lengths["inputs"].counts == {8: 1, 1 + 21 + 1 + 2: 1} and part.n_cut == 1
    n_tokens = 2 + 2 + 20 + 1  # turns and replies
    assert part.lost_share == pytest.approx(1 / n_tokens)
    assert part.measure.of("日").lost_share == 1


def test_measures_forget_rather_than_grow(tokenizer, monkeypatch):
    monkeypatch.setattr("convai.data.measures.MAX_REMEMBERED", 3)
    measure = TokenMeasure(InputBuilder(tokenizer, 16), max_history=2)
    lengths = [len(measure.of(f"hello {n}").tokens) for n in range(10)]
    assert len(measure._known) <= 3 and lengths == [len(tokenizer.encode(f"hello {n}")) for n in range(10)]


# Lengths


def test_quantiles_and_bins():
    counts = {1: 50, 2: 30, 3: 10, 9: 9, 100: 1}
    assert [quantile(counts, share) for share in (0.0, 0.5, 0.51, 0.95, 0.99, 1.0)] == [1, 1, 2, 9, 9, 100]
    bins = bins_of(counts, 5)
    assert bins == Bins(1, 2, [80, 10, 0, 0, 10], has_rest=True) and bins.end == 11
    assert bins.of({1: 1, 8: 2}) == Bins(1, 2, [1, 0, 0, 2, 0])
    assert bins_of({7: 3}, 5) == Bins(7, 1, [3])
    assert drawn(bins) == "█▁  ▁" and drawn(bins, ASCII_BLOCKS) == "@.  ."


def test_the_longest_is_the_first_of_its_length():
    lengths = Lengths()
    assert not lengths and lengths.facts() == {"n": 0}
    for number, length in enumerate((2, 5, 5)):
        lengths.add(length, Place(number), f"text {number}")
    assert (lengths.max, lengths.longest, lengths.longest_text, lengths.mean) == (5, Place(1), "text 1", 4.0)
    assert str(Place(3)) == "dialog 3" and str(Place(3, 1)) == "dialog 3, utterance 1"


# Inputs as the model sees them


def test_an_input_of_speakers(tokenizer):
    builder = InputBuilder(tokenizer, 128)
    shown = show_input(
        builder, 1, ["my cat .", "i sing ."], ["cut off", "!", "hello ?", "so", "pets ?"], ["no", "yes ."]
    )
    names = [(part.who, part.lead) for part in shown.parts]
    assert names == [("persona", "<bos>"), ("user", ""), ("agent", ""), ("user", ""), ("target", "<speaker1>")]
    texts = [part.text.replace("·", "") for part in shown.parts]
    assert texts == ["my cat . i sing .", "<speaker2> hello ?", "<speaker1> so", "<speaker2> pets ?", "yes . <eos>"]
    tree = builder.tree(*([list(map(tokenizer.encode, texts)) for texts in (
        ["my cat .", "i sing ."], ["hello ?", "so", "pets ?"], ["yes ."])]))  # fmt: skip
    assert shown.n_tokens == len(tree.input_ids) and not shown.was_cut
    assert show_input(InputBuilder(tokenizer, 12), 1, ["my cat ."], ["hello ?"] * 3, ["yes ."]).was_cut


def test_words_are_shown_by_their_tokens():
    gpt2 = train_vocabulary(["hello there"] * 3, "gpt2", 270)
    shown = show_input(InputBuilder(gpt2, 128), 2, [], ["hello there zz 😀"], ["é!"])
    assert shown.parts[0].text.endswith("z·z 😀")
    assert shown.parts[-1] == ShownPart("target", "<speaker1>", "é! <eos>")


def test_an_input_of_a_chat_template(tmp_path):
    tokenizer = load_tokenizer(make_decoder(tmp_path / "model"))
    shown = show_input(
        InputBuilder(tokenizer, 256), 2, ["i sing .", "", "my cat ."], ["hello", "so", "pets ?"], ["yes ."]
    )
    parts = [(who, lead, text.replace("·", "")) for who, lead, text in shown.parts]
    assert [(who, lead.replace("·", "")) for who, lead, _ in parts] == [
        ("persona", "<|im_start|>system\n"),
        ("user", "<|im_end|>\n<|im_start|>user\n"),
        ("agent", "<|im_end|>\n<|im_start|>assistant\n"),
        ("user", "<|im_end|>\n<|im_start|>user\n"),
        ("target", "<|im_end|>\n<|im_start|>assistant\n"),
    ]
    assert [text for *_, text in parts] == ["i sing .\nmy cat .", "hello", "so", "pets ?", "yes .<|im_end|>"]


def test_without_a_model_the_words_stand_as_they_are():
    assert show_text(1, ["i row .", "i sew ."], ["cut", "off", "hi", "ho", "so ?"], "yes") == [
        ShownPart("persona", "", "i row . i sew ."),
        ShownPart("user", "", "hi"),
        ShownPart("agent", "", "ho"),
        ShownPart("user", "", "so ?"),
        ShownPart("target", "", "yes"),
    ]


# The report


def report_of(parts, console=None, measure=None) -> str:
    file = io.StringIO()
    console = console or Console(file=file, width=100, markup=False)
    Report(console, inspected(parts, measure)).write()
    return console.file.getvalue()


def row(text: str, label: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(label)).removeprefix(label).split()


def test_a_plain_report():
    text = report_of({"train": TRAIN, "valid": VALID})
    assert row(text, "dialogs") == ["3", "2"]
    assert row(text, "candidates of a reply") == ["1", "to", "3,", "median", "2", "the", "reply", "alone"]
    assert row(text, "empty turns") == ["1", "(first:", "dialog", "2,", "utterance", "1)", "0"]
    assert row(text, "dialogs whose persona is known") == ["1", "of", "2", "(50", "%)"]
    assert "empty replies" not in text and "positions" not in text and "\x1b" not in text
    assert "words of " in text and "no valid part" not in text
    assert "Reply 2 of 2 in the first dialog, and what it answers to" in text
    assert row(text, "target") == ["_ok_"] and "training holds out 5 %" in report_of({"": TRAIN})


def test_a_report_in_colours_and_without(tokenizer):
    def written(**settings) -> str:
        console = Console(file=io.StringIO(), width=100, force_terminal=True, markup=False, **settings)
        return report_of({"": TRAIN}, console, TokenMeasure(InputBuilder(tokenizer, 128), 2))

    coloured = written(color_system="standard")
    assert "\x1b[32muser   \x1b[0m" in coloured and "\x1b[4;36mok <eos>\x1b[0m" in coloured.replace("·", "")
    plain = written(color_system="standard", no_color=True)
    assert "\x1b[32m" not in plain and "_ok <eos>_" in plain.replace("·", "")


def test_text_of_data_sends_no_commands_to_the_terminal():
    text = report_of({"": [dialog(turn("a\x1b[31m\x07\u202eb [red]x[/red]\nc", candidates=["ok"]))]})
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text
    assert "[31mb [red]x[/red]↵c" in text


def test_a_pipe_gets_no_colours_and_its_own_width(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    console = console_of(io.StringIO())
    assert (console.width, console.color_system) == (100, None)
