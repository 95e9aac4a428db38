"""The routes of the server, and what holds for all of them: keys, Origin, limits, reasons."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.serving import openai_realtime, sherpa
from xlsr_transducer.serving.access import Access
from xlsr_transducer.serving.metrics import Metrics
from xlsr_transducer.serving.options import ServeOptions
from xlsr_transducer.serving.session import Session, SessionFailed, SessionRefused, Sessions
from xlsr_transducer.serving.wire import BadAudio

PAGE = Path(__file__).with_name("page")

# Why a session ended, as close codes of RFC 6455.
NORMAL, BAD_DATA, POLICY, INTERNAL = 1000, 1007, 1008, 1011


@dataclasses.dataclass(frozen=True)
class Server:
    """What the routes share."""

    sessions: Sessions
    access: Access
    metrics: Metrics
    options: ServeOptions


def make_app(server: Server) -> Starlette:
    """Returns the application: all protocols on one port."""
    routes = [
        WebSocketRoute("/", _sherpa),
        WebSocketRoute("/v1/realtime", _openai_realtime),
        Route("/health", _health),
        Route("/ready", _ready),
        Route("/metrics", _metrics),
        Mount("/", StaticFiles(directory=PAGE, html=True)),
    ]
    app = Starlette(routes=routes)
    app.state.server = server
    return app


def _server(connection: HTTPConnection) -> Server:
    return connection.app.state.server


async def _health(request: Request) -> Response:
    """Whether the process works: restart it if not."""
    alive = _server(request).sessions.scheduler.is_alive
    status = 200 if alive else 503
    return JSONResponse({"status": "ok" if alive else "the scheduler has stopped"}, status)


async def _ready(request: Request) -> Response:
    """Whether new sessions are taken: send none if not."""
    try:
        _server(request).sessions.require_room()
    except SessionRefused as e:
        return JSONResponse({"status": str(e)}, 503)
    return JSONResponse({"status": "ready"})


async def _metrics(request: Request) -> Response:
    return Response(_server(request).metrics.page(), media_type="text/plain; version=0.0.4")


async def _sherpa(websocket: WebSocket) -> None:
    server = _server(websocket)
    hotwords = websocket.query_params.get("hotwords", "").split("/")

    async def serve(session: Session) -> None:
        await sherpa.serve_stream(websocket, session, server.options.idle_timeout)

    await serve_websocket(websocket, lambda: server.sessions.open(hotwords), serve)


async def _openai_realtime(websocket: WebSocket) -> None:
    server = _server(websocket)

    async def serve(session: Session) -> None:
        timeout = server.options.idle_timeout
        await openai_realtime.serve_connection(websocket, session, server.sessions, timeout)

    await serve_websocket(websocket, server.sessions.open, serve)


async def serve_websocket(
    websocket: WebSocket,
    open_session: Callable[[], Session],
    serve: Callable[[Session], Awaitable[None]],
) -> None:
    """Serves a connection to its end; or refuses it, with a reason."""
    server = _server(websocket)
    refusal = refusal_of(websocket, server)
    if refusal is None:
        try:
            session = open_session()
        except SessionRefused as e:
            refusal = JSONResponse({"error": str(e)}, 503, headers={"Retry-After": "5"})
        except UserError as e:
            refusal = JSONResponse({"error": str(e)}, 400)
    if refusal is not None:
        server.metrics.refused.labels(str(refusal.status_code)).inc()
        await websocket.send_denial_response(refusal)
        return
    code, reason = NORMAL, ""
    try:
        await websocket.accept()
        await serve(session)
    except (BadAudio, UserError) as e:
        code, reason = BAD_DATA, str(e)
    except asyncio.TimeoutError:
        code, reason = POLICY, f"no message for {server.options.idle_timeout:g} s"
    except SessionFailed as e:
        code, reason = INTERNAL, str(e)
    except WebSocketDisconnect:
        code, reason = NORMAL, "the caller left"
    finally:
        session.close()
    server.metrics.ended.labels("finished" if not reason else reason_class(code)).inc()
    if reason:
        logging.info(f"a session ended early: {reason}")
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):  # it may be closed already
        await websocket.close(code, reason[:120])


def reason_class(code: int) -> str:
    """Returns a word for metrics."""
    words = {NORMAL: "left", BAD_DATA: "bad data", POLICY: "idle"}
    return words.get(code, "failed")


def refusal_of(connection: HTTPConnection, server: Server) -> Response | None:
    """Returns why a caller may not come in; None if it may."""
    if not server.access.may_come_from(connection):
        origin = connection.headers.get("origin", "")[:100]
        return JSONResponse({"error": f"pages of {origin} may not use this server"}, 403)
    if not server.access.has_key(connection):
        error = "no valid API key: send `Authorization: Bearer KEY` or ?api_key=KEY"
        return JSONResponse({"error": error}, 401, headers={"WWW-Authenticate": "Bearer"})
    return None
