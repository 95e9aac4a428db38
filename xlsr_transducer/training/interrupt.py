"""SIGTERM and Ctrl-C: the first asks the training to save and end, a second ends it at once."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from types import TracebackType

# Seconds: batch systems may send SIGTERM to a process and to its parent, which hands it on.
TWICE = 1.0


class Interrupt:
    """Inside ``with``, a first SIGTERM or SIGINT is noted instead of ending the program."""

    def __init__(self) -> None:
        self.signum = 0  # of the first signal
        self._since = 0.0

    @property
    def requested(self) -> bool:
        """Whether there was a signal."""
        return self.signum > 0

    @property
    def status(self) -> int:
        """The exit status of a program that such a signal ends, as a shell has it; 0 without."""
        return 128 + self.signum if self.signum else 0

    def __enter__(self) -> Interrupt:
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: object) -> None:
        if not self.requested:
            self.signum, self._since = signum, time.monotonic()
            self.begin()
        elif signum == signal.SIGINT or time.monotonic() - self._since > TWICE:
            self.end(signum)

    def begin(self) -> None:
        """Acts on a first signal."""
        name = signal.Signals(self.signum).name
        logging.warning(
            f"{name}: the training saves after this step and ends; a second one ends it at once"
        )

    def end(self, signum: int) -> None:
        """Acts on a second signal: waits for nothing, as it may be stuck."""
        logging.error(f"{signal.Signals(signum).name} again: ended without saving")
        for child in multiprocessing.active_children():  # the processes that read data
            child.kill()
        os._exit(128 + signum)
