"""Who may ask: the names that this server goes by, keys, and the headers that keep browsers from harm."""

import hmac
import ipaddress
import json
import os
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from convai.errors import UserError
from convai.io.files import read_text
from convai.serve.errors import ApiError

KEY_VARIABLE = "CONVAI_API_KEY"
_HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[^:\[\]]+))(?::\d*)?")
# What is behind the key: all that answers for the model or tells of it. The page itself asks for the key.
LOCKED = ("/v1/", "/api/", "/metrics")
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def read_keys(path: str) -> list[str]:
    """Return the keys in a file, a line each, or else the one in the environment; none where there is neither.

    UserError for a file without a key, or a key that a header cannot carry.
    """
    if path:
        keys = [line.strip() for line in read_text(Path(path)).splitlines() if line.strip()]
        if not keys:
            raise UserError(f"--api_key_file {path} holds no key; write one a line, or leave the option out.")
    else:
        keys = [os.environ[KEY_VARIABLE].strip()] if os.environ.get(KEY_VARIABLE, "").strip() else []
    if any(not (key.isascii() and key.isprintable()) or " " in key for key in keys):
        where = f"--api_key_file {path}" if path else KEY_VARIABLE
        raise UserError(f"{where}: a key is one word of printable ASCII characters; choose another.")
    return keys


def is_loopback(host: str) -> bool:
    """Whether an address to listen at is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def warning_of(host: str, keys: Sequence[str]) -> str:
    """Return what whoever starts a server should know of who may use it, "" where that is nothing."""
    if keys or is_loopback(host):
        return ""
    return f"whoever reaches this address may use the model; set {KEY_VARIABLE} or --api_key_file."


class HostNames:
    """The names by which this server may be called.

    A page of another site whose name is made to lead here is told by that name. Addresses are no names, so wherever
    other machines may ask, they may ask by address.
    """

    def __init__(self, host: str, allowed: Sequence[str]):
        names = [name.lower() for name in allowed]
        self._names = {"localhost", host.lower(), *names}
        self._endings = tuple(name[1:] for name in names if name.startswith("*."))
        self._is_open = not is_loopback(host)

    def allow(self, header: str) -> bool:
        """Whether a Host header, NAME or NAME:PORT, names this server."""
        if not (parts := _HOST.fullmatch(header.strip().lower())):
            return False
        name = parts["address"] or parts["name"].rstrip(".")
        if name in self._names or "*" in self._names or (self._endings and name.endswith(self._endings)):
            return True
        try:
            return ipaddress.ip_address(name).is_loopback or self._is_open
        except ValueError:
            return False


class Keys:
    """Keys that a request may bring; without any, it needs none."""

    def __init__(self, keys: Sequence[str]):
        self._digests = [_digest(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def allow(self, header: str) -> bool:
        """Whether an Authorization header brings a key; takes as long for every wrong one."""
        kind, _, key = header.partition(" ")
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches) and kind.lower() == "bearer"


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


class Gate:
    """ASGI middleware: turns away who may not ask, and puts the security headers on every answer."""

    def __init__(self, app: ASGIApp, hosts: HostNames):
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        given = Headers(scope=scope).getlist("host")
        if len(given) == 1 and self.hosts.allow(given[0]):
            await self.app(scope, receive, send_guarded)
        else:
            error = ApiError(421, "this server does not go by that name; --allowed_hosts lists those it goes by")
            await refusal(error)(scope, receive, send_guarded)


class Lock:
    """ASGI middleware: asks for a key where there is one."""

    def __init__(self, app: ASGIApp, keys: Keys):
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_locked = scope["type"] == "http" and self.keys and scope["path"].startswith(LOCKED)
        if is_locked and not self.keys.allow(Headers(scope=scope).get("authorization", "")):
            error = ApiError(
                401,
                "a key is needed: Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
            await refusal(error)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class _Refusal(JSONResponse):
    """In ASCII, as a message may name what is no text."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


def refusal(error: ApiError) -> JSONResponse:
    """Return the answer to a request that is not carried out."""
    return _Refusal(error.body, status_code=error.status, headers=error.headers)
