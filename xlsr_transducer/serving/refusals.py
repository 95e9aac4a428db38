"""Why a request is refused or failed: one JSON shape, OpenAI's, for all routes.

A route raises; ``response_to`` makes the answer. A websocket is refused with the same answer
instead of its handshake.
"""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.serving.session import SessionFailed, SessionRefused
from xlsr_transducer.serving.wire import BadAudio


class Refused(HTTPException):
    """A request that is not served: an HTTP status, and the reason given to the caller."""

    param: str | None = None  # what of the request was wrong

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        """
        Args:
          code: a word for programs, such as ``invalid_api_key``.
          headers: of the answer; ``Retry_After="5"`` is ``Retry-After: 5``.
        """
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        super().__init__(status, message, named)
        self.code = code


def error_shape(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> dict[str, str | None]:
    """Returns an error as OpenAI's clients read it; ``param`` is what was wrong in the request."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"message": message, "type": kind, "param": param, "code": code}


def error_response(
    status: int,
    message: str,
    code: str | None = None,
    param: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Returns an answer as OpenAI's clients read it: ``{"error": {"message": ..., ...}}``."""
    return JSONResponse({"error": error_shape(status, message, code, param)}, status, headers)


def response_to(error: Exception) -> JSONResponse:
    """Returns the answer to a request that ended with ``error``."""
    if isinstance(error, HTTPException):
        code, param = (getattr(error, name, None) for name in ("code", "param"))
        headers = dict(error.headers or {})
        return error_response(error.status_code, str(error.detail), code, param, headers)
    if isinstance(error, SessionRefused):
        return error_response(503, str(error), "unavailable", headers={"Retry-After": "5"})
    if isinstance(error, (UserError, BadAudio)):
        return error_response(400, str(error))
    if isinstance(error, SessionFailed):
        return error_response(500, str(error), "internal")
    return error_response(500, "internal error", "internal")


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """``response_to`` as Starlette calls it."""
    return response_to(error)


# What routes may raise; ``Exception`` is for defects, which Starlette logs.
HANDLERS = {
    error: answer_error
    for error in (HTTPException, SessionRefused, UserError, BadAudio, SessionFailed, Exception)
}
