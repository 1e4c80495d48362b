"""The server under load: replies a second and the time to their first text, with 1, 4, 16 and 64 clients.

    python -m bench.serve                     a GPT of full size with random weights
    python -m bench.serve --model RUN         your own

Beside it, in the same run and on the same model, batches of 16 without a server, and one reply after the other. Clients
are in a process of their own; each sends its next request as soon as it has the last one's reply. All replies have the
same length, which is the hardest for the server: where they differ, others fill the places of those that are whole.
Each rate is given by the clock and by the time that this process has computed, which other programs do not change; on a
GPU only the first means something.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

from bench.clients import ask, body_of
from bench.measure import Measurement, ratio
from bench.options import BenchOptions
from bench.setting import Setting
from convai.data.formats import find_source
from convai.dialog.agent import Context, DialogAgent
from convai.dialog.terminal import settled
from convai.errors import report_user_errors
from convai.options import DecodingSettings, DeviceOptions, ServeOptions, option, parser_of, positive_int
from convai.options.shared import PrecisionOptions
from convai.serve.app import create_app
from convai.serve.server import make_server, open_socket
from convai.serve.service import Service

BATCH = 16  # without a server
N_ALONE = 8  # replies that are made one by one, in a turn


@dataclass(frozen=True)
class LoadOptions:
    """What is asked of the server."""

    model: str = option("", "folder of a model (default: a GPT of full size with random weights)", metavar="MODEL")
    data: str = option("example", "dialogs, in any form that train.py reads", names=["--data", "--dataset_path"])
    clients: list[int] = option([1, 4, 16, 64], "numbers of clients", kind=positive_int, nargs="+")
    replies: int = option(64, "replies for each number of clients in a turn, two a client at least", kind=positive_int)
    length: int = option(20, "tokens of every reply", kind=positive_int)
    repeats: int = option(3, "turns", kind=positive_int)
    small: bool = option(False, "2 layers of 32: to see that it runs")


@dataclass(frozen=True)
class ServerOptions(PrecisionOptions, DeviceOptions, LoadOptions):
    """Options of `python -m bench.serve`."""

    description: ClassVar[str] = "The server under load, against batches without a server."


class Load:
    """A model, dialogs to answer, and the address of a server; counts replies and seconds of each way to make them."""

    def __init__(self, options: ServerOptions, agent: DialogAgent, url: str):
        self.options = options
        self.agent = agent
        self.url = url
        dialogs = find_source(options.data).load()["train"]
        # One of each dialog, so that nothing that was read for one reply is of use for the next.
        found = [Context(one["personality"], one["utterances"][-1]["history"]) for one in dialogs]
        n = max(2 * max(options.clients), options.replies, BATCH)
        self.contexts = [found[i % len(found)] for i in range(n)]
        self.rates: dict[str, list[float]] = {}
        self.cpu_rates: dict[str, list[float]] = {}  # a second of this process's own, which others do not take from
        self.first_text: dict[str, list[float]] = {}
        self.lone: list[tuple[float, float]] = []  # seconds until a reply's first text: in the chat, over HTTP

    def take_turns(self) -> None:
        ways: dict[str, Callable[[], tuple[int, float]]] = {
            f"batches of {BATCH}": lambda: self.without_server(BATCH),
            "one by one": lambda: self.without_server(1),
        } | {f"{n} clients": lambda n=n: self.served(n) for n in self.options.clients}
        for turn in range(self.options.repeats):
            for name, work in ways.items():
                busy = time.process_time()
                n_replies, seconds = work()
                self.rates.setdefault(name, []).append(n_replies / seconds)
                self.cpu_rates.setdefault(name, []).append(n_replies / (time.process_time() - busy))
                print(f"turn {turn + 1}: {name}: {n_replies / seconds:.3g} replies/s", file=sys.stderr, flush=True)
            for context in self.contexts[:N_ALONE]:
                self.lone.append((self.in_chat(context), self.over_http(context)))

    def without_server(self, batch_size: int) -> tuple[int, float]:
        n = self.options.replies // BATCH * BATCH or BATCH if batch_size > 1 else N_ALONE
        start = time.perf_counter()
        for first in range(0, n, batch_size):
            self.agent.reply_batch(self.contexts[first : first + batch_size])
        return n, time.perf_counter() - start

    def in_chat(self, context: Context) -> float:
        """Return the seconds until the chat shows the first text of a reply."""
        self.agent.reset()
        self.agent.persona, self.agent.history = list(context.persona), list(context.history[:-1])
        shown: list[float] = []
        start = time.perf_counter()
        self.agent.reply(context.history[-1], lambda text: shown.append(time.perf_counter()) if settled(text) else None)
        return (shown or [time.perf_counter()])[0] - start

    def over_http(self, context: Context) -> float:
        """Return the seconds until a request that is alone gets it."""
        address = urlsplit(self.url)
        body = body_of([context.persona, context.history], self.options.length)
        return asyncio.run(ask(str(address.hostname), address.port or 0, body))

    def served(self, n_clients: int) -> tuple[int, float]:
        """Have clients ask the server, in a process of their own."""
        n = max(2, self.options.replies // n_clients) * n_clients if n_clients > 1 else N_ALONE
        asked = {"url": self.url, "clients": n_clients, "length": self.options.length, "contexts": self.contexts[:n]}
        command = [sys.executable, "-m", "bench.clients"]
        done = subprocess.run(command, input=json.dumps(asked), stdout=subprocess.PIPE, text=True, check=True)
        answer = json.loads(done.stdout)
        self.first_text.setdefault(f"{n_clients} clients", []).extend(answer["first_text"])
        return n, answer["seconds"]

    def report(self) -> Iterator[dict[str, Any]]:
        """Yield a line for each way: the medians of its rates and of their ratios to those without a server."""
        for name in self.rates:
            line: dict[str, Any] = {"name": name}
            for unit, rates in (("s", self.rates), ("cpu_s", self.cpu_rates)):
                measured = {other: Measurement(one, None) for other, one in rates.items()}
                line[f"replies_per_{unit}"] = round(measured[name].rate, 3)
                for other in (f"batches of {BATCH}", "one by one"):
                    times = ratio(measured[name], measured[other])
                    line[f"times_{other.replace(' ', '_')}_by_{unit}"] = round(times, 3)
            if times := sorted(self.first_text.get(name, [])):
                line["first_text_ms"] = round(1000 * statistics.median(times))
                line["first_text_ms_p95"] = round(1000 * times[int(0.95 * (len(times) - 1))])
            yield line
        in_chat, over_http = zip(*self.lone, strict=True)
        yield {
            "name": "first text of a lone request",
            "first_text_ms": round(1000 * statistics.median(over_http)),
            "chat_first_text_ms": round(1000 * statistics.median(in_chat)),
            "times_chat": round(statistics.median(b / a for a, b in self.lone), 3),
        }


@contextmanager
def running(agent: DialogAgent, options: ServeOptions) -> Iterator[str]:
    """Run a server within this block; yields its address."""
    service = Service(agent, options, "bench", [])
    listener = open_socket("127.0.0.1", 0)
    server = make_server(create_app(service, []), service.worker, options)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@report_user_errors
def main(arguments: list[str] | None = None) -> None:
    options = parser_of(ServerOptions, prog="python -m bench.serve").parse_args(arguments)
    setting = Setting(BenchOptions(names=["reply"], data=options.data, small=options.small, device=options.device))
    settings = DecodingSettings(max_length=options.length, min_length=options.length)
    agent = DialogAgent.load(
        options.model or setting.folder, device=options.device, precision=options.precision, settings=settings
    )
    limits = ServeOptions(max_waiting=1000, deadline=600, max_length=options.length, min_length=options.length)
    with running(agent, limits) as url:
        load = Load(options, agent, url)
        load.take_turns()
    about = setting.describe() | {"model": options.model or setting.describe()["model"], "dtype": options.precision}
    for line in load.report():
        command = " ".join(["python", "-m", "bench.serve", *(arguments or sys.argv[1:])])
        print(json.dumps(line | about | {"tokens": options.length, "command": command}), flush=True)


if __name__ == "__main__":
    main()
