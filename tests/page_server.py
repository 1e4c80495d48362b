"""A tiny agent served in this process for the tests of the page, whose replies can be held back in the middle."""

import threading
import time
from collections.abc import Sequence

import uvicorn
from conftest import TEXTS
from slow_decoding import talkative_model

from convai.dialog.agent import DialogAgent
from convai.dialog.decoding import DecodingSettings
from convai.model.tokenization import train_vocabulary
from convai.options import serve_parser
from convai.serve.app import create_app
from convai.serve.server import open_socket, url_of
from convai.serve.service import Service

PERSONAS = [[f"{TEXTS[7]} {n}", TEXTS[6], f"i am number {n} ."] for n in range(5)]


def tiny_agent(is_trained: bool = True) -> DialogAgent:
    """An agent of random weights, greedy, that seldom ends a reply before its length does."""
    tokenizer = train_vocabulary([*TEXTS, *map(str, range(100))], "openai-gpt", 400)
    model = talkative_model(tokenizer, n_positions=512, ranking_is_trained=is_trained)
    return DialogAgent(model, tokenizer, settings=DecodingSettings(no_sample=True))


class PageServer:
    """Serves an agent in a thread, as a context manager."""

    def __init__(self, agent: DialogAgent, keys: Sequence[str] = ()):
        options = serve_parser().parse_args(["--device", "cpu", "--port", "0"])
        service = Service(agent, options, "tiny", PERSONAS)
        self.socket = open_socket(options.host, options.port)
        self.url = url_of(self.socket)
        self.http = uvicorn.Server(uvicorn.Config(create_app(service, list(keys)), log_config=None, ws="none"))
        self.thread = threading.Thread(target=self.http.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self._n_left: int | None = None  # tokens until the next is held back
        self._is_held, self._may_go = threading.Event(), threading.Event()
        self._hold_back(service.worker)

    def _hold_back(self, worker) -> None:
        """Let the worker wait where the tests say so."""
        take_turn = worker._take_turn

        def patient() -> None:
            if self._n_left is not None and worker.n_running:
                self._n_left -= 1
                if self._n_left < 0:
                    self._is_held.set()
                    assert self._may_go.wait(timeout=20), "nobody let the reply go on"
                    self._n_left = None
            take_turn()

        worker._take_turn = patient

    def hold_after(self, n_tokens: int) -> None:
        """Hold the next reply back after so many tokens, until let_go."""
        self._is_held.clear()
        self._may_go.clear()
        self._n_left = n_tokens

    def wait_until_held(self) -> None:
        assert self._is_held.wait(timeout=20), "no reply came so far"

    def let_go(self) -> None:
        self._may_go.set()

    def __enter__(self):
        self.thread.start()
        while not self.http.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *exception):
        self.let_go()
        self.http.should_exit = True
        self.thread.join()
