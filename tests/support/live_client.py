"""Clients for tests on machines that may be heavily loaded."""

from __future__ import annotations

import urllib.request
from typing import Any

from websockets.asyncio.client import connect as impatient

SECONDS = 120  # for what takes a moment on an idle machine
PATIENCE = {"open_timeout": SECONDS, "close_timeout": SECONDS, "ping_timeout": None}


def connect(url: str, **settings: Any) -> impatient:
    """Returns ``websockets.connect`` with time for a busy server to answer."""
    return impatient(url, **{"max_size": None, **PATIENCE, **settings})


def metric(address: str, name: str) -> float:
    """Returns a value of ``/metrics``, by its name with labels."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=SECONDS) as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name + " "))
