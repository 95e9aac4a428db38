"""Progress of an extraction: a bar on a terminal, otherwise a line in the log now and then."""

from __future__ import annotations

import logging
import sys
import time

from tqdm import tqdm

LOG_EVERY = 60.0  # seconds


class Progress:
    """Counts seconds of audio; speed is in hours of audio per second."""

    def __init__(self, name: str, total: float):
        self.name = name
        self.total = total
        self.done = 0.0
        self.start = self._last_log = time.monotonic()
        self._bar = tqdm(
            total=round(total / 3600, 4),
            desc=name,
            disable=not sys.stderr.isatty(),
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n:.2f}/{total:.2f} h of audio "
            "[{elapsed}<{remaining}{postfix}]",
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    def set(self, done: float) -> None:
        """``done`` seconds of audio are ready."""
        self._bar.set_postfix_str(f"{self.speed():.4f} h/s", refresh=False)
        self._bar.update((done - self.done) / 3600)
        self.done = done
        if time.monotonic() - self._last_log > LOG_EVERY:
            self._last_log = time.monotonic()
            self._log()

    def add(self, seconds: float) -> None:
        """``seconds`` more are ready."""
        self.set(self.done + seconds)

    def speed(self) -> float:
        """Hours of audio per second, since the start."""
        return self.done / 3600 / max(time.monotonic() - self.start, 1e-6)

    def _log(self) -> None:
        left = (self.total - self.done) / 3600 / max(self.speed(), 1e-9)
        logging.info(
            "%s: %.2f of %.2f hours of audio, %.5f hours/s (%.1f x real time), %s left",
            self.name,
            self.done / 3600,
            self.total / 3600,
            self.speed(),
            self.speed() * 3600,
            tqdm.format_interval(left),
        )
