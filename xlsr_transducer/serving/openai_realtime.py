"""OpenAI's realtime websocket for transcription, at ``/v1/realtime``: JSON events both ways.

A session's audio is a stream from its first byte to the next ``commit`` or ``clear``; then
another stream begins. A stream is cut into items. With turn detection an item ends at each
endpoint, otherwise where the client commits; the text of an item comes in ``delta`` events while
it is spoken, none of which is ever taken back, so that together they are the text of
``completed``. Times count from the first audio of the session.

A wrong event is answered by ``error``, and the session goes on. Additions to OpenAI's events are
``words`` of ``completed``, and ``timestamp`` in its ``logprobs``.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.websockets import WebSocket

from xlsr_transducer.recognition.spans import TimedText
from xlsr_transducer.serving.connection import end_by, receive, serve_websocket
from xlsr_transducer.serving.openai_settings import (
    Settings,
    Shape,
    older_shape_of,
    shape_of,
    updated,
)
from xlsr_transducer.serving.openai_shapes import (
    BadRequest,
    GrowingText,
    log_probs_of,
    words_of,
)
from xlsr_transducer.serving.refusals import error_shape
from xlsr_transducer.serving.session import Session, SessionRefused, Sessions, both
from xlsr_transducer.serving.state import server_of
from xlsr_transducer.serving.wire import BadAudio

BETA_PROTOCOL = "openai-beta.realtime-v1"
ITEM, TRANSCRIPTION = "conversation.item", "conversation.item.input_audio_transcription"
BUFFER = "input_audio_buffer"


async def serve(websocket: WebSocket) -> None:
    """Serves a connection from its handshake to its end."""
    server = server_of(websocket)

    async def serve_from(session: Session) -> None:
        connection = _Connection(websocket, session, server.sessions)
        try:
            await connection.run()
        except Exception as e:
            end = end_by(e, server.options.idle_timeout)
            connection.session.close(end.how, end.reason)
            raise
        finally:
            connection.session.close()

    await serve_websocket(websocket, server.sessions.open, serve_from)


@dataclasses.dataclass
class Item:
    """What is said between two endpoints or two commits."""

    id: str
    start: float  # seconds of the stream's audio before it
    text: GrowingText = dataclasses.field(default_factory=GrowingText)
    segments: list[TimedText] = dataclasses.field(default_factory=list)  # those that ended
    is_announced: bool = False  # the client knows that somebody speaks


class _Cleared(Exception):
    """The client drops the stream."""


class _Connection:
    """One client: its settings, its present stream, and the item in it that has not ended."""

    def __init__(self, websocket: WebSocket, session: Session, sessions: Sessions):
        self.session = session  # the first keeps its place for those of later streams
        self._websocket, self._sessions = websocket, sessions
        self._id = _new_id("sess")
        self._is_beta = _asks_for_beta(websocket)
        model = websocket.query_params.get("model")
        rules = sessions.model.rules
        self._settings = Settings(model=model, detects_turns=rules is not None)
        self._offset = 0.0  # seconds of audio before the present stream
        self._last_item: str | None = None
        self._turn = asyncio.Lock()  # either direction ends an item as a whole
        self._begin_stream()
        self._handlers: dict[str, Callable[[Shape], Awaitable[None]]] = {
            "session.update": self._update,
            "transcription_session.update": self._update,
            f"{BUFFER}.append": self._append,
            f"{BUFFER}.commit": self._commit,
            f"{BUFFER}.clear": self._clear,
        }

    async def run(self) -> None:
        """Serves one stream after the other, until an error or the client ends it.

        Raises:
          SessionRefused, SessionFailed, TimeoutError, Unread, WebSocketDisconnect: why it ended.
        """
        kind = "transcription_session" if self._is_beta else "session"
        await self._send(self._session_event(f"{kind}.created"))
        while True:
            try:
                await both(self._receive(), self._send_results())
            except _Cleared:
                await self._send({"type": f"{BUFFER}.cleared"})
            self.session.close()
            # In the same moment, so that nobody takes its place.
            self.session = self._sessions.open(self._settings.keywords)
            self._offset += self._seconds
            self._begin_stream()

    def _begin_stream(self) -> None:
        self._audio = self._settings.audio()
        self._seconds = 0.0  # of the stream's audio
        self._is_committed = self._is_dropped = False  # by the client, which ends the stream
        self._item = Item(_new_id("item"), start=0.0)

    async def _receive(self) -> None:
        """Acts on the client's events up to the one that ends the stream."""
        while not self._is_committed:
            message = await receive(self._websocket)
            event: Shape = {}
            try:
                event = _parsed(message.get("text"))
                await self._handler(event)(event)
            except BadRequest as e:
                cause = event.get("event_id")
                await self._send_error(e, cause if isinstance(cause, str) else None)

    def _handler(self, event: Shape) -> Callable[[Shape], Awaitable[None]]:
        kind = event.get("type")
        if not isinstance(kind, str) or kind not in self._handlers:
            shown = json.dumps(kind)[:60]
            raise BadRequest(
                f"type {shown}: this server transcribes, and takes {', '.join(self._handlers)}",
                "type",
            )
        return self._handlers[kind]

    async def _update(self, event: Shape) -> None:
        old = self._settings
        new = updated(old, event.get("session"), self._sessions.model)
        if (new.coding, new.rate, new.keywords) != (old.coding, old.rate, old.keywords):
            if self._seconds:
                raise BadRequest(
                    "format and keywords cannot change within a stream: commit or clear it first",
                    "session",
                )
            self._audio = new.audio()
            self.session.take_hotwords(new.keywords)
        self._settings = new
        self._is_beta |= event["type"] != "session.update"
        await self._send(self._session_event(f"{event['type']}d"))

    async def _append(self, event: Shape) -> None:
        audio = event.get("audio")
        try:
            data = base64.b64decode(audio, validate=True) if isinstance(audio, str) else None
        except ValueError:
            data = None
        if data is None:
            raise BadRequest("audio: must be base64 text", "audio")
        self._seconds += len(data) / self._settings.bytes_per_second
        await self.session.send(self._audio.decode(data))

    async def _commit(self, event: Shape) -> None:
        if not self._seconds:
            raise BadRequest(
                "the audio buffer is empty: append audio before a commit",
                code=f"{BUFFER}_commit_empty",
            )
        try:
            rest = self._audio.finish()
        except BadAudio as e:
            raise BadRequest(str(e), code="invalid_audio") from e
        await self.session.send(rest)
        async with self._turn:
            self._is_committed = True
            await self._announce_commit()
        self.session.finish()

    async def _clear(self, event: Shape) -> None:
        async with self._turn:
            self._is_dropped = True
        raise _Cleared

    async def _send_results(self) -> None:
        """Sends what the stream gives, up to its end."""
        async for segment in self.session.results():
            async with self._turn:
                if not self._is_dropped:
                    await self._show(segment)
        if not self._is_committed:  # the server has ended the stream
            if self._item.segments:
                await self._announce_commit()
                await self._complete(self._seconds)
            raise SessionRefused(self.session.cut_reason)
        await self._complete(self._seconds)

    async def _show(self, segment: TimedText) -> None:
        item, turns = self._item, self._settings.detects_turns
        if turns and not item.is_announced and segment.num_stable:
            item.is_announced = True
            start = self._milliseconds(segment.start)
            await self._send_of_item(f"{BUFFER}.speech_started", audio_start_ms=start)
        delta = item.text.add(segment)
        if delta:
            await self._send_of_item(f"{TRANSCRIPTION}.delta", content_index=0, delta=delta)
        if not segment.is_final:
            return
        item.segments.append(segment)
        await self._send_of_item(f"{TRANSCRIPTION}.segment", **self._segment_shape(segment))
        if turns and not self._is_committed:
            end = self._milliseconds(segment.end)
            await self._send_of_item(f"{BUFFER}.speech_stopped", audio_end_ms=end)
            await self._announce_commit()
            await self._complete(segment.end)
            self._item = Item(_new_id("item"), segment.end)

    async def _announce_commit(self) -> None:
        """Tells the client that the item is complete, of which the last text may be missing."""
        item, before = self._item, self._last_item
        self._last_item = item.id
        await self._send_of_item(f"{BUFFER}.committed", previous_item_id=before)
        for name in ("created",) if self._is_beta else ("added", "done"):
            event = {"type": f"{ITEM}.{name}", "previous_item_id": before}
            await self._send({**event, "item": _item_shape(item.id)})

    async def _complete(self, end: float) -> None:
        """Sends the item's whole text; ``end`` in seconds of the stream."""
        item = self._item
        log_probs = log_probs_of(item.segments, self._offset)
        # The last frame may end a little after the audio, and the next item begin there.
        seconds = max(round(end - item.start, 3), 0.0)
        await self._send_of_item(
            f"{TRANSCRIPTION}.completed",
            content_index=0,
            transcript=item.text.text,
            logprobs=log_probs if self._settings.wants_log_probs else None,
            usage={"type": "duration", "seconds": seconds},
            words=words_of(item.segments, self._offset),
        )

    def _segment_shape(self, segment: TimedText) -> Shape:
        times = {"start": segment.start, "end": segment.end}
        shape = {name: round(self._offset + at, 3) for name, at in times.items()}
        # OpenAI's clients expect a speaker, which nobody tells here.
        return {
            "id": _new_id("seg"),
            "content_index": 0,
            "text": segment.text,
            "speaker": "",
            **shape,
        }

    def _milliseconds(self, seconds: float) -> int:
        return round((self._offset + seconds) * 1000)

    def _session_event(self, kind: str) -> Shape:
        shape = shape_of if kind.startswith("session.") else older_shape_of
        return {
            "type": kind,
            "session": shape(self._settings, self._id, self._sessions.model.rules),
        }

    async def _send_of_item(self, kind: str, **fields: Any) -> None:
        await self._send({"type": kind, "item_id": self._item.id, **fields})

    async def _send_error(self, error: BadRequest, cause: str | None) -> None:
        """Sends an error; ``cause`` is the id that the client gave its event."""
        shape = error_shape(error.status_code, error.detail, error.code, error.param)
        await self._send({"type": "error", "error": {**shape, "event_id": cause}})

    async def _send(self, event: Shape) -> None:
        await self._websocket.send_text(json.dumps({"event_id": _new_id("event"), **event}))


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:24]}"


def _asks_for_beta(websocket: WebSocket) -> bool:
    header = websocket.headers.get("openai-beta", "")
    return "realtime=v1" in header or BETA_PROTOCOL in websocket.scope.get("subprotocols", [])


def _parsed(text: str | None) -> Shape:
    """Returns a client's event.

    Raises:
      BadRequest: it is none.
    """
    if text is None:
        raise BadRequest("events are JSON in text messages; this one is binary", code="no_text")
    try:
        event = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise BadRequest(f"this is not JSON: {str(e)[:100]}", code="invalid_json") from e
    if not isinstance(event, dict):
        raise BadRequest("an event must be a JSON object", code="invalid_json")
    return event


def _item_shape(item_id: str) -> Shape:
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "message",
        "status": "completed",
        "role": "user",
        "content": [{"type": "input_audio", "transcript": None}],
    }
