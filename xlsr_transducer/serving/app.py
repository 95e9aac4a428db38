"""The routes of the server: all protocols on one port."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from xlsr_transducer.serving import openai_files, openai_realtime, sherpa, web_page
from xlsr_transducer.serving.connection import serve_websocket
from xlsr_transducer.serving.guard import Guard
from xlsr_transducer.serving.refusals import HANDLERS, Refused, response_to
from xlsr_transducer.serving.session import SessionRefused
from xlsr_transducer.serving.state import Server, server_of


def make_app(server: Server) -> Starlette:
    """Returns the application."""
    routes = [
        WebSocketRoute("/", _sherpa),
        WebSocketRoute("/v1/realtime", openai_realtime.serve),
        Route("/v1/audio/transcriptions", openai_files.transcriptions, methods=["POST"]),
        Route("/v1/models", openai_files.models),
        Route("/v1/models/{name:path}", openai_files.model),
        Route("/health", _health),
        Route("/ready", _ready),
        Route("/metrics", _metrics),
        Route("/config", web_page.config),
        WebSocketRoute("/{path:path}", _unknown),
        Mount("/", web_page.PageFiles()),
    ]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=server.access.origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
    )
    middleware = [cors, Middleware(Guard, server=server)]
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=HANDLERS)
    app.state.server = server
    return app


async def _health(request: Request) -> Response:
    """Whether the process works: restart it if not."""
    alive = server_of(request).sessions.scheduler.is_alive
    status = 200 if alive else 503
    return JSONResponse({"status": "ok" if alive else "the scheduler has stopped"}, status)


async def _ready(request: Request) -> Response:
    """Whether new sessions are taken: send none if not."""
    try:
        server_of(request).sessions.require_room()
    except SessionRefused as e:
        return JSONResponse({"status": str(e)}, 503)
    return JSONResponse({"status": "ready"})


async def _metrics(request: Request) -> Response:
    return Response(server_of(request).metrics.page(), media_type="text/plain; version=0.0.4")


async def _sherpa(websocket: WebSocket) -> None:
    sessions = server_of(websocket).sessions
    hotwords = websocket.query_params.get("hotwords", "").split("/")
    await serve_websocket(
        websocket,
        lambda: sessions.open(hotwords),
        lambda session: sherpa.serve_stream(websocket, session),
    )


async def _unknown(websocket: WebSocket) -> None:
    error = Refused(404, "no websocket here: speak to / or /v1/realtime")
    await websocket.send_denial_response(response_to(error))
