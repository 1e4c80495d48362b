"""What the tests of the page share: a tiny agent that is served, whose replies can be held back, and a browser."""

import threading
from contextlib import contextmanager

import pytest
from browser import find_browser, open_browser
from conftest import TEXTS, needs
from page_talk import SIZES, Talk
from serving import Server, serving
from slow_decoding import talkative_model

from convai.dialog.agent import DialogAgent
from convai.dialog.decoding import DecodingSettings
from convai.model.tokenization import train_vocabulary

PERSONAS = [[f"{TEXTS[7]} {n}", TEXTS[6], f"i am number {n} ."] for n in range(5)]


def tiny_agent(is_trained: bool = True) -> DialogAgent:
    """An agent of random weights, greedy, that seldom ends a reply before its length does."""
    tokenizer = train_vocabulary([*TEXTS, *map(str, range(100))], "openai-gpt", 400)
    model = talkative_model(tokenizer, n_positions=512, ranking_is_trained=is_trained)
    return DialogAgent(model, tokenizer, settings=DecodingSettings(no_sample=True, min_length=12))


class Brake:
    """Holds a server's reply back in the middle."""

    def __init__(self, server: Server):
        self._worker = server.service.worker
        self._take_turn = self._worker._take_turn
        self._worker._take_turn = self._patiently
        self._n_left: int | None = None  # turns until the next is held back
        self._is_held, self._may_go = threading.Event(), threading.Event()

    def _patiently(self) -> None:
        if self._n_left is not None and self._worker.n_running:
            self._n_left -= 1
            if self._n_left < 0:
                self._is_held.set()
                self._may_go.wait(timeout=20)
                self._n_left = None
        self._take_turn()

    def hold_after(self, n_tokens: int) -> None:
        """Hold the next reply back after about so many tokens, until let_go."""
        self._is_held.clear()
        self._may_go.clear()
        self._n_left = n_tokens

    def wait_until_held(self) -> None:
        assert self._is_held.wait(timeout=20), "no reply came so far"

    def let_go(self) -> None:
        self._n_left = None
        self._may_go.set()


@pytest.fixture(scope="module")
def browser():
    needs("playwright")
    program = find_browser()
    if program is None:
        # In CI, too: the workflow installs one, and fails there where it cannot.
        pytest.skip("there is no Chromium (scripts/browser.sh installs one)")
    with open_browser(program) as browser:
        yield browser


@contextmanager
def serve_page(agent: DialogAgent, **options):
    with serving(agent, personas=PERSONAS, **options) as server:
        yield server


@pytest.fixture(scope="module")
def server():
    with serve_page(tiny_agent()) as server:
        yield server


@pytest.fixture
def brake(server):
    brake = Brake(server)
    yield brake
    brake.let_go()
    server.service.worker._take_turn = brake._take_turn


@pytest.fixture
def agent() -> DialogAgent:
    """The same agent as the server's, to be asked without it."""
    return tiny_agent()


@pytest.fixture
def new_talk(browser, server):
    """Open the page as somebody else each time; afterwards no console may hold an error that was not expected."""
    opened: list[tuple] = []

    def open_page(url: str = "", is_ready: bool = True, prepare=None, **options) -> Talk:
        context = browser.new_context(**{"viewport": SIZES["wide"]} | options)
        talk = Talk(context.new_page())
        opened.append((context, talk))
        if prepare:
            prepare(talk.page)
        talk.open(url or server.url, is_ready)
        return talk

    yield open_page
    for context, talk in opened:
        context.close()
        assert talk.unexpected_errors() == []


@pytest.fixture
def talk(new_talk) -> Talk:
    return new_talk()
