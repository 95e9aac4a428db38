"""``--world-size N``: starts N processes of a command on this machine and looks after them.

They find each other through a store of the parent's, as they do under torchrun. Unlike torchrun,
it hands SIGTERM and Ctrl-C on and waits until the processes have saved.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import torch.distributed as dist

from xlsr_transducer.training.interrupt import Interrupt

GRACE = 10.0  # seconds that the others have to end after one failed


def launch(module: str, argv: Sequence[str], world_size: int) -> int:
    """Runs ``python -m module argv`` ``world_size`` times.

    Returns:
      0 if all end well, else the exit status of the first that does not: 130 or 143 where they
      saved after Ctrl-C or SIGTERM.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes: list[subprocess.Popen] = []
    with HandedOn(processes) as interrupt:
        try:
            for rank in range(world_size):
                processes.append(_start(module, argv, rank, world_size, store.port))
            return _wait(processes, interrupt)
        finally:
            _kill(processes)


class HandedOn(Interrupt):
    """Hands a first signal on to the processes; a second one kills them and ends this one."""

    def __init__(self, processes: list[subprocess.Popen]):
        super().__init__()
        self.processes = processes

    def begin(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(self.signum)

    def end(self, signum: int) -> None:
        _kill(self.processes)
        print(f"{signal.Signals(signum).name} again: ended without saving", file=sys.stderr)
        os._exit(128 + signum)


def _start(
    module: str, argv: Sequence[str], rank: int, world_size: int, port: int
) -> subprocess.Popen:
    threads = max((os.cpu_count() or 1) // world_size, 1)
    environment = {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        # The store is the parent's, so no process opens one.
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    # In a session of its own, so that Ctrl-C reaches it once, through the parent.
    return subprocess.Popen(
        [sys.executable, "-m", module, *argv], env=environment, start_new_session=True
    )


def _kill(processes: list[subprocess.Popen]) -> None:
    """Kills what is left of them, with the processes that read their data."""
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _wait(processes: list[subprocess.Popen], interrupt: Interrupt) -> int:
    """Until all have ended; a while after one has failed, the others are killed."""
    failed_at, status, are_left = 0.0, 0, True
    while are_left:
        time.sleep(0.1)
        are_left = any(process.poll() is None for process in processes)
        failed = [(i, p.returncode) for i, p in enumerate(processes) if p.poll()]
        if failed and not status:
            rank, code = failed[0]
            failed_at, status = time.monotonic(), code if code > 0 else 128 - code
            how = f"exit status {code}" if code > 0 else signal.Signals(-code).name
            if status != interrupt.status:
                logging.error(f"process {rank} ended first, with {how}")
        if status and time.monotonic() - failed_at > GRACE:
            _kill(processes)
    return status
