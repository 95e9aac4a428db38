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

GRACE = 10.0  # seconds that the others have to end after one failed


def launch(module: str, argv: Sequence[str], world_size: int) -> int:
    """Runs ``python -m module argv`` ``world_size`` times.

    Returns:
      0 if all end well, else the exit status of the first that does not.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = []
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        for signum in handlers:
            signal.signal(signum, lambda number, frame: _send(processes, number))
        for rank in range(world_size):
            processes.append(_start(module, argv, rank, world_size, store.port))
        return _wait(processes)
    finally:
        _send(processes, signal.SIGKILL)
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


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


def _send(processes: list[subprocess.Popen], signum: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signum)


def _wait(processes: list[subprocess.Popen]) -> int:
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
            logging.error(f"process {rank} ended first, with {how}")
        if status and time.monotonic() - failed_at > GRACE:
            _send(processes, signal.SIGKILL)
    return status
