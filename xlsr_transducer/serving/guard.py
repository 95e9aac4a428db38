"""Limits that hold for all routes: keys, Origin, sizes, and time without a message."""

from __future__ import annotations

import asyncio

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from xlsr_transducer.serving.refusals import Refused, response_to
from xlsr_transducer.serving.state import Server

KEYED = "/v1/"  # paths that need a key; the page and the state of the server are open


class Unread(Exception):
    """The caller does not read what it is sent."""


class Guard:
    """ASGI middleware.

    A request body beyond ``max_upload_bytes`` ends with 413, and one that stalls for
    ``idle_timeout`` with 408: reading it raises ``Refused``. Reading a websocket raises
    ``asyncio.TimeoutError`` when no message comes for that long, and writing raises ``Unread``.
    """

    def __init__(self, app: ASGIApp, server: Server):
        self.app = app
        self.server = server
        self.seconds = server.options.idle_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self.app(scope, self._in_time(receive), self._taken_in_time(send))
        else:
            await self.app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["path"].startswith(KEYED):
                self.server.access.require(HTTPConnection(scope))
            self._require_size(int(dict(scope["headers"]).get(b"content-length", b"0")))
        except Refused as e:
            await response_to(e)(scope, receive, send)
            return
        await self.app(scope, self._counted(receive), send)

    def _require_size(self, size: int) -> None:
        most = self.server.options.max_upload_bytes
        if size > most:
            raise Refused(413, f"the request is larger than {most} bytes", "too_large")

    def _counted(self, receive: Receive) -> Receive:
        """Returns ``receive`` of a request's body, limited in size and time."""
        size, is_whole = 0, False

        async def limited() -> Message:
            nonlocal size, is_whole
            if is_whole:  # what follows is that the caller leaves, which may take any time
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self.seconds)
            except asyncio.TimeoutError as e:
                reason = f"nothing of the request came for {self.seconds:g} s"
                raise Refused(408, reason, "timeout", Connection="close") from e
            size += len(message.get("body", b""))
            self._require_size(size)
            is_whole = not message.get("more_body", False)
            return message

        return limited

    def _in_time(self, receive: Receive) -> Receive:
        # Not wait_for, which makes a task for each message.
        async def limited() -> Message:
            async with asyncio.timeout(self.seconds):
                return await receive()

        return limited

    def _taken_in_time(self, send: Send) -> Send:
        async def limited(message: Message) -> None:
            try:
                async with asyncio.timeout(self.seconds):
                    await send(message)
            except asyncio.TimeoutError as e:
                raise Unread from e

        return limited
