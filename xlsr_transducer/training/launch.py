"""``--world-size N``: starts N processes of a command on this machine and looks after them.

The processes are those of torchrun, in its environment variables and with its error files. Its
agent is not used: it gives processes a fixed time to save after SIGTERM or Ctrl-C. Here the first
signal is handed on and waited for, and a second one kills.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.training.interrupt import Interrupt

POLL = 0.1  # seconds between looks at the processes


def launch(module: str, argv: Sequence[str], world_size: int) -> int:
    """Runs ``python -m module argv`` ``world_size`` times.

    When one fails, the others get SIGTERM, and half a minute later SIGKILL.

    Returns:
      0 if all end well, else the exit status of the first that does not: 130 or 143 where they
      saved after Ctrl-C or SIGTERM.

    Raises:
      UserError: this PyTorch is too old.
    """
    if torch.__version__.startswith("1."):
        raise UserError(f"--world-size {world_size} needs PyTorch 2, not {torch.__version__}")
    from torch.distributed import elastic
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes

    # SIGINT and SIGTERM are ``HandedOn``'s, and processes report their errors themselves.
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"
    logging.getLogger(elastic.__name__).setLevel(logging.CRITICAL)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = range(world_size)
    with tempfile.TemporaryDirectory() as folder, HandedOn() as interrupt:
        interrupt.processes = start_processes(
            "train",
            sys.executable,
            args={rank: ("-m", module, *argv) for rank in ranks},
            envs={rank: torchrun_environment(rank, world_size, store.port) for rank in ranks},
            logs_specs=DefaultLogsSpecs(folder),
        )
        if interrupt.requested:
            interrupt.begin()
        try:
            failures = interrupt.processes.wait(period=POLL).failures
        finally:
            interrupt.processes.close(signal.SIGKILL)
    if not failures:
        return 0
    rank, failure = next(iter(failures.items()))  # the first that was seen
    code = failure.exitcode
    status = code if code > 0 else 128 - code
    if code < 0 and status != interrupt.status:
        print(f"process {rank} was ended by {signal.Signals(-code).name}", file=sys.stderr)
    return status


class HandedOn(Interrupt):
    """Hands a first signal on to the processes; a second one kills them and ends this one."""

    processes: Any = None  # the PContext of all of them

    def begin(self) -> None:
        for pid in self.processes.pids().values() if self.processes else ():
            os.kill(pid, self.signum)

    def end(self, signum: int) -> None:
        self.processes.close(signal.SIGKILL)
        print(f"{signal.Signals(signum).name} again: ended without saving", file=sys.stderr)
        os._exit(128 + signum)


def torchrun_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """Returns the environment variables that torchrun sets for a process."""
    threads = max((os.cpu_count() or 1) // world_size, 1)
    return {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # this process has the store
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
