"""Servers of tiny models, in a thread of the tests' own process, and what is asked of them."""

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from conftest import TEXTS
from slow_decoding import talkative_model

from convai.dialog.agent import DialogAgent
from convai.model.tokenization import train_vocabulary
from convai.options import ServeOptions
from convai.serve.app import create_app
from convai.serve.server import make_server, open_socket
from convai.serve.service import Service

PERSONA = ["i have two cats .", "i play the drums ."]
QUESTION = "do you have any pets at home ?"
CHAT, RERANK = "/v1/chat/completions", "/v1/rerank"


def random_agent(family: str = "openai-gpt", n_positions: int = 512, **changes) -> DialogAgent:
    """An agent whose ranking head passes for trained; its replies are nonsense that differs with what they answer."""
    tokenizer = train_vocabulary([*TEXTS, *map(str, range(100))], family, 400)
    model = talkative_model(tokenizer, n_positions=n_positions)
    model.config.ranking_is_trained = True
    return DialogAgent(model, tokenizer, **changes)


class Server:
    """A running server."""

    def __init__(self, service: Service, port: int, stop: Callable[[], None]):
        self.service = service
        self.stop = stop  # as a signal does
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def chat(self, turns: list[str] = [QUESTION], persona: list[str] = PERSONA, **fields) -> httpx.Response:  # noqa: B006
        return self.client.post(CHAT, json={"messages": messages(turns, persona), "temperature": 0} | fields)

    def reply(self, *arguments, **fields) -> str:
        response = self.chat(*arguments, **fields)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["message"]["content"]

    def until(self, condition) -> None:
        """Wait until something holds, ten seconds at most."""
        limit = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < limit, "it never came to hold"
            time.sleep(0.005)


def messages(turns: list[str], persona: list[str] = PERSONA) -> list[dict[str, str]]:
    """The messages of a dialog that ends with the user's turn."""
    first = len(turns) % 2  # who speaks first
    said = [{"role": ("assistant", "user")[(i + first) % 2], "content": turn} for i, turn in enumerate(turns)]
    return [{"role": "system", "content": "".join(f"{line}\n" for line in persona)}, *said] if persona else said


@contextlib.contextmanager
def serving(
    agent: DialogAgent,
    keys: list[str] | None = None,
    name: str = "tiny",
    personas: list[list[str]] = [PERSONA],  # noqa: B006
    **options: Any,
) -> Iterator[Server]:
    """Run a server of an agent within this block."""
    chosen = ServeOptions(**({"device": "cpu", "port": 0, "seed": 1} | options))
    service = Service(agent, chosen, name, personas)
    listener = open_socket("127.0.0.1", chosen.port)
    port = listener.getsockname()[1]
    server = make_server(create_app(service, keys or []), service.worker, chosen)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    running = Server(service, port, lambda: server.handle_exit(signal.SIGTERM, None))
    try:
        running.until(lambda: server.started)
        yield running
    finally:
        running.client.close()
        running.stop()
        thread.join()


def chunks_of(response: httpx.Response) -> list[Any]:
    """The server-sent events of a stream: JSON, and the word that ends it."""
    events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    return [json.loads(event) if event.startswith("{") else event for event in events]


def text_of(chunks: list[Any], choice: int = 0) -> str:
    deltas = [one for chunk in chunks if isinstance(chunk, dict) for one in chunk["choices"] if one["index"] == choice]
    return "".join(one["delta"].get("content", "") for one in deltas)
