"""SIGTERM and Ctrl-C: the training ends behind the step it is in, and saves."""

from __future__ import annotations

import logging
import signal
from types import TracebackType


class Interrupt:
    """Inside ``with``, SIGTERM and SIGINT are noted instead of ending the program."""

    def __init__(self) -> None:
        self.requested = False

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
            name = signal.Signals(signum).name
            logging.warning(f"{name}: the training saves behind this step and ends")
        self.requested = True
