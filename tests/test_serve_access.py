"""Safe by default: who may ask, what browsers are told, how much may be sent and how slowly, what is kept."""

import contextlib
import json
import os
import socket
import stat
import time

import pytest
from conftest import ROOT
from serving import CHAT, PERSONA, QUESTION, chunks_of, messages, random_agent, serving

from convai.data.formats import read_splits
from convai.errors import UserError
from convai.options import serve_parser
from convai.serve.access import HostNames, is_loopback, read_keys
from convai.serve.server import open_socket, url_of

KEY = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def agent():
    return random_agent()


@pytest.fixture(scope="module")
def locked(agent):
    with serving(agent, keys=["another", KEY]) as running:
        yield running


@pytest.fixture(scope="module")
def small(agent):
    """A server whose limits are low."""
    limits = {"max_body": 2000, "max_messages": 5, "max_characters": 300, "max_documents": 3, "max_choices": 2}
    with serving(agent, send_timeout=0.6, **limits) as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_this_machine_only_unless_asked():
    assert serve_parser().parse_args([]).host == "127.0.0.1"
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.0.2.1", "example.org", "")] == [False] * 5
    listener = open_socket("127.0.0.1", 0)
    assert listener.getsockname()[0] == "127.0.0.1" and url_of(listener).startswith("http://127.0.0.1:")
    with pytest.raises(UserError, match="cannot listen there: Address already in use"):
        open_socket("127.0.0.1", listener.getsockname()[1])
    listener.close()
    everywhere = open_socket("0.0.0.0", 0)
    assert url_of(everywhere).startswith("http://localhost:")
    everywhere.close()


def test_a_key_is_asked_for(locked):
    for path in ("/v1/models", "/api/config", "/api/personas", "/metrics"):
        for headers in (
            {},
            bearer("wrong"),
            {"Authorization": "Bearer"},
            {"Authorization": f"Basic {KEY}"},
            {"Authorization": KEY},
        ):
            response = locked.client.get(path, headers=headers)
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer", (path, headers)
            assert response.json()["error"]["code"] == "invalid_api_key"
        for key in (KEY, "another"):
            assert locked.client.get(path, headers=bearer(key)).status_code == 200
    assert locked.client.post(CHAT, json={"messages": messages([QUESTION])}).status_code == 401
    # What a page needs to ask for the key, and what watches over the server.
    for path in ("/", "/page.js", "/docs", "/openapi.json", "/health"):
        assert locked.client.get(path).status_code == 200
    assert "securitySchemes" in locked.client.get("/openapi.json").json()["components"]


def test_paths_that_look_otherwise_are_locked_all_the_same(locked):
    for path in ("/v1//models", "//v1/models", "/v1/../v1/models", "/%76%31/models", "/V1/models", "/v1/models/"):
        assert locked.client.get(path).status_code in (401, 404), path


def test_keys_come_from_the_environment_or_a_file(tmp_path, monkeypatch):
    monkeypatch.delenv("CONVAI_API_KEY", raising=False)
    assert read_keys("") == []
    monkeypatch.setenv("CONVAI_API_KEY", f" {KEY}\n")
    assert read_keys("") == [KEY]
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    assert read_keys(str(file)) == ["one", "two"]
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no key"):
        read_keys(str(file))
    file.write_text("two words\n")
    with pytest.raises(UserError, match="one word of printable ASCII"):
        read_keys(str(file))
    with pytest.raises(UserError, match="missing"):
        read_keys(str(tmp_path / "missing"))
    assert not [action for action in serve_parser()._actions if "--api_key" in action.option_strings]


LOCAL, OPEN = HostNames("127.0.0.1", []), HostNames("0.0.0.0", ["chat.example.org", "*.internal"])


@pytest.mark.parametrize(
    ("header", "is_local", "is_open"),
    [
        ("localhost:8000", True, True),
        ("127.0.0.1", True, True),
        ("[::1]:8000", True, True),
        ("LOCALHOST.", True, True),
        ("192.0.2.7:8000", False, True),  # an address is no name that could be made to lead here
        ("[2001:db8::1]", False, True),
        ("chat.example.org", False, True),
        ("Chat.Example.org:443", False, True),
        ("a.internal", False, True),
        ("internal", False, False),
        ("evil.example", False, False),
        ("localhost.evil.example", False, False),
        ("127.0.0.1.evil.example", False, False),
        ("evilinternal", False, False),
        ("localhost:80@evil.example", False, False),
        ("", False, False),
        ("[", False, False),
    ],
)
def test_names_of_the_server(header, is_local, is_open):
    assert (LOCAL.allow(header), OPEN.allow(header)) == (is_local, is_open)
    assert HostNames("127.0.0.1", ["*"]).allow(header) == (header not in ("", "[", "localhost:80@evil.example"))


def test_a_name_that_was_made_to_lead_here_is_turned_away(locked):
    for path in ("/", "/health", "/v1/models"):
        response = locked.client.get(path, headers={"Host": "evil.example", **bearer(KEY)})
        assert response.status_code == 421 and "error" in response.json()


def test_browsers_are_told_to_be_careful(locked):
    for path, status in (("/", 200), ("/health", 200), ("/nothing", 404), ("/v1/models", 401)):
        response = locked.client.get(path)
        assert response.status_code == status
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "server" not in response.headers
    assert locked.client.get("/health").headers["cache-control"] == "no-store"


def test_no_other_site_unless_asked(agent, locked):
    asked = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
    refused = locked.client.options(CHAT, headers=asked)
    assert "access-control-allow-origin" not in refused.headers
    # What a browser sends without asking first is not taken for JSON.
    plain = locked.client.post(CHAT, content=b"{}", headers={"Content-Type": "text/plain", **bearer(KEY)})
    assert plain.status_code == 415
    with serving(agent, cors_origins=["https://chat.example"], keys=[KEY]) as own:
        wanted = {"Access-Control-Request-Headers": "authorization,content-type"}
        allowed = own.client.options(CHAT, headers=asked | wanted)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://chat.example"
        other = own.client.options(CHAT, headers=asked | {"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
        # The site can read why it is refused.
        refused = own.client.get("/v1/models", headers={"Origin": "https://chat.example"})
        assert refused.status_code == 401 and "access-control-allow-origin" in refused.headers


def test_no_file_of_the_machine_is_reached(locked):
    secret = (ROOT / "pyproject.toml").read_text()[:30]
    for path in ("/../pyproject.toml", "/page.js/../../../pyproject.toml", "/%2e%2e/%2e%2e/pyproject.toml", "/page/",
                 "/docs/../pyproject.toml", "/docs/%2e%2e%2fpyproject.toml", "/etc/passwd", "/a%00"):  # fmt: skip
        with socket.create_connection(("127.0.0.1", locked.port)) as connection:  # as it is: clients tidy paths up
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 404") and secret.encode() not in answer, path


def test_limits(small):
    long = "a" * 301
    for asked, status, message in (
        ({"messages": messages(["a"] * 7)}, 400, "8 messages, and 5 are the most"),
        ({"messages": messages([long])}, 400, "300 are the most"),
        ({"messages": messages(["a"]), "n": 3}, 400, "n is 2 at most"),
        ({"messages": messages(["a" * 2000])}, 413, "2000 bytes at most"),
    ):
        response = small.client.post(CHAT, json=asked)
        assert response.status_code == status and message in response.json()["error"]["message"]
    refused = small.client.post("/v1/rerank", json={"query": "a", "documents": ["a"] * 4})
    assert refused.status_code == 400
    assert small.chat(max_tokens=10**6, min_tokens=0).status_code == 200


def test_a_body_that_is_much_too_large_is_refused_all_the_same(small):
    response = small.client.post(CHAT, content=b"a" * 5_000_000, headers={"Content-Type": "application/json"})
    assert response.status_code == 413 and response.json()["error"]["code"] == "request_too_large"
    with socket.create_connection(("127.0.0.1", small.port), timeout=5) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
        connection.sendall(f"{head}Content-Length: 99999999999\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


UNFINISHED = (
    f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{{"
)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", b""),
        (b"GET /health HTTP/1.1\r\nHost: local", b""),
        (UNFINISHED.encode(), b"408"),
    ],
)
def test_slow_senders_are_not_waited_for(small, sent, status):
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", small.port), timeout=5) as connection:
        connection.sendall(sent)
        time.sleep(0.3)
        if sent and not status:
            connection.sendall(b"h")  # a byte now and then does not help
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert 0.5 < time.monotonic() - start < 4
    assert answer[9:12] == status


def test_clients_that_do_not_read_are_not_waited_for(agent, monkeypatch):
    monkeypatch.setattr("convai.serve.server.STALLED", 0.3)
    with serving(agent) as own, socket.socket() as connection:
        length = len(own.client.get("/docs/swagger-ui-bundle.js").content)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", own.port))
        connection.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 8)
        time.sleep(0.8)
        n_read = 0
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                n_read += len(part)
        assert n_read < 8 * length


def test_an_idle_connection_may_be_used_again(small):
    for _ in range(2):
        assert small.client.get("/health").status_code == 200
        time.sleep(0.8)


def test_nothing_is_kept_unless_asked(agent, tmp_path, capfd, caplog):
    with serving(agent) as own:
        own.chat(["a secret number is 4711"])
        own.client.post(CHAT, content=b'{"messages": "4711"}', headers={"Content-Type": "application/json"})
        assert own.client.get("/metrics").text.count("4711") == 0
    written = capfd.readouterr()
    assert "4711" not in written.out + written.err + caplog.text
    assert list(tmp_path.iterdir()) == []


def test_dialogs_are_kept_as_training_reads_them(agent, tmp_path):
    file = tmp_path / "logs" / "dialogs.jsonl"
    with serving(agent, log_dialogs=str(file), no_sample=True) as own:
        assert own.client.get("/api/config").json()["logs_dialogs"] is True
        first = own.reply(["hello !"])
        second = own.reply(["hello !", first, QUESTION])
        with own.client.stream("POST", CHAT, json={"messages": messages([QUESTION], []), "stream": True}) as response:
            streamed = "".join(
                one["delta"].get("content", "") for chunk in chunks_of(response)[:-1] for one in chunk["choices"]
            )
        opening = own.reply([], [])
        own.chat(["not this"], store=False)
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    lines = [json.loads(line) for line in file.read_text().splitlines() if line.strip()]
    assert [[message["content"] for message in line["messages"]] for line in lines] == [
        ["\n".join(PERSONA), "hello !", first, QUESTION, second],
        [QUESTION, streamed],
        [opening],
    ]
    assert lines[2]["messages"][0]["role"] == "assistant"
    dialogs = read_splits(file)[""]
    assert dialogs[0]["personality"] == PERSONA
    assert [one["candidates"] for one in dialogs[0]["utterances"]] == [[first], [second]]


def test_a_log_goes_on_where_it_ended(agent, tmp_path):
    file = tmp_path / "dialogs.jsonl"
    file.write_text('{"messages": []}')  # without a line's end
    with serving(agent, log_dialogs=str(file)) as own:
        own.chat(["hello !"])
    assert [len(json.loads(line)["messages"]) for line in file.read_text().splitlines()] == [0, 3]
    with pytest.raises(UserError, match="cannot be written"), serving(agent, log_dialogs=str(tmp_path)):
        pass
