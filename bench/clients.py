"""Clients of a server, for bench/serve.py: each sends its next request as soon as the last one's reply is whole.

Reads one object of JSON (url, clients, length, contexts) and writes one (seconds, first_text). Light on purpose: what
clients compute, the server cannot.
"""

import asyncio
import json
import sys
import time
from typing import Any
from urllib.parse import urlsplit


async def ask(host: str, port: int, body: bytes) -> float:
    """Send one request and read its stream to the end; return the seconds until the reply's first text."""
    reader, writer = await asyncio.open_connection(host, port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    start, first = time.perf_counter(), None
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    is_whole = False
    while line := await reader.readline():
        if first is None and line.startswith(b"data: {") and has_text(line):
            first = time.perf_counter() - start
        is_whole = is_whole or line.startswith(b"data: [DONE]")
    writer.close()
    if not is_whole or first is None:
        raise SystemExit("a request was refused or its stream broke off")
    return first


def has_text(line: bytes) -> bool:
    return bool(json.loads(line.removeprefix(b"data: "))["choices"][0]["delta"].get("content"))


async def client(host: str, port: int, bodies: list[bytes], found: list[float]) -> None:
    while bodies:
        found.append(await ask(host, port, bodies.pop()))


def body_of(context: Any, length: int) -> bytes:
    persona, history = context
    said = [{"role": ("assistant", "user")[(len(history) - i) % 2], "content": turn} for i, turn in enumerate(history)]
    messages = [{"role": "system", "content": "".join(f"{line}\n" for line in persona)}, *said]
    return json.dumps({"messages": messages, "stream": True, "max_tokens": length, "min_tokens": length}).encode()


async def main() -> None:
    work = json.load(sys.stdin)
    address = urlsplit(work["url"])
    assert address.hostname and address.port
    bodies = [body_of(context, work["length"]) for context in work["contexts"]]
    found: list[float] = []
    start = time.perf_counter()
    clients = [client(address.hostname, address.port, bodies, found) for _ in range(work["clients"])]
    await asyncio.gather(*clients)
    json.dump({"seconds": time.perf_counter() - start, "first_text": found}, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
