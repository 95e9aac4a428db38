"""Runs the server: its port, its signals, its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator

import uvicorn

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.recognition.live import LiveModel
from xlsr_transducer.serving.access import Access, read_keys
from xlsr_transducer.serving.app import Server, make_app
from xlsr_transducer.serving.metrics import Metrics
from xlsr_transducer.serving.options import ServeOptions
from xlsr_transducer.serving.scheduler import Scheduler
from xlsr_transducer.serving.session import Sessions, post_to


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own signal handling, which closes websockets at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run_server(model: LiveModel, options: ServeOptions) -> None:
    """Serves until SIGTERM or SIGINT, then drains: no new sessions; those open may finish.

    Raises:
      UserError: the port or a file cannot be used.
    """

    async def main() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(model, options, listener, stop)

    listener = listen(options)
    _announce(listener, options)
    asyncio.run(main())


def _origins(text: str) -> list[str]:
    return [origin.strip().rstrip("/") for origin in text.split(",") if origin.strip()]


def listen(options: ServeOptions) -> socket.socket:
    """Opens the port.

    Raises:
      UserError: it cannot be used.
    """
    try:
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        return socket.create_server((options.host, options.port), family=family, backlog=2048)
    except OSError as e:
        raise UserError(f"--host {options.host} --port {options.port}: {e.strerror or e}") from e


async def serve(
    model: LiveModel, options: ServeOptions, listener: socket.socket, stop: asyncio.Event
) -> None:
    """Serves until ``stop`` is set, then drains.

    Raises:
      UserError: a file cannot be used.
    """
    access = Access(read_keys(options.api_key_file), _origins(options.allow_origin))
    metrics = Metrics()
    loop = asyncio.get_running_loop()
    scheduler = Scheduler(
        model.engine(), post_to(loop), metrics.observe, options.max_wait_ms / 1000
    )
    sessions = Sessions(model, scheduler, options.max_sessions, options.max_backlog)
    metrics.watch(sessions)
    app = make_app(Server(sessions, access, metrics, options))
    config = uvicorn.Config(
        app,
        log_level="warning",
        ws="websockets-sansio",
        ws_max_size=options.max_message_bytes,
        ws_per_message_deflate=False,
        ssl_certfile=options.certificate,
        timeout_graceful_shutdown=5,
    )
    server = _Uvicorn(config)
    serving = asyncio.create_task(server.serve([listener]))
    await stop.wait()
    await drain(sessions, options.drain_timeout)
    server.should_exit = True
    await serving
    scheduler.stop()


async def drain(sessions: Sessions, timeout: float) -> None:
    """Takes no new sessions; returns once none is open. Those open at ``timeout`` end with their
    final text."""
    sessions.is_draining = True
    logging.info(f"shutting down: {len(sessions)} sessions may finish within {timeout:g} s")
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    while len(sessions) and loop.time() < end:
        await asyncio.sleep(0.05)
    for session in sessions:
        session.finish()
    end = loop.time() + 10
    while len(sessions) and loop.time() < end:
        await asyncio.sleep(0.05)


def _announce(listener: socket.socket, options: ServeOptions) -> None:
    host, port = listener.getsockname()[:2]
    shown = "localhost" if host in ("0.0.0.0", "::", "127.0.0.1", "::1") else host
    scheme = "https" if options.certificate else "http"
    print(f"open {scheme}://{shown}:{port} in a browser", flush=True)
