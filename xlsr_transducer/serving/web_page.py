"""The page in the browser: its files, and what it asks the server before a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.staticfiles import StaticFiles

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.serving.refusals import Refused
from xlsr_transducer.serving.session import SessionRefused, hotwords_of
from xlsr_transducer.serving.state import Server, server_of

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


async def config(request: Request) -> Response:
    """Tells what the page needs to know: the model's name, whether a key is needed, why there are
    no hotwords, and why a session with the request's key and ``?hotwords=`` would be refused (a
    browser does not tell a page why a websocket was not opened).
    """
    server = server_of(request)
    model = server.sessions.model
    return JSONResponse(
        {
            "model": model.name,
            "needs_key": server.access.needs_key,
            "no_hotwords": model.why_no_hotwords,
            "refusal": _refusal(request, server),
        }
    )


def _refusal(request: Request, server: Server) -> str:
    try:
        server.access.require(request)
        server.sessions.require_room()
        hotwords = request.query_params.get("hotwords", "").split("/")
        hotwords_of(server.sessions.model, hotwords)
    except Refused as e:
        return "it does not accept this API key" if e.status_code == 401 else e.detail
    except (SessionRefused, UserError) as e:
        return str(e)
    return ""
