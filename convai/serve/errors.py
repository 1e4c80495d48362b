"""Errors as OpenAI's clients read them: {"error": {"message", "type", "param", "code"}}."""

import re
from collections.abc import Collection
from difflib import get_close_matches
from logging import Logger
from traceback import format_tb
from typing import Any

MAX_NAME = 60  # characters of a field's name in a message
_TYPE = re.compile(r"str|list\[.*\]|function-.*|constrained-.*|TextPart|TextDocument|Message")
KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """A request that is not carried out: the status and the reason that its client is told."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        """`param` names the field that is wrong, `code` is for programs, `headers` go along with the answer."""
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        return error_body(self.status, str(self), self.param, self.code)


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def invalid_request(found: dict[str, Any], known: Collection[str] = ()) -> ApiError:
    """Return the error (400) of what pydantic found wrong first; it repeats no text that was sent, but names of fields.

    `known` are names that an unknown one may have been meant for.
    """
    if found["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {found['ctx']['error']}")
    # Which of several types a value was tried for says nothing to clients.
    place = [str(part)[:MAX_NAME] for part in found["loc"][1:] if not _TYPE.fullmatch(str(part))]
    param = ".".join(place) or None
    if found["type"] == "extra_forbidden":
        likely = get_close_matches(place[-1], known, n=1)
        message = f"there is no field {param}" + (f"; did you mean {likely[0]}?" if likely else "")
        return ApiError(400, message, param=param, code="unknown_parameter")
    return ApiError(400, f"{param or 'the body'}: {found['msg'].removeprefix('Value error, ')}", param=param)


def log_discreetly(logger: Logger, doing: str, error: BaseException) -> None:
    """Log where an error of our own came from; neither its message nor values, which may hold what people said."""
    logger.error("error while %s (%s):\n%s", doing, type(error).__name__, "".join(format_tb(error.__traceback__)))
