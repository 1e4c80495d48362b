"""data.py as a user runs it: a report, an image, JSON, a conversion, and mistakes."""

import json
import re
import subprocess
import sys

import pytest
from conftest import ROOT, make_dialogs, needs, tiny_config, tiny_model
from dialog_files import write_json

import data
from convai.data.formats import read_splits
from convai.io.files import write_json as write
from convai.model.loading import save_model
from convai.model.tokenization import train_vocabulary


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the script in this process; returns its output, its messages and its exit status."""

    def call(*arguments) -> tuple[str, str, int]:
        monkeypatch.setattr(sys, "argv", ["data.py", *map(str, arguments)])
        status = 0
        try:
            data.main()
        except SystemExit as ended:
            status = ended.code
        output = capsys.readouterr()
        return output.out, output.err, status

    return call


@pytest.fixture
def vocabulary(tmp_path, tokenizer):
    """A folder as new_model.py makes it: no weights."""
    tokenizer.save(tmp_path / "model")
    write(tmp_path / "model" / "config.json", tiny_config(tokenizer.family, len(tokenizer), n_positions=40))
    return tmp_path / "model"


def test_the_report_of_a_file_in_a_pipe(dataset_file, vocabulary):
    done = subprocess.run([sys.executable, ROOT / "data.py", dataset_file, "--model", vocabulary], capture_output=True,
                          text=True, encoding="utf-8")  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["dialogs", "12", "4"] in lines and ["candidates", "of", "a", "reply", "4", "4"] in lines
    assert ["inputs", "cut", "to", "40", "positions", "24", "(100", "%)", "8", "(100", "%)"] in lines
    assert re.search(r"as the model sees it: \d\d of 40 positions, cut\n", done.stdout)
    assert [line[0] for line in lines[-4:-1]][-1] == "target" and lines[-2][-1] == "<eos>_"
    assert "\x1b" not in done.stdout


def test_json_for_programs_and_an_image(run, dataset_file, vocabulary, tmp_path):
    image = needs("PIL.Image")
    out, notes, status = run(dataset_file, "--model", vocabulary, "--json", "--plot", tmp_path / "new" / "a.png")
    assert status == 0, notes
    facts = json.loads(out)
    assert (facts["data"], facts["unit"], facts["max_positions"]) == (str(dataset_file), "tokens", 40)
    assert facts["parts"]["train"]["replies"] == 24 and facts["shared"][0]["persona_sentences"] == {"n": 5, "of": 5}
    with image.open(tmp_path / "new" / "a.png") as drawn:
        assert drawn.size[0] > 1000 and len(drawn.convert("RGB").getcolors(maxcolors=10**6)) > 50
    assert run(dataset_file, "--model", "", "--plot", tmp_path / "a.svg")[2] == 0
    assert "persona sentences" not in (tmp_path / "a.svg").read_text()[:100]


def test_history_is_as_in_the_models_training_unless_told(run, dataset_file, tmp_path):
    tokenizer = train_vocabulary(["hello there"], "gpt2", 300)
    model = tiny_model(tokenizer, n_positions=400)
    model.config.max_history = 0
    save_model(model, tmp_path / "run")
    tokenizer.save(tmp_path / "run")
    assert run(dataset_file, "--model", tmp_path / "run")[0].count("\nagent ") == 0
    assert run(dataset_file, "--model", tmp_path / "run", "--max_history", "1")[0].count("\nagent ") == 1


def test_without_a_network_the_default_model_is_replaced_by_words(run, dataset_file, caplog, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(dataset_file.parent / "hub"))
    out, _, status = run(dataset_file)
    assert status == 0 and "words of " in out
    (warning,) = [record.getMessage() for record in caplog.records if record.name == "data"]
    assert warning.startswith("words are counted instead of tokens, as there is no tokenizer: openai-gpt: ")
    assert run(dataset_file, "--model", "gpt2")[2] == 2


def test_a_conversion_says_how_to_read_it(run, dataset_file, tmp_path):
    out, _, status = run(dataset_file, "--to", "parlai", tmp_path / "a.txt.gz")
    train, valid = tmp_path / "train_a.txt.gz", tmp_path / "valid_a.txt.gz"
    assert status == 0 and out.splitlines() == [
        f"{train}: 12 dialogs, 24 replies",
        f"{valid}: 4 dialogs, 8 replies",
        f"To read them: --dataset_path {train},{valid}",
    ]
    assert read_splits(train)[""] == make_dialogs(12)
    out, _, _ = run(f"{train},{valid}", "--to", "personachat", tmp_path / "b.json")
    assert out.splitlines()[-1] == f"To read them: --dataset_path {tmp_path / 'b.json'}"
    assert read_splits(tmp_path / "b.json") == read_splits(dataset_file)
    _, notes, status = run(dataset_file, "--to", "parlai", tmp_path / "a.txt.gz")
    assert status == 2 and "train_a.txt.gz exists already" in notes


def test_a_mixture_is_its_dialogs_without_weights(run, dataset_file, tmp_path, caplog):
    other = write_json(tmp_path / "other.json", {"train": make_dialogs(12), "valid": make_dialogs(4)})
    out, _, status = run(f"{dataset_file} + {other}*0.5", "--to", "messages", tmp_path / "a.jsonl")
    assert status == 0 and "train_a.jsonl: 24 dialogs, 48 replies" in out
    assert "the weights of sources are for training: here every dialog counts once" in caplog.text


@pytest.mark.parametrize("arguments, reason", [
    (["DATA", "--to", "csv", "a"], "error: --to csv: there is no such form; give messages, personachat, parlai; see"),
    (["DATA", "--to", "messages", "a", "--json"], "--to writes dialogs only; leave out --plot and --json; see --help"),
    (["EMPTY", "--to", "messages", "a"], "error: --to: there are no dialogs to write into a; give other data."),
    (["nowhere.json"], "error: there is no nowhere.json; give a file, a folder, a URL, or"),
    (["DATA", "--model", "", "--plot", "a.doc"], "error: --plot a.doc: no image is of this kind; end its name in .png"),
    (["DATA", "--model", "", "--plot", "/dev/null/a.png"], "error: --plot /dev/null/a.png cannot be written ("),
    (["EMPTY", "--model", ""], "there are no dialogs; give other data."),
    ([], "the following arguments are required: DATA"),
])  # fmt: skip
def test_mistakes_are_one_line(run, dataset_file, tmp_path, arguments, reason):
    files = {"DATA": dataset_file, "EMPTY": write_json(tmp_path / "empty.json", {"train": []})}
    out, notes, status = run(*(files.get(argument, argument) for argument in arguments))
    assert (out, status) == ("", 2)
    assert reason in notes and notes.count("\n") == 1


def test_without_matplotlib_the_plot_is_refused_in_one_line(run, dataset_file, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    _, notes, status = run(dataset_file, "--model", "", "--plot", tmp_path / "a.png")
    assert status == 2 and notes.startswith("error: --plot needs the package matplotlib (") and notes.count("\n") == 1
