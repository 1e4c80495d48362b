"""serve.py as users start it: help, the address, endings, wrong options, the image's healthcheck."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from conftest import ROOT, TEXTS, cannot_run, needs, tiny_model
from serving import CHAT, QUESTION, messages, random_agent, serving

from convai.model.loading import save_model
from convai.model.tokenization import train_vocabulary
from convai.options import ServeOptions
from convai.serve.access import warning_of
from convai.serve.health import is_well, options_of_server


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tokenizer = train_vocabulary([*TEXTS, *map(str, range(100))], "openai-gpt", 400)
    save_model(tiny_model(tokenizer, n_positions=512), folder)
    tokenizer.save(folder)
    return folder


def start(*options: str, **environment: str) -> subprocess.Popen:
    inherited = {name: value for name, value in os.environ.items() if name != "CONVAI_API_KEY"}
    return subprocess.Popen(
        [sys.executable, "serve.py", "--port", "0", "--device", "cpu", *options],
        cwd=ROOT,
        env=inherited | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def address(server: subprocess.Popen, notes: list[str]) -> str:
    """Wait for the address; what is said before it goes to `notes`."""
    for line in server.stderr:
        notes.append(line)
        if found := re.search(r"serving tiny at (http://\S+)/ ", line):
            return found[1]
    pytest.fail("".join(notes))


def test_help_answers_at_once():
    command = [sys.executable, "-X", "importtime", "serve.py", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "--allowed_hosts" in result.stdout
    assert not re.search(r"\| +(torch|transformers|fastapi|uvicorn|numpy|spacy)$", result.stderr, re.MULTILINE)


@pytest.mark.parametrize(("number", "host"), [(signal.SIGTERM, "127.0.0.1"), (signal.SIGINT, "0.0.0.0")])
def test_it_serves_until_a_signal_comes_and_finishes_what_runs(checkpoint, tmp_path, number, host):
    log = tmp_path / "dialogs.jsonl"
    server = start("--model_checkpoint", str(checkpoint), "--host", host, "--log_dialogs", str(log))
    notes: list[str] = []
    url = address(server, notes)
    # Others may come only with a warning.
    assert "".join(notes).count("warning: whoever reaches this address may use the model") == (host == "0.0.0.0")
    assert notes[-2] == f"loading {checkpoint} ...\n"
    asked = {"messages": messages([QUESTION]), "stream": True, "max_tokens": 200, "min_tokens": 200}
    with httpx.Client(base_url=url, timeout=30) as client:
        assert client.get("/health").json() == {"status": "ok", "model": "tiny"}
        assert client.get("/").headers["content-type"].startswith("text/html")
        with client.stream("POST", CHAT, json=asked) as response:
            lines = response.iter_lines()
            next(lines)
            server.send_signal(number)
            assert list(lines)[-2:] == ["data: [DONE]", ""]
    output, errors = server.communicate(timeout=20)
    assert server.returncode == 0, errors
    assert output == "" and errors == "" and log.read_text().count("\n") == 1
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_a_warning_where_others_may_come_without_a_key():
    assert [warning_of(host, keys) for host, keys in (("127.0.0.1", []), ("::1", []), ("0.0.0.0", ["a"]))] == [""] * 3
    assert "CONVAI_API_KEY" in warning_of("0.0.0.0", []) and "CONVAI_API_KEY" in warning_of("192.0.2.1", [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model_checkpoint", "/nowhere"], r"error: .*/nowhere.*"),
        (["--port", "70000"], r"error: argument --port: '70000' is no port: they end at 65535 .*"),
        (["--deadline", "0"], r"error: argument --deadline: '0' is not a number above 0 .*"),
        (["--api_key_file", "/nowhere"], r"error: .*/nowhere.*"),
        (["--host", "no.such.name.invalid"], r"error: --host no.such.name.invalid --port 0: cannot listen there: .*"),
        (["--temperature", "0.001"], r"error: temperature must be from 0.01 to 100, not 0.001; see --help."),
    ],
)
def test_wrong_options_are_one_line(checkpoint, options, message):
    chosen = options if "--model_checkpoint" in options else ["--model_checkpoint", str(checkpoint), *options]
    server = start(*chosen)
    output, errors = server.communicate(timeout=60)
    assert server.returncode == 2 and output == ""
    assert re.fullmatch(message, errors.strip().splitlines()[-1]) and "Traceback" not in errors


def test_a_port_that_is_taken_is_one_line(checkpoint):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        before = time.monotonic()
        server = start("--model_checkpoint", str(checkpoint), "--port", port)
        _, errors = server.communicate(timeout=60)
    assert server.returncode == 2 and time.monotonic() - before < 30
    assert errors == f"error: --host 127.0.0.1 --port {port}: cannot listen there: Address already in use.\n"


def test_the_healthcheck_finds_the_server_and_asks_it(tmp_path):
    assert options_of_server(tmp_path) is None
    for number, words in ((1, ["sh", "-c", "python3 serve.py --port 1"]), (7, ["python3", "train.py", "serve.py"]),
                          (8, ["python3", "serve.py", "--port", "0"])):  # fmt: skip
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "cmdline").write_bytes("\0".join(words).encode() + b"\0")
    assert options_of_server(tmp_path) is None
    (tmp_path / "12").mkdir()
    words = ["python3", "/workspace/serve.py", "--host", "0.0.0.0", "--port=8123", "--model", "models/"]
    (tmp_path / "12/cmdline").write_bytes("\0".join(words).encode() + b"\0")
    options = options_of_server(tmp_path)
    assert (options.host, options.port) == ("0.0.0.0", 8123)
    with serving(random_agent()) as server:
        assert is_well(ServeOptions(host="0.0.0.0", port=server.port))
        server.service.worker.drain()
        assert not is_well(ServeOptions(port=server.port))
    assert not is_well(ServeOptions(port=server.port))


def test_the_image_has_the_healthcheck():
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "EXPOSE 8000\n" in image
    command = re.search(r'^HEALTHCHECK .*CMD \["python3", "-m", "(\S+)"\]$', image, re.MULTILINE)[1]
    result = subprocess.run([sys.executable, "-m", command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode in (0, 1) and "Traceback" not in result.stderr


PAGE = (ROOT / "docs/serve.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def documented():
    with serving(random_agent()) as server:
        yield server


def test_the_documented_commands_work(documented):
    if not shutil.which("curl"):
        cannot_run("there is no curl")
    found = re.findall(r"^```bash\n# needs a running server\n(curl .*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    answers = []
    for command in found:
        here = command.replace("http://127.0.0.1:8000", documented.url)
        done = subprocess.run(["bash", "-c", f"{here.rstrip()} --silent"], capture_output=True, text=True, check=True)
        answers.append(json.loads(done.stdout))
    reply, ranking = answers
    assert reply["choices"][0]["message"]["content"] and len(ranking["results"]) == 2


def test_the_documented_client_works(documented, tmp_path):
    needs("openai")
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "client.py").write_text(block.replace("http://127.0.0.1:8000", documented.url))
    done = subprocess.run([sys.executable, tmp_path / "client.py"], capture_output=True, text=True, check=True)
    assert done.stdout
