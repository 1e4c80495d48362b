"""A thousand broken requests: each gets the status that fits, the server lives on, and the next reply is as before."""

import contextlib
import json
import random
import socket
import struct
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving import CHAT, QUESTION, RERANK, Server, messages, random_agent, serving

GOOD = json.dumps({"messages": messages([QUESTION]), "max_tokens": 2, "temperature": 0}).encode()
SLOW = 0.8  # seconds that a server waits for a request, in the test of that
MAX_BODY = 600_000
VALUES = [None, True, -1, 0, 10**30, 1.5, -1e308, "", "x", [], [[]], {}, {"a": []}, ["x"], [None], "9" * 400]


def head(path: str = CHAT, length: int | None = None, **headers: str) -> bytes:
    fields = {"Host": "localhost", "Content_Type": "application/json", "Connection": "close"} | headers
    if length is not None:
        fields["Content_Length"] = str(length)
    lines = [f"POST {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def post(body: bytes, path: str = CHAT, **headers: str) -> bytes:
    return head(path, len(body), **headers) + body


def bad_json(rng: random.Random) -> tuple[bytes, set]:
    """A body with some of its bytes left out, doubled or replaced."""
    body = bytearray(GOOD)
    wrong = [b"", b'"', b"}", b"\xff", b"\\u", b"\x00", b"NaN", b"[" * 9]
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(body))
        body[place : place + rng.randrange(2)] = rng.choice(wrong)
    return post(bytes(body)), {200, 400, 404}


def deep_json(rng: random.Random) -> tuple[bytes, set]:
    return post(rng.choice([b"[", b'{"messages":', b'{"messages":[{"content":']) * rng.randrange(1000, 20_000)), {400}


def not_json(rng: random.Random) -> tuple[bytes, set]:
    kind = rng.choice(["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
    return post(GOOD, Content_Type=kind), {415}


def wrong_type(rng: random.Random) -> tuple[bytes, set]:
    """A field of a value that is of no use to it, or by chance of use."""
    asked = json.loads(GOOD)
    names = ["messages", "model", "stream", "n", "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "seed",
             "stop", "stream_options", "tools", "no_repeat_ngram_size", "unknown"]  # fmt: skip
    asked[rng.choice(names)] = rng.choice(VALUES)
    if rng.random() < 0.5:
        asked["messages"] = [{"role": rng.choice([*VALUES, "user"]), "content": rng.choice([*VALUES, "x"])}]
    return post(json.dumps(asked).encode()), {200, 400, 404}


def wrong_ranking(rng: random.Random) -> tuple[bytes, set]:
    asked = {"query": "x", "documents": ["a", "b"]}
    asked[rng.choice(["query", "documents", "messages", "rank_by", "top_n", "return_documents"])] = rng.choice(VALUES)
    return post(json.dumps(asked).encode(), RERANK), {200, 400}


def huge_body(rng: random.Random) -> tuple[bytes, set]:
    return post(b'{"messages": "' + b"a" * (MAX_BODY + rng.randrange(300_000)) + b'"}'), {413}


def huge_number(rng: random.Random) -> tuple[bytes, set]:
    return post(b'{"messages":[{"role":"user","content":"x"}],"seed":' + b"9" * rng.randrange(20, 9000) + b"}"), {400}


def endless_chunks(rng: random.Random) -> tuple[bytes, set]:
    chunk = b"8000\r\n" + b"a" * 0x8000 + b"\r\n"
    return head(Transfer_Encoding="chunked") + chunk * 25 + b"0\r\n\r\n", {413}


def long_dialog(rng: random.Random) -> tuple[bytes, set]:
    said = [{"role": ("user", "assistant")[i % 2], "content": "x"} for i in range(10_001)]
    return post(json.dumps({"messages": said}).encode()), {400}


def surrogates(rng: random.Random) -> tuple[bytes, set]:
    odd = rng.choice(['"\\ud800"', '"a\\udfffb"', '"\\ud83d\\ude00"', '"\\ude00\\ud83d"', '"\\u0000"', '"\\u202e"'])
    if rng.random() < 0.5:
        return post(f'{{"query": {odd}, "documents": [{odd}, "b"], "return_documents": true}}'.encode(), RERANK), {
            200,
            400,
        }
    return post(f'{{"messages": [{{"role": "user", "content": {odd}}}], "max_tokens": 2}}'.encode()), {200, 400}


def surrogate_names(rng: random.Random) -> tuple[bytes, set]:
    return post(b'{"messages": [], "\\ud800": 1, "%s": 2}' % (b"n" * rng.randrange(2000))), {400}


def bad_http(rng: random.Random) -> tuple[bytes, set]:
    return rng.choice(
        [
            b"\x16\x03\x01\x02\x00\x01\x00" + bytes(range(100)),
            b"GET\r\n\r\n",
            b"HELLO THERE\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000,
            head(Content_Length="-5"),
            head(Content_Length="5, 6"),
            head(Transfer_Encoding="chunked") + b"zz\r\nabc",
            head(Transfer_Encoding="gzip") + b"abc",
        ]
    ), {400}


def wrong_place(rng: random.Random) -> tuple[bytes, set]:
    return rng.choice(
        [
            (post(GOOD, "/v1/nothing"), {404}),
            (post(GOOD, "/health"), {405}),
            (post(GOOD, Host="evil.example"), {421}),
            (b"BREW /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", {415}),
            (b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", {404}),
            (b"GET /%ff%fe HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", {404}),
        ]
    )


ONE_AFTER_ANOTHER = [bad_json, wrong_type, wrong_ranking, surrogates, bad_http, wrong_place, not_json, huge_number,
                     surrogate_names, deep_json]  # fmt: skip


def status_of(port: int, sent: bytes, *, is_half_closed: bool = False, pause: float = 0) -> int | None:
    """Send bytes and return the status of the answer; None where the connection was closed without one."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        with contextlib.suppress(ConnectionError):  # an answer may come before all is sent
            connection.sendall(sent[:-1] if pause else sent)
            if pause:
                time.sleep(pause)
                connection.sendall(sent[-1:])
        if is_half_closed:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                answer += part
    if not answer:
        return None
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    assert b"Traceback" not in answer
    return int(answer[9:12])


def reset_midway(port: int, sent: bytes) -> None:
    """Send bytes and tear the connection down without a farewell."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.sendall(sent)
    connection.close()


@pytest.fixture(scope="module")
def server():
    with serving(random_agent(), max_body=MAX_BODY, max_waiting=500) as running:
        yield running


@pytest.fixture
def unharmed(server, caplog, capfd):
    """After the test: no error of the server's own, and the next reply is the one before."""
    with is_unharmed(server, caplog, capfd):
        yield


@contextlib.contextmanager
def is_unharmed(server: Server, caplog, capfd):
    before = server.reply(max_tokens=20)
    yield
    server.until(lambda: server.service.worker.n_running + server.service.worker.n_waiting == 0)
    assert server.reply(max_tokens=20) == before
    assert 'status="500"' not in server.client.get("/metrics").text
    written = capfd.readouterr()
    assert "Traceback" not in caplog.text + written.err + written.out and "error while" not in caplog.text


def check(server: Server, requests: list[tuple[bytes, set]], **options) -> Counter:
    """Send requests, 16 at a time; return how often each status came."""
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda request: status_of(server.port, request[0], **options), requests))
    for (sent, expected), status in zip(requests, found, strict=True):
        assert status in expected, (status, expected, sent[:300])
    return Counter(found)


def test_wrong_content(server, unharmed):
    rng = random.Random(0)
    requests = [kind(rng) for kind in ONE_AFTER_ANOTHER for _ in range(75)]
    rng.shuffle(requests)
    statuses = check(server, requests)
    assert sum(statuses.values()) == 750 and statuses[400] > 350 and statuses[200] > 30


def test_too_much(server, unharmed):
    rng = random.Random(1)
    check(server, [kind(rng) for kind in (huge_body, endless_chunks, long_dialog) for _ in range(20)])


def test_too_slow(caplog, capfd):
    unfinished = [head()[:40], head(length=99), head(length=99) + GOOD[:9], b"GET / HT", b""]
    with serving(random_agent(), send_timeout=SLOW) as server, is_unharmed(server, caplog, capfd):
        with ThreadPoolExecutor(60) as pool:
            found = list(pool.map(lambda sent: status_of(server.port, sent), unfinished * 12))
        assert Counter(found) == {None: 36, 408: 24}
        # Slow, but in time.
        check(server, [(post(GOOD), {200})] * 16, pause=SLOW / 8)


def test_half_closed_and_torn_down(server, unharmed):
    closed = [post(GOOD), head(length=9), b"GET", b""] * 16
    torn = [post(GOOD), post(GOOD[:-1] + b', "stream": true}'), head(length=9), b"GE"] * 16
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda sent: status_of(server.port, sent, is_half_closed=True), closed)) <= {None, 200, 400}
        list(pool.map(lambda sent: reset_midway(server.port, sent), torn))
    assert 750 + 60 + 60 + len(closed) + len(torn) + 16 > 1000  # of all tests here
