"""Settings of the whole suite."""

from __future__ import annotations

import os
import signal

# Before torch is imported, and for the programs that tests start: on a shared machine threads
# that wait for each other make small computations many times slower, and one thread adds up
# in the same order every time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell's background jobs ignore SIGINT, and so would all programs that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

from tests.support.tiny_recipe import corpus, streaming_exp  # noqa: E402, F401  fixtures, after the setting above
