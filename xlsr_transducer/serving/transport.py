"""Connections as uvicorn handles them, with the limits that it lacks.

* A request whose head never ends is given up; uvicorn waits for ever.
* Who does not read what is sent is not read from either; uvicorn answers pings for ever, and
  the answers pile up.
* Who takes nothing for long, or whose machine is gone, is cut off by the system (``bound``).
"""

from __future__ import annotations

import asyncio
import resource
import socket

import h11
from uvicorn._types import ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from xlsr_transducer.serving.refusals import error_response

HEAD_SECONDS = 15.0  # for the head of a request, from its first byte or the connection's start
LINGER_SECONDS = 1.0  # between the reason for the end of a websocket, and its end
SEND_BUFFER = 1 << 18  # bytes that the system keeps of what a caller has not read
# And of what is not read from a caller. A caller's ping waits behind it, and many callers take a
# late answer for a dead server: some seconds of float32, where the system would keep a minute.
RECEIVE_BUFFER = 1 << 18


class HttpConnection(H11Protocol):
    """HTTP until a websocket begins."""

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_watching()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        super().handle_websocket_upgrade(event)
        # The websocket's own parser takes less than HTTP's, and says nothing when it gives up.
        if not self.transport.get_protocol().handshake_initiated:
            self._refuse(431, "the address or a header is too long, or they are too many")

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "this is no HTTP request, or its head is too long")

    def _watch(self) -> None:
        """Limits the time in which no request is being answered, and data has come."""
        is_served = self.cycle is not None and not self.cycle.response_complete
        if is_served or self.transport.get_protocol() is not self:  # but a websocket
            self._stop_watching()
        elif self._limit is None:
            self._limit = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _stop_watching(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self._refuse(408, f"the request did not come within {HEAD_SECONDS:g} s")

    def _refuse(self, status: int, message: str) -> None:
        """Answers outside of the application, and closes."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = error_response(status, message, headers={"Connection": "close"})
            events = [
                h11.Response(status_code=status, headers=answer.raw_headers),
                h11.Data(data=answer.body),
                h11.EndOfMessage(),
            ]
            self.transport.write(b"".join(self.conn.send(event) for event in events))
        self.transport.close()


class WebSocketConnection(WebSocketsSansIOProtocol):
    """A websocket that reads only while its caller does."""

    def data_received(self, data: bytes) -> None:
        if self.conn.parser_exc is None:
            super().data_received(data)

    def handle_parser_exception(self) -> None:
        """Tells what was wrong with a message, and throws away for a while what still comes.

        To close at once, with data unread, would reset the connection, and the reason be lost.
        """
        closing = self.conn.close_sent
        event = {"type": "websocket.disconnect", "code": closing.code, "reason": closing.reason}
        self.queue.put_nowait(event)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.read_paused = False
        self.transport.resume_reading()
        self.close_timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.conn.fail(1007, "a text message is not UTF-8")
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.read_paused:
            self.transport.resume_reading()

    async def send(self, message: ASGISendEvent) -> None:
        await self.writable.wait()
        if self.close_sent and message["type"] == "websocket.send":
            raise ClientDisconnected  # the parser has ended it; uvicorn takes this for a defect
        await super().send(message)

    async def receive(self) -> ASGIReceiveEvent:
        await self.writable.wait()
        return await super().receive()


def bound(listener: socket.socket, seconds: float) -> None:
    """Bounds what the system keeps of each connection; it cuts off those that have taken nothing
    for ``seconds``."""
    # Connections inherit these from the listening socket.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; elsewhere the guard's time-out alone holds
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


def allow_many_files() -> int:
    """Raises the limit of open files as far as allowed; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
