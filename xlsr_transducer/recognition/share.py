"""How many of some things are right, with an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z_95 = 1.959964


@dataclass(frozen=True)
class Accuracy:
    """How many of some utterances got the right label."""

    correct: int
    total: int

    @property
    def percent(self) -> float:
        """Correct ones of 100; not a number without any utterance."""
        return 100.0 * self.correct / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of ``percent`` (E. B. Wilson, 1927), which holds near 100 too."""
        if not self.total:
            return 0.0, 100.0
        n, p, z2 = self.total, self.correct / self.total, Z_95**2
        centre, width = p + z2 / (2 * n), Z_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
        low, high = (100 * (centre + sign * width) / (1 + z2 / n) for sign in (-1, 1))
        return max(low, 0.0), min(high, 100.0)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.percent:.2f} [{low:.2f}, {high:.2f}]" if self.total else "-"
