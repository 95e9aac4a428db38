"""Ends a process when another one of its training has failed or vanished.

A process that waits for a dead one in a collective operation waits long: for NCCL's timeout, or
for ever. So a thread of each process beats once a second in the key-value store through which
the processes found each other, and looks whether anyone reported a failure there and whether
the others still beat.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import torch.distributed as dist

from xlsr_transducer.core.errors import UserError

PERIOD = 1.0  # seconds between looks
PATIENCE = 30.0  # seconds without a beat after which a process counts as vanished
FAILURES, MESSAGE = "failures", "message"


class Watchdog:
    """Looks after the other processes from now until ``stop``."""

    def __init__(self, rank: int, world_size: int, token: int):
        """
        Args:
          token: the same number on all processes, and another for every training.
        """
        self.rank = rank
        # Unless the parent has the store, the main process has it.
        self.is_host = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        # The main process looks after all, the others after the main process.
        self.watched = list(range(1, world_size)) if rank == 0 else [0]
        # A connection of its own: one that waits for a key lets no other thread use it.
        server = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=datetime.timedelta(seconds=PATIENCE),
        )
        self.store = dist.PrefixStore(f"watchdog-{token}", server)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Looks no more; to be called when all processes have done their work."""
        self.stopped.set()
        self.thread.join()

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """Around the work: an exception ends this process and all others, with its message."""
        try:
            yield
        except BaseException as e:
            self.stop()
            is_plain = isinstance(e, (UserError, OSError))
            message = str(e) if is_plain else traceback.format_exc()
            status = 2 if is_plain else 1
            if isinstance(e, KeyboardInterrupt):
                message, status = "interrupted", 130
            _leave(self._report(message, status))

    def _report(self, message: str, status: int) -> int:
        """Says what went wrong here, unless it is a consequence of what went wrong elsewhere.

        Returns:
          the exit status of what went wrong first.
        """
        text = f"process {self.rank} failed: {message}"
        try:
            if self.store.add(FAILURES, 1) > 1:
                return self._repeat()
            self.store.set(MESSAGE, f"{status} {text}")
            logging.error(text)
            if self.is_host:
                time.sleep(3 * PERIOD)  # so that the others can read it
        except RuntimeError:  # the store is gone too
            logging.error(text)
        return status

    def _repeat(self) -> int:
        """Says what another process reported; returns its exit status."""
        status, _, text = self.store.get(MESSAGE).decode().partition(" ")
        logging.error(text)
        return int(status)

    def _watch(self) -> None:
        beats = dict.fromkeys(self.watched, -1)
        heard = dict.fromkeys(self.watched, time.monotonic())
        while not self.stopped.wait(PERIOD):
            try:
                if self.store.add(FAILURES, 0) > 0:
                    _leave(self._repeat())
                self.store.add(f"beat-{self.rank}", 1)
                for rank in self.watched:
                    count = self.store.add(f"beat-{rank}", 0)
                    if count != beats[rank]:
                        beats[rank], heard[rank] = count, time.monotonic()
            except RuntimeError as e:
                logging.error(f"the processes of this training cannot be reached any more: {e}")
                _leave(1)
            silent = [r for r, t in heard.items() if time.monotonic() - t > PATIENCE]
            if silent:
                message = f"process {silent[0]} was silent for {PATIENCE:.0f} seconds"
                _leave(self._report(message, status=1))


def _leave(status: int) -> None:
    """Ends the process although its main thread waits for something that will not come."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)
