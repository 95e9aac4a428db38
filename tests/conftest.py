"""Settings of the whole suite."""

from __future__ import annotations

import os

# Before torch is imported, and for the programs that tests start: on a shared machine threads
# that wait for each other make small computations many times slower, and one thread adds up
# in the same order every time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.support.tiny_recipe import corpus, streaming_exp  # noqa: E402, F401  fixtures, after the setting above
