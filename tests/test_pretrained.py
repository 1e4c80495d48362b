"""Where checkpoints come from: folders, archives, the hub with and without a network."""

import io
import json
import tarfile

import huggingface_hub
import pytest
from http_server import FileServer
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from convai.errors import UserError
from convai.io.files import read_json_object
from convai.io.pretrained import locate_checkpoint, read_config
from convai.model.loading import load_tokenizer


class Hub:
    """Stands in for the hub: holds files, records what is asked for, or raises `error`."""

    def __init__(self, folder):
        self.folder = folder
        self.files: list[str] = []
        self.error: Exception | None = None
        self.asked: list[tuple[str, list[str]]] = []

    def snapshot_download(self, repository: str, *, allow_patterns: list[str]) -> str:
        self.asked.append((repository, allow_patterns))
        huggingface_hub.utils.validate_repo_id(repository)
        if self.error:
            raise self.error
        for name in {*self.files} & {*allow_patterns}:
            (self.folder / name).write_text("{}")
        return str(self.folder)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    folder = tmp_path / "snapshot"
    folder.mkdir()
    hub = Hub(folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.chdir(tmp_path)
    return hub


def error_of(path_or_name) -> str:
    with pytest.raises(UserError) as caught:
        locate_checkpoint(path_or_name)
    message = str(caught.value)
    assert "\n" not in message
    return message


# The hub


@pytest.mark.parametrize("name, repository", [
    ("openai-gpt", "openai-community/openai-gpt"),
    ("gpt2", "openai-community/gpt2"),
    ("gpt2-xl", "openai-community/gpt2-xl"),
    ("someone/something", "someone/something"),
])  # fmt: skip
def test_names_lead_to_the_hub(hub, name, repository):
    hub.files = ["config.json", "vocab.json", "merges.txt", "model.safetensors", "pytorch_model.bin"]
    assert locate_checkpoint(name) == hub.folder
    assert [asked for asked, _ in hub.asked] == [repository]
    # Weights in one format are enough, and pickles are only fetched where there is nothing else.
    assert sorted(path.name for path in hub.folder.iterdir()) == sorted(set(hub.files) - {"pytorch_model.bin"})


def test_old_weights_are_fetched_where_there_are_no_others(hub):
    hub.files = ["config.json", "pytorch_model.bin", "training_args.bin"]
    assert locate_checkpoint("gpt2") == hub.folder
    assert sorted(path.name for path in hub.folder.iterdir()) == ["config.json", "pytorch_model.bin"]


def test_a_folder_comes_before_a_name(hub, tmp_path):
    (tmp_path / "gpt2").mkdir()
    assert locate_checkpoint("gpt2").resolve() == tmp_path / "gpt2"
    assert hub.asked == []


def offline() -> Exception:
    return LocalEntryNotFoundError("Got: ConnectError\nAn error happened while trying to locate the files on the Hub")


def unknown_repository() -> Exception:
    import requests

    response = requests.Response()
    response.status_code = 404
    return RepositoryNotFoundError("404 Client Error. (Request ID: 1)\n\nRepository Not Found", response=response)


class ProxyError(Exception):
    """Like the HTTP library's own, neither an OSError nor the hub's."""


@pytest.mark.parametrize("name, error, wanted", [
    ("gpt2", offline(), "gpt2: there is no such folder, and the hub cannot be reached for openai-community/gpt2"),
    ("runs/mine", offline(), "runs/mine: there is no such folder, and the hub cannot be reached"),
    ("no/one", unknown_repository(), "no/one cannot be had from the hub (404 Client Error. (Request ID: 1))"),
    ("gpt2", OSError(28, "No space left on device"), "cannot be had from the hub ([Errno 28] No space left on device)"),
    ("gpt2", ProxyError("403 Forbidden"), "cannot be had from the hub (403 Forbidden)"),
    ("gpt2", OSError(), "cannot be had from the hub (OSError)"),
    ("runs/mine/last", None, "runs/mine/last: there is no such folder, and it is not a name on the hub"),
    ("/no/such/folder", None, "/no/such/folder: there is no such folder"),
    ("./missing", None, "./missing: there is no such folder, and it is not"),
    pytest.param("a" * 5000, None, "there is no such folder", id="a very long name"),
])  # fmt: skip
def test_what_cannot_be_had_is_one_line_with_a_remedy(hub, name, error, wanted):
    hub.error = error
    message = error_of(name)
    assert wanted in message
    assert message.endswith("Give --model_checkpoint a local folder with config.json, vocabulary and weights.")


def test_the_real_hub_client_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert "the hub cannot be reached for openai-community/gpt2" in error_of("gpt2")
    with pytest.raises(HFValidationError):
        huggingface_hub.snapshot_download("runs/mine/last")


# Folders, files, archives


def test_a_folder_is_itself(tmp_path, monkeypatch):
    assert locate_checkpoint(tmp_path) == locate_checkpoint(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert locate_checkpoint(f"~/{tmp_path.name}") == tmp_path


def test_a_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("")
    assert f"{path} is a file; give the folder that holds config.json and the weights" in error_of(path)


def test_an_archive_is_fetched_once_and_unpacked(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("CONVAI_CACHE", str(tmp_path / "cache"))
    tokenizer.save(tmp_path / "model")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(tmp_path / "model", "model")
    with FileServer() as server:
        server.files["/model.tar.gz"] = packed.getvalue()
        url = server.url("/model.tar.gz")
        assert (
            load_tokenizer(locate_checkpoint(url)).fingerprint
            == load_tokenizer(locate_checkpoint(url)).fingerprint
            == tokenizer.fingerprint
        )
        assert len(server.requests) == 1
        missing = server.url("/missing.tar.gz")
        message = error_of(missing)
    assert missing in message and "HTTP 404" in message
    assert "Give --model_checkpoint a local folder instead" in message


# config.json


def test_config(tmp_path):
    with pytest.raises(
        UserError, match=r"has no config\.json: is it a checkpoint folder\? It needs config\.json, a vocab"
    ):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"n_embd": 16}))
    assert read_config(tmp_path) == {"n_embd": 16}


@pytest.mark.parametrize("content, wanted", [
    (b'{"n_embd": 16,\n "n_layer" 2}', "config.json is not JSON: Expecting ':' delimiter at line 2, column 12"),
    (b"[1]", "config.json holds a JSON list; an object is needed"),
    (b'{"a": "\xe0"}', "config.json cannot be read: 'utf-8' codec can't decode byte 0xe0 in position 7"),
])  # fmt: skip
def test_malformed_json_names_the_place(tmp_path, content, wanted):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json_object(path)
    assert f"{tmp_path}/{wanted}" in str(caught.value)


def test_byte_order_marks_of_a_checkpoint_s_files_are_dropped(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    for path in tmp_path.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_config(tmp_path) == {"model_type": "gpt2"}
    assert load_tokenizer(tmp_path).fingerprint == tokenizer.fingerprint
