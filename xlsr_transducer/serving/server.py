"""Runs the server: its port, its signals, its end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import re
import signal
import socket
import ssl
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.recognition.live import LiveModel
from xlsr_transducer.serving.access import Access
from xlsr_transducer.serving.app import make_app
from xlsr_transducer.serving.connection import CLOSE_SECONDS
from xlsr_transducer.serving.keys import read_keys
from xlsr_transducer.serving.metrics import Metrics
from xlsr_transducer.serving.options import ServeOptions
from xlsr_transducer.serving.scheduler import Scheduler
from xlsr_transducer.serving.session import SHUTTING_DOWN, Sessions, post_to
from xlsr_transducer.serving.state import Server
from xlsr_transducer.serving.transport import (
    HttpConnection,
    WebSocketConnection,
    allow_many_files,
    bound,
)

SPARE_FILES = 100  # open files besides a session's connection
CUT_SECONDS = 10.0  # at the end, to compute what sessions have sent


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own signal handling, which closes websockets at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run_server(load: Callable[[], LiveModel], options: ServeOptions) -> None:
    """Serves until SIGTERM or SIGINT, then drains: no new sessions; those open may finish.

    A second signal ends the process at once, with the exit status of a shell.

    Args:
      load: returns the model; called once all other options have been found to be good.

    Raises:
      UserError: the port or a file cannot be used.
    """
    access_of(options)
    tls_of(options)
    files = allow_many_files()
    if files < options.max_sessions + SPARE_FILES:
        logging.warning(
            f"this system allows {files} open files, too few for --max-sessions "
            f"{options.max_sessions}"
        )

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, _end, number, stop)
        await serve(model, options, listener, stop)

    with listen(options) as listener:
        model = load()
        # What libraries and model have made stays: a full collection would walk it for 0.1 s, in
        # which no session is served.
        gc.collect()
        gc.freeze()
        _announce(listener, options)
        asyncio.run(main())


def _end(number: int, stop: asyncio.Event) -> None:
    if stop.is_set():
        logging.warning("a second signal: ended at once")
        os._exit(128 + number)
    stop.set()


def access_of(options: ServeOptions) -> Access:
    """Returns who may come in.

    Raises:
      UserError: the file of keys cannot be used, or a site is no address of one.
    """
    origins = [origin.strip().rstrip("/") for origin in options.allow_origin.split(",")]
    origins = [origin for origin in origins if origin]
    for origin in origins:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
            raise UserError(f"--allow-origin {origin}: must be like https://a.org, or *")
    return Access(read_keys(options.api_key_file), origins)


def tls_of(options: ServeOptions) -> ssl.SSLContext | None:
    """Returns the server's certificate and key; None without ``--certificate``.

    Raises:
      UserError: the file cannot be used.
    """
    path = options.certificate
    if path is None:
        return None
    if not path.is_file():
        raise UserError(f"--certificate {path}: no such file")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(path, password=_no_password)
    except (OSError, ValueError) as e:
        raise UserError(
            f"--certificate {path}: needs a certificate and its private key without a password, "
            f"both in PEM ({getattr(e, 'reason', None) or e})"
        ) from e
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")


def listen(options: ServeOptions) -> socket.socket:
    """Opens the port.

    Raises:
      UserError: it cannot be used.
    """
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        listener = socket.create_server((options.host, options.port), family=family, backlog=2048)
    except OSError as e:
        raise UserError(f"--host {options.host} --port {options.port}: {e.strerror or e}") from e
    bound(listener, options.idle_timeout + CLOSE_SECONDS)
    return listener


async def serve(
    model: LiveModel, options: ServeOptions, listener: socket.socket, stop: asyncio.Event
) -> None:
    """Serves until ``stop`` is set, then drains.

    Raises:
      UserError: a file cannot be used.
    """
    access, tls, metrics = access_of(options), tls_of(options), Metrics()
    loop = asyncio.get_running_loop()
    scheduler = Scheduler(
        model.engine(), post_to(loop), metrics.observe, options.max_wait_ms / 1000
    )
    sessions = Sessions(model, scheduler, options.max_sessions, options.max_backlog)
    metrics.watch(sessions)
    server = _Uvicorn(_config(make_app(Server(sessions, access, metrics, options)), options, tls))
    serving = asyncio.create_task(server.serve([listener]))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        await drain(sessions, options.drain_timeout)
    stopping.cancel()
    server.should_exit = True
    await serving
    scheduler.stop()


def _config(app: ASGIApp, options: ServeOptions, tls: ssl.SSLContext | None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,  # through our own
        log_level="warning",
        access_log=False,  # addresses may hold keys
        server_header=False,
        lifespan="off",
        http=HttpConnection,
        ws=WebSocketConnection,
        ws_max_size=options.max_message_bytes,
        ws_per_message_deflate=False,
        # Pings keep a connection open on its way. No answer is no reason to end it: the answer
        # waits behind audio that is not read yet.
        ws_ping_timeout=None,
        ssl_context_factory=(lambda config, default: tls) if tls else None,
        timeout_graceful_shutdown=5,
    )


async def drain(sessions: Sessions, timeout: float) -> None:
    """Takes no new sessions; returns once none is open.

    Those open after ``timeout`` seconds are cut: they end with their final text. Those that
    cannot be computed in further ``CUT_SECONDS`` fail.
    """
    sessions.is_draining = True
    logging.info(f"shutting down: {len(sessions)} sessions may finish within {timeout:g} s")
    await _until_none(sessions, timeout)
    for session in sessions:
        session.cut(SHUTTING_DOWN)
    await _until_none(sessions, CUT_SECONDS)
    for session in sessions:
        session.fail(SHUTTING_DOWN)


async def _until_none(sessions: Sessions, timeout: float) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    while len(sessions) and loop.time() < end:
        await asyncio.sleep(0.05)


def _announce(listener: socket.socket, options: ServeOptions) -> None:
    host, port = listener.getsockname()[:2]
    shown = "localhost" if host in ("0.0.0.0", "::", "127.0.0.1", "::1") else host
    shown = f"[{shown}]" if ":" in shown else shown
    scheme = "https" if options.certificate else "http"
    print(f"open {scheme}://{shown}:{port} in a browser", flush=True)
