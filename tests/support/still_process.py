"""Two processes that are to add up a number; the second one stops before (SIGSTOP)."""

from __future__ import annotations

import os
import signal

from xlsr_transducer.training import watchdog
from xlsr_transducer.training.distributed import joined

if __name__ == "__main__":
    watchdog.PATIENCE = 3.0
    with joined() as process:
        if process.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        process.sum([1.0])
