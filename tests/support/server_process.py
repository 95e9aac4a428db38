"""The server as a program of its own, for tests of its memory, its signals and its end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.support.live_client import SECONDS, metric

ROOT = Path(__file__).resolve().parents[2]


class ServerProcess:
    """``python -m xlsr_transducer.serve``."""

    def __init__(self, checkpoint: Path, log: Path, *options: str):
        command = [sys.executable, "-m", "xlsr_transducer.serve", "--checkpoint", str(checkpoint)]
        command += ["--port", "0", "--cpu-layers", "pytorch", *options]
        self.log = log
        with open(log, "w") as f:
            self.process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=f, text=True, env=os.environ
            )
        line = self.process.stdout.readline()  # "open http://localhost:12345 in a browser"
        assert line.startswith("open http"), log.read_text()
        self.address = line.split()[1].split("//")[1]

    def get(self, path: str) -> tuple[int, str]:
        """Returns status and body."""
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=SECONDS) as r:
                return r.status, r.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def metric(self, name: str) -> float:
        """Returns a value of ``/metrics``, by its name with labels."""
        return metric(self.address, name)

    def end(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def status(self) -> int:
        """Waits for its end; returns the exit status."""
        return self.process.wait(timeout=SECONDS)


@contextlib.contextmanager
def server_process(checkpoint: Path, log: Path, *options: str) -> Iterator[ServerProcess]:
    """A server, which is gone after the block."""
    server = ServerProcess(checkpoint, log, *options)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()
        server.process.stdout.close()
