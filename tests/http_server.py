"""A small HTTP server on localhost whose failures the tests choose."""

import hashlib
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    """Serves `files` (path -> bytes) in a thread, as a context manager; every GET is recorded in `requests`.

    ranges, if_range: honour these headers; versions: send an ETag
    longest_range: send no more bytes than this where a range is asked for
    statuses: HTTP statuses to answer with first, one a request, instead of the file
    drop_after: byte counts; each of the next requests loses its connection after so many bytes of body
    gate, gate_after: an event to wait for after so many bytes of body (and `at_gate` is set)
    """

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.ranges = self.if_range = self.versions = True
        self.longest_range: int | None = None
        self.statuses: list[int] = []
        self.drop_after: list[int] = []
        self.gate: threading.Event | None = None
        self.gate_after = 0
        self.at_gate = threading.Event()
        self.http = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"owner": self}))
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http.server_port}{path}"

    def ranges_asked(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.requests]

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exception):
        if self.gate:
            self.gate.set()
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # clients may leave as they like
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    owner: FileServer
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.owner
        server.requests.append((self.path, dict(self.headers)))
        if server.statuses:
            return self.send_empty(server.statuses.pop(0))
        if self.path not in server.files:
            return self.send_empty(404)
        content = server.files[self.path]
        etag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        start = self.first_byte(etag)
        if start >= len(content) > 0:
            return self.send_empty(416, {"Content-Range": f"bytes */{len(content)}"})
        end = start + (server.longest_range or len(content)) if start else len(content)
        body = content[start:end]
        headers = {"Content-Length": str(len(body))}
        if server.versions:
            headers["ETag"] = etag
        if start:
            headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{len(content)}"
        self.send_head(206 if start else 200, headers)
        self.send_body(body)

    def first_byte(self, etag: str) -> int:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not match or not self.owner.ranges:
            return 0
        changed = self.owner.if_range and self.headers.get("If-Range", etag) != etag
        return 0 if changed else int(match[1])

    def send_head(self, status: int, headers: dict[str, str]):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send_empty(self, status: int, headers: dict[str, str] | None = None):
        self.send_head(status, {"Content-Length": "0"} | (headers or {}))

    def send_body(self, body: bytes):
        server = self.owner
        try:
            if server.drop_after:
                self.wfile.write(body[: server.drop_after.pop(0)])
                self.close_connection = True  # before all of Content-Length was sent
                return
            if server.gate:
                self.wfile.write(body[: server.gate_after])
                server.at_gate.set()
                server.gate.wait(timeout=20)
                body = body[server.gate_after :]
            self.wfile.write(body)
        except ConnectionError:  # the client left
            self.close_connection = True

    def log_message(self, *args):
        pass
