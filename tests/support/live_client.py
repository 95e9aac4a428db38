"""A websocket client for tests on machines that may be heavily loaded."""

from __future__ import annotations

from typing import Any

from websockets.asyncio.client import connect as impatient

SECONDS = 120  # for what takes a moment on an idle machine
PATIENCE = {"open_timeout": SECONDS, "close_timeout": SECONDS, "ping_timeout": None}


def connect(url: str, **settings: Any) -> impatient:
    """Returns ``websockets.connect`` with time for a busy server to answer."""
    return impatient(url, **{"max_size": None, **PATIENCE, **settings})
