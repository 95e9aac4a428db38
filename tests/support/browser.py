"""A real browser before the server's page: its microphone plays a file."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from xlsr_transducer.serving.wire import WireAudio

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
OTHER_NAME = "page.test"  # this computer by a name that is not localhost: no secure context


@contextlib.contextmanager
def chromium(sound: Path) -> Iterator[Browser]:
    """Runs a browser whose microphone plays the wav file ``sound`` again and again."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={sound}",
                f"--host-resolver-rules=MAP {OTHER_NAME} 127.0.0.1",
            ],
        )
        yield browser
        browser.close()


class Watch:
    """What a page did: the audio that it sent, its requests, and what went wrong in it."""

    def __init__(self, page: Page):
        self.sockets: list[tuple[str, list[bytes | str]]] = []  # address, messages sent
        self.requests: list[str] = []
        self.problems: list[str] = []
        page.on("websocket", self._on_socket)
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._on_console)

    def _on_socket(self, websocket: Any) -> None:
        messages: list[bytes | str] = []
        self.sockets.append((websocket.url, messages))
        websocket.on("framesent", lambda message: messages.append(message))

    def _on_console(self, message: Any) -> None:
        if "Content Security Policy" in message.text:
            self.problems.append(message.text)

    def received(self, number: int = -1) -> np.ndarray:
        """Returns (n,) samples at 16 kHz as the server received them."""
        query = parse_qs(urlsplit(self.sockets[number][0]).query)
        audio = WireAudio("float32", int(query["rate"][0]))
        messages = self.sockets[number][1]
        assert messages[-1] == "Done", "the audio has not ended"
        return np.concatenate([audio.decode(b"".join(messages[:-1])), audio.finish()])


class Relay:
    """Stands between page and server, and can die and come back as a killed server does."""

    def __init__(self, server: str):
        self._server = server.rpartition(":")
        self._open: list[socket.socket] = []
        self.port = 0
        self.start()

    def start(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def kill(self) -> None:
        """Breaks all connections; until ``start`` new ones are refused."""
        sockets, self._open = [self._listener, *self._open], []
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it
            one.close()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = listener.accept()[0]
                far = socket.create_connection((self._server[0], int(self._server[2])))
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=_copy, args=pair, daemon=True).start()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
