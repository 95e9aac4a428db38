"""The page in the browser: its files, and what it asks the server before a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.serving.access import Access
from xlsr_transducer.serving.refusals import Refused
from xlsr_transducer.serving.session import SessionRefused, Sessions

FOLDER = Path(__file__).with_name("page")

# Nothing from other hosts, no scripts but the page's files, in no other page's frame.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; "
        "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # asks whether a file has changed, as a newer server's has
}


class PageFiles(StaticFiles):
    """Serves the page's folder, with headers that keep the page to itself."""

    def __init__(self) -> None:
        super().__init__(directory=FOLDER, html=True)

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(HEADERS)
        return response


def config(request: Request, sessions: Sessions, access: Access) -> Response:
    """Returns what the page needs to know: the model's name, whether a key is needed, why there
    are no hotwords, and why a session with the request's key and ``?hotwords=`` would be refused
    (a browser does not tell a page why a websocket was not opened).
    """
    return JSONResponse(
        {
            "model": sessions.model.name,
            "needs_key": access.needs_key,
            "no_hotwords": sessions.model.why_no_hotwords,
            "refusal": _refusal(request, sessions, access),
        }
    )


def _refusal(request: Request, sessions: Sessions, access: Access) -> str:
    try:
        access.require(request)
        sessions.require_room()
        sessions.model.hotwords(request.query_params.get("hotwords", "").split("/"))
    except Refused as e:
        return "it does not accept this API key" if e.status_code == 401 else str(e.detail)
    except (SessionRefused, UserError) as e:
        return str(e)
    return ""
