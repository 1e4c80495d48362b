"""Downloads from a local server that fails on demand."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from http_server import FileServer
from test_archives import CONTENT, FILES, tar_bytes, tree

from convai.errors import UserError
from convai.io import download
from convai.io.download import cache_folder, fetch, fetch_archive, is_url

REPOSITORY = Path(__file__).parents[1]
BLOCK = download.BLOCK_BYTES


@pytest.fixture
def server():
    with FileServer() as running:
        running.files["/data/persona.json"] = CONTENT
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, no pauses between attempts, no proxy."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CONVAI_CACHE", str(folder))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "RETRY_PAUSES_S", (0, 0))
    return folder


def leave_part(server, monkeypatch, n_bytes):
    """Fetch until the connection breaks after `n_bytes`, without a second attempt; return the .part file."""
    server.drop_after = [n_bytes]
    with monkeypatch.context() as patch:
        patch.setattr(download, "RETRY_PAUSES_S", ())
        with pytest.raises(UserError, match="broke off"):
            fetch(server.url("/data/persona.json"))
    server.requests.clear()
    (part,) = cache_folder().glob("*.part")
    return part


# --- names and folders


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("CONVAI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/transfer-learning-conv-ai")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ann")
    assert cache_folder() == Path("/home/ann/.cache/transfer-learning-conv-ai")
    assert not (tmp_path / "cache").exists()


def test_is_url():
    assert is_url("http://a/b") and is_url("HTTPS://a/b")
    assert not is_url("data/persona.json") and not is_url("s3://a/b") and not is_url("")


def test_names_are_readable_and_differ_between_urls():
    name = download._cached_name("https://host/a/my%20model.tar.gz?version=2")
    assert name.endswith("-my_model.tar.gz")
    assert name != download._cached_name("https://host/b/my%20model.tar.gz?version=2")
    for tricky in ("http://host/..%2f..%2fetc", "http://host/" + "x" * 300, "http://host/", "http://[x"):
        assert "/" not in download._cached_name(tricky) and len(download._cached_name(tricky)) < 100


def test_importing_download_is_light():
    heavy = ("torch", "requests", "tqdm", "filelock")
    check = f"import sys, convai.io.download; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", check], cwd=REPOSITORY, text=True).strip() == "[]"


# --- fetch


def test_fetches_once_and_then_needs_no_network(server, cache):
    url = server.url("/data/persona.json")
    path = fetch(url)
    assert path.parent == cache and path.name.endswith("-persona.json") and path.read_bytes() == CONTENT
    assert not list(cache.glob("*.part*"))
    server.http.shutdown()
    server.http.server_close()
    assert fetch(url) == path
    assert len(server.requests) == 1
    # Compressed on the way, lengths and offsets would count other bytes than those we keep.
    assert server.requests[0][1]["Accept-Encoding"] == "identity"


def test_folder_of_the_caller(server, cache, tmp_path):
    assert fetch(server.url("/data/persona.json"), folder=tmp_path / "mine").parent == tmp_path / "mine"
    assert not cache.exists()


def test_empty_file(server):
    server.files["/empty"] = b""
    assert fetch(server.url("/empty")).read_bytes() == b""


def test_dropped_connection_continues_where_it_broke(server):
    server.drop_after = [2 * BLOCK + 5, BLOCK]
    assert fetch(server.url("/data/persona.json")).read_bytes() == CONTENT
    first, second, third = server.ranges_asked()
    assert first is None
    assert 0 < int(second[6:-1]) <= 2 * BLOCK + 5
    assert int(second[6:-1]) < int(third[6:-1])


def test_attempts_end_when_nothing_moves(server):
    server.drop_after = [0] * 10
    with pytest.raises(UserError, match="broke off"):
        fetch(server.url("/data/persona.json"))
    assert len(server.requests) == 1 + len(download.RETRY_PAUSES_S)


def test_attempts_go_on_while_bytes_arrive(server):
    server.drop_after = [BLOCK] * 4  # more failures than there are pauses
    assert fetch(server.url("/data/persona.json")).read_bytes() == CONTENT
    assert len(server.requests) == 5


def test_next_call_resumes(server, monkeypatch):
    part = leave_part(server, monkeypatch, 2 * BLOCK)
    size = part.stat().st_size
    assert size > 0 and part.read_bytes() == CONTENT[:size]
    assert fetch(server.url("/data/persona.json")).read_bytes() == CONTENT
    assert server.ranges_asked() == [f"bytes={size}-"]
    assert server.requests[0][1]["If-Range"].startswith('"')


def test_complete_part_only_needs_its_name(server, monkeypatch):
    part = leave_part(server, monkeypatch, 2 * BLOCK)
    part.write_bytes(CONTENT)
    assert fetch(server.url("/data/persona.json")).read_bytes() == CONTENT
    assert server.requests == []


@pytest.mark.parametrize("if_range", [True, False])
@pytest.mark.parametrize("new", [CONTENT[::-1], CONTENT + b"more", b"short"])
def test_changed_content_starts_again(server, monkeypatch, if_range, new):
    leave_part(server, monkeypatch, 2 * BLOCK)
    server.files["/data/persona.json"] = new
    server.if_range = if_range  # without: 206 with the tail of the new version, or 416 where it is shorter
    assert fetch(server.url("/data/persona.json")).read_bytes() == new


def test_other_length_starts_again(server, monkeypatch):
    """Also where the server's answer does not tell its version."""
    leave_part(server, monkeypatch, 2 * BLOCK)
    server.files["/data/persona.json"] = CONTENT[::-1] + b"more"
    server.versions = server.if_range = False
    assert fetch(server.url("/data/persona.json")).read_bytes() == CONTENT[::-1] + b"more"


def test_server_that_sends_less_than_it_was_asked_for(server, monkeypatch):
    leave_part(server, monkeypatch, 2 * BLOCK)
    server.longest_range = BLOCK
    assert fetch(server.url("/data/persona.json")).read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_server_without_ranges_starts_again(server, monkeypatch):
    leave_part(server, monkeypatch, 2 * BLOCK)
    server.ranges = False
    assert fetch(server.url("/data/persona.json")).read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_without_a_version_nothing_is_continued(server, monkeypatch):
    server.versions = False
    leave_part(server, monkeypatch, 2 * BLOCK)
    assert fetch(server.url("/data/persona.json")).read_bytes() == CONTENT
    assert server.ranges_asked() == [None]


@pytest.mark.parametrize("note", ["", "{", "null", "[]", '{"a": 1}'])
def test_damaged_note_starts_again(server, monkeypatch, note):
    part = leave_part(server, monkeypatch, 2 * BLOCK)
    part.with_name(part.name + ".json").write_text(note)
    assert fetch(server.url("/data/persona.json")).read_bytes() == CONTENT
    assert server.ranges_asked() == [None]


def test_crash_between_part_and_note_leaves_nothing_to_continue(server, monkeypatch):
    """The note of a new version is written only when the bytes of the old one are gone."""
    part = leave_part(server, monkeypatch, 2 * BLOCK)
    server.files["/data/persona.json"] = CONTENT[::-1]
    monkeypatch.setattr(download.json, "dumps", lambda fields: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fetch(server.url("/data/persona.json"))
    assert not part.exists()


def test_weak_etag_is_no_version_and_a_date_is():
    def version(**headers):
        return download._version(type("Response", (), {"headers": headers}))

    assert version(ETag='"a"') == '"a"'
    assert version(ETag='W/"a"') == ""
    assert version(**{"ETag": 'W/"a"', "Last-Modified": "Mon"}) == "Mon"


def test_server_errors_pass(server):
    server.statuses = [500, 503]
    assert fetch(server.url("/data/persona.json")).read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_not_found_is_final_and_one_line(server, cache):
    url = server.url("/nowhere")
    with pytest.raises(UserError) as caught:
        fetch(url, advice="pass --dataset_path FILE")
    assert str(caught.value) == f"cannot download {url}: HTTP 404 Not Found. pass --dataset_path FILE"
    assert len(server.requests) == 1 and not list(cache.glob("*nowhere"))


def test_refused_connection():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound but not listening
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/x"
        with pytest.raises(UserError) as caught:
            fetch(url, advice="copy it there yourself")
    assert str(caught.value) == f"cannot download {url}: connection refused. copy it there yourself"


def test_no_network(monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(UserError) as caught:
        fetch("https://host.invalid/x.json", advice="use a local file")
    assert str(caught.value) == (
        "cannot download https://host.invalid/x.json: "
        "the host name could not be resolved (is there a network?). use a local file"
    )


def test_silent_server_times_out(server, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_S", (1, 0.1))
    server.gate = threading.Event()
    with pytest.raises(UserError, match=r"persona\.json: timed out"):
        fetch(server.url("/data/persona.json"))
    assert len(server.requests) == 1 + len(download.RETRY_PAUSES_S)


@pytest.mark.parametrize(
    "url", ["http://", "http://[x", "http://host:port/", "http://a b/", "https://.x/", "http://*/"]
)
def test_impossible_urls(url, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: (_ for _ in ()).throw(socket.gaierror(-2, "no")))
    with pytest.raises(UserError, match="cannot download") as caught:
        fetch(url)
    assert "\n" not in str(caught.value)


def test_full_disk(server, full_disk):
    with pytest.raises(UserError, match=r"no space left on the disk\. free some"):
        fetch(server.url("/data/persona.json"), advice="free some")
    assert len(server.requests) == 1


def test_cache_that_is_no_folder(server, cache):
    cache.write_text("a file")
    with pytest.raises(UserError, match=r"cannot write to .*File exists.*CONVAI_CACHE"):
        fetch(server.url("/data/persona.json"))


def test_ctrl_c_keeps_the_part(server, cache):
    url = server.url("/data/persona.json")
    server.gate, server.gate_after = threading.Event(), 3 * BLOCK
    process = run_python(f"from convai.io import download; download.fetch({url!r})", cache)
    assert server.at_gate.wait(10)
    wait_until(lambda: [part for part in cache.glob("*.part") if part.stat().st_size >= 2 * BLOCK])
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=10)[1]
    server.gate.set()
    (part,) = cache.glob("*.part")
    size = part.stat().st_size
    assert fetch(url).read_bytes() == CONTENT
    assert server.ranges_asked() == [None, f"bytes={size}-"]


@pytest.mark.parametrize("function", ["fetch", "fetch_archive"])
def test_two_processes_share_one_download(server, cache, function):
    server.files["/m.tgz"] = tar_bytes({"model/config.json": b"{}", "model/weights": CONTENT})
    server.gate, server.gate_after = threading.Event(), BLOCK
    code = f"from convai.io import download; print(download.{function}({server.url('/m.tgz')!r}))"
    processes = [run_python(code, cache) for _ in range(2)]
    assert server.at_gate.wait(10)
    time.sleep(0.5)  # the other one reaches the lock
    server.gate.set()
    outputs = [process.communicate(timeout=20) for process in processes]
    assert [error for _, error in outputs] == ["", ""]
    paths = {output.strip() for output, _ in outputs}
    assert len(paths) == 1 and len(server.requests) == 1
    (path,) = map(Path, paths)
    if function == "fetch":
        assert path.read_bytes() == server.files["/m.tgz"]
    else:
        assert (path / "weights").read_bytes() == CONTENT


def run_python(code, cache):
    environment = os.environ | {"CONVAI_CACHE": str(cache)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, **pipes)


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


# --- fetch_archive


def test_archive_is_fetched_and_unpacked_once(server, cache):
    server.files["/model.tar.gz"] = tar_bytes({"model/config.json": b"{}", "model/weights": b"w"})
    folder = fetch_archive(server.url("/model.tar.gz"))
    assert tree(folder) == {"config.json": b"{}", "weights": b"w"}
    assert not list(cache.glob("*.gz"))  # the archive itself is no longer needed
    (folder / "config.json").write_text("mine")  # unpacking again would undo this
    assert fetch_archive(server.url("/model.tar.gz")) == folder
    assert tree(folder)["config.json"] == b"mine" and len(server.requests) == 1


def test_bad_archive_is_not_kept(server):
    url = server.url("/model.tar.gz")
    server.files["/model.tar.gz"] = b"<html>We are moving</html>"
    with pytest.raises(UserError, match=rf"{url}: .* is damaged, or not .*\. use --model_checkpoint$"):
        fetch_archive(url, advice="use --model_checkpoint")
    server.files["/model.tar.gz"] = tar_bytes(FILES)
    assert tree(fetch_archive(url)) == FILES


def test_archive_advice_when_the_download_fails(server):
    with pytest.raises(UserError, match=r"HTTP 404 Not Found\. use --model_checkpoint$"):
        fetch_archive(server.url("/model.tar.gz"), advice="use --model_checkpoint")


def test_archive_stays_when_the_disk_is_full(server, monkeypatch):
    url = server.url("/model.tar.gz")
    server.files["/model.tar.gz"] = tar_bytes(FILES)
    archive = fetch(url)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", lambda *args, **kwargs: (_ for _ in ()).throw(OSError(28, "full")))
        patch.setattr(download, "locked", lambda path: download.contextlib.nullcontext())
        with pytest.raises(UserError, match="no space left"):
            fetch_archive(url)
    assert archive.exists()
    assert tree(fetch_archive(url)) == FILES and len(server.requests) == 1
