"""Audio in memory in the place of a microphone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np


class LiveCapture:
    """Gives (n,) samples in pieces, as a ``Capture`` does."""

    def __init__(self, wave: np.ndarray, size: int, at_end: Callable[[], None] | None = None):
        """
        Args:
          at_end: called after the audio, which then goes on without samples until ``stop``.
        """
        self._wave, self._size, self._at_end = wave, size, at_end
        self._stopped = threading.Event()

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    def __enter__(self) -> LiveCapture:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self._wave), self._size):
            yield self._wave[start : start + self._size]
        if self._at_end:
            self._at_end()
            self._stopped.wait()

    def stop(self) -> None:
        self._stopped.set()
