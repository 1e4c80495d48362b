"""The process: the socket, signals, and patience with slow senders."""

import asyncio
import ipaddress
import logging
import math
import signal
import socket
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from convai.errors import UserError
from convai.options import ServeOptions

if TYPE_CHECKING:  # it imports torch, for which a port that is taken need not wait
    from convai.serve.worker import Worker

logger = logging.getLogger(__name__)
MAX_CONNECTIONS = 1000
MAX_HEADERS = 32_768  # bytes of a request's first line and headers
KEEP_ALIVE = 15  # seconds that a connection may be idle
STALLED = 60  # seconds that a client may read nothing of what waits for it


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address; UserError where it cannot be had.

    Who calls before the model is loaded waits.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: cannot listen there: {error.strerror}.") from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the address of a socket for a browser on this machine."""
    host, port = listener.getsockname()[:2]
    address = ipaddress.ip_address(host.partition("%")[0])
    if address.is_unspecified:
        host = "localhost"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def serve(app: ASGIApp, listener: socket.socket, worker: "Worker", options: ServeOptions) -> None:
    """Answer until Ctrl-C or SIGTERM; then finish what runs. A second Ctrl-C ends that, too."""
    # uvicorn raises the signals it was ended by once more; to have ended as asked is no failure.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    make_server(app, worker, options).run(sockets=[listener])


def make_server(app: ASGIApp, worker: "Worker", options: ServeOptions) -> "Server":
    """Return a server that is ready to run."""
    config = uvicorn.Config(
        app,
        http=partial(PunctualProtocol, seconds=options.send_timeout),  # type: ignore[arg-type] # made as the class is
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEADERS,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=math.ceil(options.deadline) + 1,
    )
    return Server(config, worker)


class Server(uvicorn.Server):
    """Closes the worker's line as soon as a signal comes."""

    def __init__(self, config: uvicorn.Config, worker: "Worker"):
        super().__init__(config)
        self._worker = worker

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._worker.drain()
        super().handle_exit(sig, frame)


class PunctualProtocol(H11Protocol):
    """Closes connections whose request does not come in time, or whose answer is not read."""

    def __init__(self, *arguments: Any, seconds: float, **options: Any):
        super().__init__(*arguments, **options)
        self._seconds = seconds
        self._patience: asyncio.TimerHandle | None = None  # runs while a request is expected
        self._stalled: asyncio.TimerHandle | None = None  # runs while the client reads nothing

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._expect_request()

    def data_received(self, data: bytes) -> None:
        self._expect_request()
        super().data_received(data)
        if self.cycle and not self.cycle.response_complete:  # its headers are here
            self._be_patient()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALLED, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._be_patient()
        if self._stalled is not None:
            self._stalled.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._be_patient()
        super().on_response_complete()

    def _expect_request(self) -> None:
        is_answering = self.cycle and not self.cycle.response_complete
        if self._patience is None and not is_answering:
            self._patience = self.loop.call_later(self._seconds, self.transport.close)

    def _be_patient(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
