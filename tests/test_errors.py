"""Messages name what the user can change: options in scripts, arguments in Python."""

import pytest
from conftest import TEXTS

from convai.dialog.agent import DialogAgent
from convai.errors import UserError, argument, report_user_errors, speak_of_options
from convai.model.loading import load_tokenizer
from convai.model.tokenization import train_vocabulary


@pytest.fixture
def in_python():
    speak_of_options(False)
    yield
    speak_of_options()


def test_library_errors_name_arguments_and_scripts_name_options(in_python, tmp_path, capsys):
    train_vocabulary(TEXTS, "gpt2", 300).save(tmp_path)

    def load():
        load_tokenizer(tmp_path, "bert")

    with pytest.raises(UserError, match=r"^tokenization bert is for OpenAI GPT"):
        load()
    with pytest.raises(UserError, match=r"^device nonsense cannot be used"):
        DialogAgent.load(tmp_path, device="nonsense")
    with pytest.raises(SystemExit):
        report_user_errors(load)()
    assert capsys.readouterr().err.startswith("error: --tokenization bert is for OpenAI GPT")
    assert argument("device") == "--device"
