"""A client of the server: sends live audio by sherpa's protocol, and yields the text.

It needs the package websockets alone.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidProxy,
    InvalidStatus,
    InvalidURI,
)
from websockets.sync.client import ClientConnection, connect

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.microphone import Capture
from xlsr_transducer.recognition.dictation import LiveText

DONE = "Done"


def recognise_remotely(
    server: str, api_key: str, ca_file: Path | None, capture: Capture
) -> Iterator[LiveText]:
    """Recognises live audio by a server; ends with the final text after the audio has ended.

    Args:
      server: its address, ``ws://HOST:PORT`` or ``wss://``.
      api_key: empty if the server needs none.
      ca_file: certificates to trust, in PEM, besides the system's.

    Raises:
      UserError: the server cannot be reached, refuses, or goes away.
    """
    with _connected(server, api_key, ca_file) as websocket:
        failures: list[Exception] = []
        threading.Thread(target=_send, args=(websocket, capture, failures), daemon=True).start()
        try:
            yield from _results(server, websocket)
        finally:
            capture.stop()
    if failures:
        raise failures[0]


def _results(server: str, websocket: ClientConnection) -> Iterator[LiveText]:
    is_over = False
    try:
        for message in websocket:
            found = json.loads(message)
            yield LiveText(str(found["text"]), bool(found["is_final"]))
            is_over = bool(found["final"])
    except ConnectionClosed:
        pass
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{server}: does not speak sherpa's protocol ({e!r})") from e
    if not is_over:
        reason = websocket.close_reason or "the connection was lost"
        raise UserError(f"{server}: {reason}; what was not final yet is lost")


def _send(websocket: ClientConnection, capture: Capture, failures: list[Exception]) -> None:
    """Sends audio until it ends; runs in a thread of its own."""
    with contextlib.suppress(ConnectionClosed):  # which the other thread sees too
        try:
            for piece in capture:
                websocket.send(piece.astype("<f4").tobytes())
        except ConnectionClosed:
            return
        except Exception as e:  # the text up to here is still wanted
            failures.append(e)
        websocket.send(DONE)


def _connected(server: str, api_key: str, ca_file: Path | None) -> ClientConnection:
    if not server.startswith(("ws://", "wss://")):
        raise UserError(f"--server {server}: must begin with ws:// or wss://")
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    trust = _trust(ca_file) if server.startswith("wss:") else None
    try:
        return connect(
            server,
            ssl=trust,
            additional_headers=headers,
            compression=None,
        )
    except InvalidStatus as e:
        status, body = e.response.status_code, (e.response.body or b"").decode(errors="replace")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            body = json.loads(body)["error"]["message"]
        raise UserError(f"{server}: refused with status {status}: {body[:300]}") from e
    # A ValueError: the port is no number, or the name is none.
    except (OSError, ValueError, InvalidHandshake, InvalidProxy, InvalidURI) as e:
        raise UserError(f"{server}: cannot be reached ({e})") from e


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as e:
            raise UserError(f"--ca-file {ca_file}: {e.strerror or e}") from e
    return context
