"""OpenAI's transcription of files, ``POST /v1/audio/transcriptions``, and ``GET /v1/models``.

An upload lies in a temporary file. It is decoded piece by piece in threads and goes through a
session as live audio does, so that memory is bounded and live sessions have their share.

Any ``model`` will do, there is one. ``keywords`` are hotwords, as in the realtime protocol;
``language``, ``prompt``, ``temperature`` and ``chunking_strategy`` change nothing. Additions to
OpenAI's shapes are ``confidence`` of words, and ``timestamp`` in ``logprobs``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.data.audio_file import AudioProblem
from xlsr_transducer.data.media import open_media
from xlsr_transducer.recognition.live import LiveModel
from xlsr_transducer.recognition.spans import TimedText
from xlsr_transducer.recognition.subtitles import render
from xlsr_transducer.serving.openai_form import Wanted, read_form
from xlsr_transducer.serving.openai_shapes import (
    BadRequest,
    GrowingText,
    log_probs_of,
    words_of,
)
from xlsr_transducer.serving.refusals import response_to
from xlsr_transducer.serving.session import (
    Session,
    SessionFailed,
    SessionRefused,
    Sessions,
    both,
)
from xlsr_transducer.serving.state import server_of

UNKNOWN_LANGUAGE = "unknown"  # the model does not tell
DELTA, DONE = "transcript.text.delta", "transcript.text.done"


async def transcriptions(request: Request) -> Response:
    """Transcribes an upload."""
    server = server_of(request)
    try:
        # An upload takes its place before it is read: so their number is bounded too.
        session = server.sessions.open()
    except SessionRefused:
        server.metrics.refused.labels("503").inc()
        raise
    try:
        return await _transcribe(request, session, server.sessions)
    except ClientDisconnect:
        return Response(status_code=499)  # nobody reads it


async def _transcribe(request: Request, session: Session, sessions: Sessions) -> Response:
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(session.close)
        try:
            form = await session.unless_cut(read_form(request, stack))
            wanted = Wanted.from_form(form, sessions.model)
            session.take_hotwords(wanted.keywords)
            upload = await Upload.open(form["file"].file, stack)
        except HTTPException as e:
            session.close("idle" if e.status_code == 408 else "bad data", e.detail)
            raise
        if wanted.is_streamed:
            return _Streamed(_events(session, upload, wanted), stack.pop_all())
        segments: list[TimedText] = []
        await both(_until_left(request), _collect(session, upload, segments))
        return _answer(segments, session.seconds, wanted, sessions.model)


async def models(request: Request) -> Response:
    """Lists the one model that is served."""
    name = server_of(request).sessions.model.name
    return JSONResponse({"object": "list", "data": [_model_shape(name)]})


async def model(request: Request) -> Response:
    """Describes a model: every name is one of the model that is served."""
    return JSONResponse(_model_shape(request.path_params["name"]))


def _model_shape(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "xlsr-transducer"}


class Upload:
    """An audio file that is decoded in threads, one piece at a time."""

    def __init__(self, pieces: Iterator[np.ndarray]):
        self._pieces = pieces
        self._reading: asyncio.Future[np.ndarray | None] | None = None

    @staticmethod
    async def open(file: BinaryIO, stack: contextlib.AsyncExitStack) -> Upload:
        """Returns an upload, which is closed by ``stack``.

        Raises:
          BadRequest: it is no audio.
        """
        opened = contextlib.ExitStack()
        try:
            media = await asyncio.to_thread(opened.enter_context, open_media(file))
        except AudioProblem as e:
            raise _not_audio(e) from e
        upload = Upload(_seconds(media.pieces))
        stack.push_async_callback(asyncio.to_thread, opened.close)
        stack.push_async_callback(upload.wait)
        return upload

    async def read(self) -> np.ndarray | None:
        """Returns the next (n,) samples at 16 kHz; None at the end.

        Raises:
          BadRequest: the rest is no audio.
        """
        self._reading = asyncio.ensure_future(asyncio.to_thread(next, self._pieces, None))
        try:
            return await asyncio.shield(self._reading)
        except AudioProblem as e:
            raise _not_audio(e) from e

    async def wait(self) -> None:
        """Waits for the thread that reads, if any: the file must not be closed under it."""
        if self._reading is not None:
            await asyncio.wait([self._reading])


def _not_audio(problem: AudioProblem) -> BadRequest:
    return BadRequest(f"file: {problem}", "file", "invalid_audio")


def _seconds(pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields pieces of a second or more: each costs a change of threads."""
    waiting, count = [], 0
    for piece in pieces:
        waiting.append(piece)
        count += len(piece)
        if count >= SAMPLING_RATE:
            yield np.concatenate(waiting)
            waiting, count = [], 0
    if waiting:
        yield np.concatenate(waiting)


async def _feed(session: Session, upload: Upload) -> None:
    try:
        while (piece := await upload.read()) is not None:
            await session.send(piece)
    except BadRequest as e:
        session.close("bad data", e.detail)
        session.fail(e.detail)  # which ends its results
        raise
    session.finish()


async def _segments(session: Session, upload: Upload) -> AsyncIterator[TimedText]:
    """Yields what ``session.results`` does, while the upload goes in.

    Raises:
      BadRequest: the upload is broken.
      SessionFailed, SessionRefused: the server could not compute it, or is shutting down.
    """
    feeding = asyncio.create_task(_feed(session, upload))
    try:
        async for segment in session.results():
            yield segment
        if session.cut_reason:  # by which the text would end in the middle
            raise SessionRefused(session.cut_reason)
    except SessionFailed:
        await feeding  # which may know better why
        raise
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


async def _collect(session: Session, upload: Upload, found: list[TimedText]) -> None:
    async with contextlib.aclosing(_segments(session, upload)) as segments:
        async for segment in segments:
            if segment.is_final:
                found.append(segment)


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnect()


class _Streamed(StreamingResponse):
    """Server-sent events; frees what they need even if the caller leaves before the first."""

    def __init__(self, events: AsyncIterator[str], stack: contextlib.AsyncExitStack):
        super().__init__(events, media_type="text/event-stream")
        self.headers["Cache-Control"] = "no-cache"
        self._events, self._stack = events, stack

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with self._stack, contextlib.aclosing(self._events):
            await super().__call__(scope, receive, send)


async def _events(session: Session, upload: Upload, wanted: Wanted) -> AsyncIterator[str]:
    """Yields the text as it comes, as server-sent events; no delta is taken back."""
    text, found = GrowingText(), []
    try:
        async with contextlib.aclosing(_segments(session, upload)) as segments:
            async for segment in segments:
                delta = text.add(segment)
                if segment.is_final:
                    found.append(segment)
                if delta:
                    yield _event({"type": DELTA, "delta": delta})
    except (BadRequest, SessionFailed, SessionRefused) as e:
        yield _event(json.loads(response_to(e).body))
        return
    done = {"type": DONE, "text": text.text}
    if wanted.wants_log_probs:
        done["logprobs"] = log_probs_of(found)
    yield _event(done)


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _answer(
    segments: Sequence[TimedText], seconds: float, wanted: Wanted, model: LiveModel
) -> Response:
    """Returns the transcript of audio of ``seconds`` in the format that is wanted."""
    if wanted.response_format in ("srt", "vtt"):
        rendered = render(wanted.response_format, segments, seconds)
        kind = {"srt": "text/plain", "vtt": "text/vtt"}[wanted.response_format]
        return PlainTextResponse(rendered, media_type=kind)
    text = GrowingText()
    for segment in segments:
        text.add(segment)
    if wanted.response_format == "text":
        return PlainTextResponse(text.text + "\n")
    usage = {"type": "duration", "seconds": round(seconds, 3)}
    answer: dict[str, Any] = {"text": text.text, "usage": usage}
    if wanted.response_format == "verbose_json":
        language = wanted.language or UNKNOWN_LANGUAGE
        answer |= {"task": "transcribe", "language": language, "duration": round(seconds, 3)}
        if "word" in wanted.granularities:
            answer["words"] = words_of(segments)
        if "segment" in wanted.granularities:
            ids = {name: number for number, name in enumerate(model.tokens)}
            answer["segments"] = [_segment_shape(s, ids) for s in segments]
    elif wanted.wants_log_probs:
        answer["logprobs"] = log_probs_of(segments)
    return JSONResponse(answer)


def _segment_shape(segment: TimedText, ids: dict[str, int]) -> dict[str, Any]:
    data = segment.text.encode()
    return {
        "id": segment.segment,
        "seek": round(segment.start * 100),  # Whisper's frames of 10 ms
        "start": round(segment.start, 3),
        "end": round(segment.end, 3),
        "text": segment.text,
        "tokens": [ids[name] for name in segment.tokens],
        "temperature": 0.0,  # nothing is drawn at random
        "avg_logprob": sum(segment.log_probs) / max(len(segment.log_probs), 1),
        "compression_ratio": len(data) / len(zlib.compress(data)),  # as Whisper defines it
        "no_speech_prob": 0.0,  # there is no segment without speech
    }
