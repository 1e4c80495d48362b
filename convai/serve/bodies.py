"""What clients send: no more than allowed, in no more time than allowed, and of the type that it is said to be."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from convai.serve.access import refusal
from convai.serve.errors import ApiError

MAX_DISCARDED = 16_000_000  # bytes of a body that is too large: read, so that its sender reads the refusal


class BodyLimits:
    """ASGI middleware: reads a request's body before the application is called."""

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float):
        self.app = app
        self.max_bytes = max_bytes
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            # Other types a browser sends to any site without asking it first.
            if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                raise ApiError(415, "send JSON, with Content-Type: application/json")
            body = await self._read(receive, headers)
        except ApiError as error:
            error.headers["Connection"] = "close"  # what is still to come of the body is of no use
            await refusal(error)(scope, receive, send)
            return
        if body is None:  # the client has gone
            return
        was_read = False

        async def receive_again() -> Message:
            nonlocal was_read
            if was_read:
                return await receive()
            was_read = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, receive_again, send)

    async def _read(self, receive: Receive, headers: Headers) -> bytes | None:
        too_large = ApiError(413, f"a request has {self.max_bytes} bytes at most", code="request_too_large")
        body, n_bytes = bytearray(), 0
        declared = headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > self.max_bytes and "expect" in headers:
            raise too_large  # the client asks first, so that nothing need be discarded
        try:
            async with asyncio.timeout(self.seconds):
                is_whole = False
                while not is_whole and n_bytes <= self.max_bytes + MAX_DISCARDED:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    n_bytes += len(part)
                    if n_bytes <= self.max_bytes:
                        body += part
                    is_whole = not message.get("more_body", False)
        except TimeoutError:
            raise ApiError(408, f"the request was not whole after {self.seconds:g} s") from None
        if n_bytes > self.max_bytes:
            raise too_large
        return bytes(body)
