"""Ten minutes of 32 clients: no error but "too many wait", memory that does not grow, and the same reply at the end.

pytest -m slow tests/test_serve_load.py -s       CONVAI_LOAD_SECONDS=60 for a shorter one
"""

import asyncio
import os
import random
import re
import statistics
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
import test_serve_program
from conftest import TEXTS, cannot_run
from serving import CHAT, QUESTION, RERANK, messages
from test_serve_program import address, start

checkpoint = test_serve_program.checkpoint
SECONDS = float(os.environ.get("CONVAI_LOAD_SECONDS", "600"))
N_CLIENTS = 32


def asked(rng: random.Random) -> tuple[str, dict]:
    """A path and a request to it, seldom the same twice."""
    turns = [text(rng) for _ in range(2 * rng.randrange(4) + 1)]
    dialog = {"messages": messages(turns, rng.sample(TEXTS, rng.randrange(4)))}
    if rng.random() < 0.2:
        documents = [text(rng) for _ in range(rng.randrange(1, 10))]
        return RERANK, dialog | {"documents": documents, "rank_by": rng.choice(["likelihood", "pmi"])}
    choice = {"n": rng.choice([1, 1, 2]), "max_tokens": rng.randrange(1, 60), "temperature": rng.choice([0, 0.7, 1.5])}
    return CHAT, dialog | choice | {"stream": rng.random() < 0.5}


def text(rng: random.Random) -> str:
    """Of few words, so that what is kept of these is soon as much as it gets, in ever other orders."""
    return f"{rng.choice(TEXTS)} {rng.randrange(1000)} {rng.randrange(1000)}"


async def talk(client: httpx.AsyncClient, rng: random.Random, end: float, statuses: Counter) -> None:
    """Ask until the end; now and then go away in the middle of a stream."""
    while time.monotonic() < end:
        path, body = asked(rng)
        async with client.stream("POST", path, json=body) as response:
            statuses[response.status_code] += 1
            if rng.random() < 0.1:
                continue
            content = b"".join([part async for part in response.aiter_bytes()])
            assert b'"error"' not in content or response.status_code == 429, content
        if response.status_code == 429:
            await asyncio.sleep(float(response.headers["retry-after"]) * rng.random())


async def load(url: str, process: int) -> tuple[Counter, list[int]]:
    """Return how often each status came, and the server's memory in kB, once a second."""
    statuses: Counter = Counter()
    end = time.monotonic() + SECONDS
    memory = []
    limits = httpx.Limits(max_connections=N_CLIENTS)
    async with httpx.AsyncClient(base_url=url, timeout=90, limits=limits) as client:
        clients = [asyncio.create_task(talk(client, random.Random(n), end, statuses)) for n in range(N_CLIENTS)]
        while time.monotonic() < end:
            await asyncio.sleep(1)
            status = Path(f"/proc/{process}/status").read_text()
            memory.append(int(re.search(r"^RssAnon:\s+(\d+)", status, re.MULTILINE)[1]))
        await asyncio.gather(*clients)
    return statuses, memory


@pytest.mark.slow
def test_ten_minutes_of_32_clients(checkpoint):
    if not Path("/proc/self/status").exists():
        cannot_run("there is no /proc to read a process's memory from")
    server = start("--model_checkpoint", str(checkpoint), "--max_batch", "16", "--max_waiting", "8")
    url = address(server, [])
    question = {"messages": messages([QUESTION]), "temperature": 0}
    before = httpx.post(f"{url}{CHAT}", json=question).json()["choices"]
    statuses, memory = asyncio.run(load(url, server.pid))
    after = httpx.post(f"{url}{CHAT}", json=question).json()["choices"]
    metrics = httpx.get(f"{url}/metrics").text
    server.terminate()
    _, errors = server.communicate(timeout=90)
    quarters = quarters_of(memory)
    print(f"{dict(statuses)}; memory in MB by quarters: {[round(kilobytes / 1000) for kilobytes in quarters]}")
    assert set(statuses) <= {200, 429} and statuses[200] > 10 * SECONDS / 60
    assert before == after
    assert "convai_running 0.0" in metrics and "convai_waiting 0.0" in metrics
    assert server.returncode == 0 and errors == ""
    assert quarters[3] < 1.1 * quarters[1]


def quarters_of(values: list[int]) -> list[float]:
    """The median of each quarter."""
    length = len(values) // 4
    return [statistics.median(values[k * length : (k + 1) * length]) for k in range(4)]
