"""sherpa's websocket protocol, at ``/``: float32 samples in, "Done" at the end, JSON out.

Its stock clients, sherpa-onnx's and their browser pages work with it. The keys of a result are
those of all these servers together. ``final`` is true in a connection's last message alone, as
sherpa's C++ client leaves at the first one; ``is_final`` is sherpa-onnx's name for a segment that
has ended. After the last message the server closes with 1000.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.websockets import WebSocket

from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.recognition.spans import TimedText, word_shapes
from xlsr_transducer.serving.connection import receive, until_left
from xlsr_transducer.serving.session import Session, both
from xlsr_transducer.serving.wire import BadAudio, WireAudio

DONE = "Done"


def message_of(segment: TimedText, is_last: bool = False) -> dict[str, Any]:
    """Returns a result as the clients of both projects read it."""
    return {
        "method": "streaming",
        "segment": segment.segment,
        "text": segment.text,
        "tokens": segment.tokens,
        "timestamps": segment.timestamps,
        "start_time": segment.start,
        "ys_probs": segment.log_probs,
        "lm_probs": [],
        "context_scores": [],
        "words": [],
        "word_details": word_shapes(segment.words),
        "is_final": segment.is_final,
        "is_eof": is_last,
        "final": is_last,
    }


async def serve_stream(websocket: WebSocket, session: Session) -> None:
    """Serves an accepted connection to its end.

    Raises:
      BadAudio, TimeoutError, SessionFailed, WebSocketDisconnect: why it ended early.
    """
    await both(_receive(websocket, session), _send(websocket, session))


async def _receive(websocket: WebSocket, session: Session) -> None:
    audio = WireAudio("float32", _rate(websocket))
    while not session.is_finished:
        message = await receive(websocket)
        if message.get("bytes") is not None:
            await session.send(audio.decode(message["bytes"]))
        elif message.get("text") == DONE:
            await session.send(audio.finish())
            session.finish()
        else:
            raise BadAudio('a text message must be "Done"; audio is sent in binary messages')
    await until_left(websocket)


def _rate(websocket: WebSocket) -> int:
    given = websocket.query_params.get("rate", str(SAMPLING_RATE))
    if not (given.isascii() and given.isdecimal() and len(given) < 8):
        raise BadAudio(f"rate {given[:20]!r}: must be a number of Hz")
    return int(given)


async def _send(websocket: WebSocket, session: Session) -> None:
    """Sends results as they come, and one that is the last."""
    is_last = False
    async for segment in session.results():
        is_last = session.is_exhausted
        await websocket.send_text(json.dumps(message_of(segment, is_last)))
    if not is_last:
        nothing = TimedText(session.next_segment, "", [], [], [], [], is_final=True)
        await websocket.send_text(json.dumps(message_of(nothing, is_last=True)))
