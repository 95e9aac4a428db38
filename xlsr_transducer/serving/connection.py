"""A websocket from its handshake to its end, and the reason of its end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable

from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.serving.access import KEY_PROTOCOL
from xlsr_transducer.serving.guard import Unread
from xlsr_transducer.serving.refusals import Refused, response_to
from xlsr_transducer.serving.session import Session, SessionFailed, SessionRefused
from xlsr_transducer.serving.state import server_of
from xlsr_transducer.serving.wire import BadAudio

# Close codes of RFC 6455.
NORMAL, GOING_AWAY, BAD_DATA, POLICY, INTERNAL = 1000, 1001, 1007, 1008, 1011
BY_THE_PARSER = (1002, 1007, 1009)  # what is no websocket, no text, or too large a message

LONGEST_REASON = 123  # bytes, in a frame that closes
CLOSE_SECONDS = 5.0  # for a caller to take what closes its connection


@dataclasses.dataclass(frozen=True)
class End:
    """How a connection ended."""

    code: int
    how: str  # a word for metrics and logs
    reason: str = ""  # told to the caller


async def serve_websocket(
    websocket: WebSocket,
    open_session: Callable[[], Session],
    serve: Callable[[Session], Awaitable[None]],
) -> None:
    """Serves a connection to its end; or refuses it, with a reason.

    Args:
      open_session: may raise SessionRefused or UserError.
      serve: its errors, but for defects, are reasons for the end of the connection.
    """
    server = server_of(websocket)
    try:
        server.access.require(websocket)
        session = open_session()
    except (Refused, SessionRefused, UserError, BadAudio) as e:
        response = response_to(e)
        server.metrics.refused.labels(str(response.status_code)).inc()
        await websocket.send_denial_response(response)
        return
    end = End(INTERNAL, "failed", "the server ends at once")
    try:
        await websocket.accept(subprotocol_for(websocket))
        await serve(session)
        end = End(NORMAL, "finished")
        if session.cut_reason:
            end = End(GOING_AWAY, "cut", session.cut_reason)
    except Exception as e:
        end = end_by(e, server.options.idle_timeout)
    finally:
        session.close(end.how, end.reason)
    # It may be closed already, or its caller reads nothing.
    with contextlib.suppress(RuntimeError, WebSocketDisconnect, Unread, asyncio.TimeoutError):
        await asyncio.wait_for(websocket.close(end.code, cut_to_fit(end.reason)), CLOSE_SECONDS)


def end_by(error: Exception, idle_timeout: float) -> End:
    """Returns how a connection ends that ``error`` ended."""
    if isinstance(error, (BadAudio, UserError)):
        return End(BAD_DATA, "bad data", str(error))
    if isinstance(error, (Unread, asyncio.TimeoutError)):
        return End(POLICY, "idle", f"nothing came, or was read, for {idle_timeout:g} s")
    if isinstance(error, SessionFailed):
        return End(INTERNAL, "failed", str(error))
    if isinstance(error, SessionRefused):  # the connection's next one
        return End(GOING_AWAY, "cut", str(error))
    if isinstance(error, WebSocketDisconnect):
        return End(NORMAL, "bad data" if error.code in BY_THE_PARSER else "left", error.reason)
    logging.error("a protocol failed", exc_info=error)
    return End(INTERNAL, "failed", "internal error")


def subprotocol_for(websocket: WebSocket) -> str | None:
    """Returns which of the offered subprotocols is taken: browsers insist on one of theirs."""
    offered = websocket.scope.get("subprotocols", [])
    return next((p for p in offered if not p.startswith(KEY_PROTOCOL)), next(iter(offered), None))


def cut_to_fit(reason: str) -> str:
    """Returns a reason as short as a closing frame needs it."""
    return reason.encode()[:LONGEST_REASON].decode(errors="ignore")


async def receive(websocket: WebSocket) -> Message:
    """Returns the next message, with ``text`` or ``bytes``.

    Raises:
      WebSocketDisconnect: the caller left, or has sent something else.
      asyncio.TimeoutError: none came for ``--idle-timeout``.
    """
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1005), message.get("reason"))
    return message


async def until_left(websocket: WebSocket) -> None:
    """Reads on after the end of the audio: only so is it known when the caller leaves.

    Raises:
      WebSocketDisconnect: it left.
    """
    while True:
        with contextlib.suppress(asyncio.TimeoutError):
            await receive(websocket)
