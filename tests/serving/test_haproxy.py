"""Servers behind HAProxy, as ``deploy/haproxy.cfg`` sets it up: one drains, one is killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosedError

from tests.support.live_client import connect, metric
from tests.support.live_server import expected, load_live, texts_of, waves
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model

ROOT = Path(__file__).resolve().parents[2]
NUM_SESSIONS = 40
TIMEOUT = 120  # seconds, for what would otherwise never end

HAPROXY = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")


def start_server(checkpoint: Path) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "xlsr_transducer.serve",
        "--port",
        "0",
        "--cpu-layers=pytorch",
    ]
    command += ["--checkpoint", str(checkpoint)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def port_of(server: subprocess.Popen) -> int:
    """Returns the port that a server announces once it is ready."""
    return int(re.search(r":(\d+) in a browser", server.stdout.readline())[1])


def configured(port: int, servers: list[int]) -> str:
    """Returns deploy/haproxy.cfg with other addresses."""
    text = (ROOT / "deploy" / "haproxy.cfg").read_text()
    text, binds = re.subn(r"bind :6006\b", f"bind 127.0.0.1:{port}", text)
    text, places = re.subn(
        r"(server \w+) 10\.0\.0\.(\d):6006",
        lambda found: f"{found[1]} 127.0.0.1:{servers[int(found[2]) - 1]}",
        text,
    )
    assert (binds, places) == (1, 2)
    return text


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Fleet:
    """Two servers with their ports, and HAProxy before them with its port."""

    def __init__(
        self,
        servers: list[subprocess.Popen],
        ports: list[int],
        haproxy: subprocess.Popen,
        port: int,
    ):
        self.servers, self.ports, self.haproxy, self.port = servers, ports, haproxy, port

    def sessions(self, number: int) -> int:
        """Returns how many sessions are open in a server."""
        return int(metric(f"127.0.0.1:{self.ports[number]}", "xlsr_sessions"))

    def wait_until_not_ready(self, number: int) -> None:
        """Waits until a server takes no new sessions."""
        with contextlib.suppress(urllib.error.HTTPError):
            while True:
                urllib.request.urlopen(f"http://127.0.0.1:{self.ports[number]}/ready").close()

    def wait_until_down(self, name: str) -> None:
        """Waits until HAProxy knows that a server takes no new sessions."""
        assert any(f"{name} is DOWN" in line for line in self.haproxy.stderr)


@contextlib.asynccontextmanager
async def fleet(checkpoint: Path, folder: Path) -> AsyncIterator[Fleet]:
    processes = servers = [start_server(checkpoint) for _ in range(2)]
    try:
        ports = [port_of(server) for server in servers]
        port = free_port()
        (folder / "haproxy.cfg").write_text(configured(port, ports))
        command = [HAPROXY, "-db", "-f", str(folder / "haproxy.cfg")]
        haproxy = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        processes = [haproxy, *servers]
        while not await is_open(port):
            assert haproxy.poll() is None, haproxy.stderr.read()
        yield Fleet(servers, ports, haproxy, port)
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def is_open(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


class Caller:
    """A client that sends its audio in two parts, and starts again if its server is gone."""

    def __init__(self, port: int, wave: torch.Tensor):
        self.url = f"ws://127.0.0.1:{port}/"
        self.data = wave.numpy().astype("<f4").tobytes()
        self.lost = 0
        self.websocket: ClientConnection | None = None

    async def begin(self) -> None:
        self.websocket = await connect(self.url)
        await self.websocket.send(self.data[: len(self.data) // 2])

    async def end(self) -> list[tuple]:
        """Returns text, tokens and times of the segments."""
        try:
            await self.websocket.send(self.data[len(self.data) // 2 :])
            await self.websocket.send("Done")
            found = [json.loads(message) async for message in self.websocket]
        except ConnectionClosedError:
            self.lost += 1
            await self.begin()
            return await self.end()
        assert found[-1]["final"] and self.websocket.close_code == 1000
        found = [m for m in found if m["is_final"] and m["tokens"]]
        return [(m["text"], m["tokens"], m["timestamps"]) for m in found]


@pytest.fixture(scope="module")
def audio(checkpoint: Path) -> list[torch.Tensor]:
    return waves(load_model(CheckpointOptions(checkpoint=checkpoint)).model, 4)


@pytest.fixture(scope="module")
def wanted(checkpoint: Path, audio: list[torch.Tensor]) -> list[list[tuple]]:
    model = load_live(checkpoint, "--enable-endpoint", "1")
    return [texts_of(expected(model, wave)) for wave in audio] * (NUM_SESSIONS // len(audio))


async def call(running: Fleet, audio: list[torch.Tensor]) -> list[Caller]:
    """Opens all sessions; returns once half of their audio is sent."""
    callers = [Caller(running.port, audio[i % len(audio)]) for i in range(NUM_SESSIONS)]
    await asyncio.gather(*(caller.begin() for caller in callers))
    assert [running.sessions(n) for n in (0, 1)] == [NUM_SESSIONS // 2] * 2
    return callers


def test_a_server_that_drains_loses_no_session_and_gets_no_new_one(
    checkpoint: Path, tmp_path: Path, audio: list[torch.Tensor], wanted: list[list[tuple]]
) -> None:
    async def drain_one() -> None:
        async with fleet(checkpoint, tmp_path) as running, asyncio.timeout(TIMEOUT):
            callers = await call(running, audio)
            running.servers[0].send_signal(signal.SIGTERM)
            await asyncio.to_thread(running.wait_until_not_ready, 0)
            # At once, when HAProxy does not know yet: a server that refuses is passed over.
            later = [Caller(running.port, wave) for wave in audio]
            await asyncio.gather(*(caller.begin() for caller in later))
            await asyncio.to_thread(running.wait_until_down, "recognisers/one")
            found = await asyncio.gather(*(caller.end() for caller in callers + later))
            assert await asyncio.to_thread(running.servers[0].wait) == 0
        assert found == wanted + wanted[: len(later)]
        assert not any(caller.lost for caller in callers + later)

    asyncio.run(drain_one())


@pytest.mark.long
def test_callers_of_a_killed_server_are_told_and_go_on_elsewhere(
    checkpoint: Path, tmp_path: Path, audio: list[torch.Tensor], wanted: list[list[tuple]]
) -> None:
    async def kill_one() -> None:
        async with fleet(checkpoint, tmp_path) as running, asyncio.timeout(TIMEOUT):
            callers = await call(running, audio)
            running.servers[1].kill()
            found = await asyncio.gather(*(caller.end() for caller in callers))
        assert found == wanted
        assert [caller.lost for caller in callers].count(1) == NUM_SESSIONS // 2
        assert max(caller.lost for caller in callers) == 1

    asyncio.run(kill_one())
