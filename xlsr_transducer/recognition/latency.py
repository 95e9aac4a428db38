"""The latency of a live recogniser, from audio to token, with and without computing time.

Of each stream the first and the last token count. Delays are measured from the end of
the token's encoder frame (for the last token: from the end of the audio, as nothing
is final before) to the moment when the token is there. *Algorithmic*: the
chunk must arrive, computing takes no time. *Measured*: audio arrives in real time, and a
chunk is computed when it has arrived and the one before is done.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass
class StreamTimes:
    """When the results of a stream are there, in seconds from the start of its audio.

    Pairs of times: algorithmic, measured.
    """

    latest: tuple[float, float] = (0.0, 0.0)  # of the last step
    first: tuple[float, float] | None = None  # of the first step that gave a token

    def add(self, arrived: float, elapsed: float, has_tokens: bool) -> None:
        """Takes in a step.

        Args:
          arrived: seconds of the stream's audio that had to arrive for it.
          elapsed: seconds that the step took.
          has_tokens: whether the stream has a token after it.
        """
        self.latest = (arrived, max(self.latest[1], arrived) + elapsed)
        if has_tokens and self.first is None:
            self.first = self.latest


@dataclasses.dataclass
class LatencyReport:
    """Collects streams and prints a small table."""

    state_bytes: int
    frame: float  # seconds of a frame of the encoder's output
    num_steps: int = 0
    first: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    last: list[tuple[float, float]] = dataclasses.field(default_factory=list)

    def add(self, times: StreamTimes, frames: list[int], seconds: float) -> None:
        """Takes in a stream that has ended; one without tokens has no latency.

        Args:
          frames: of its tokens.
          seconds: of its audio.
        """
        if not frames or times.first is None:
            return
        emitted = (frames[0] + 1) * self.frame
        self.first.append((times.first[0] - emitted, times.first[1] - emitted))
        # The last chunk is known to be the last one when the audio ends.
        ends = [max(time, seconds) for time in times.latest]
        self.last.append((ends[0] - seconds, ends[1] - seconds))

    def format(self, name: str, elapsed: float, seconds: float) -> str:
        """Returns the report as text: ``elapsed`` seconds of work for ``seconds`` of audio."""
        rate = self.num_steps / max(elapsed, 1e-9)
        lines = [
            f"{name}: RTF {elapsed / max(seconds, 1e-9):.4f}, {rate:.1f} steps per second, "
            f"state {self.state_bytes / 1e6:.3f} MB per stream"
        ]
        for title, values in (("first", self.first), ("last", self.last)):
            if values:
                algorithmic, measured = np.array(values).T * 1000
                lines.append(
                    f"{name}: {title}-token latency in ms: algorithmic mean "
                    f"{algorithmic.mean():.0f}, measured mean {measured.mean():.0f}, "
                    f"p50 {np.percentile(measured, 50):.0f}, p95 {np.percentile(measured, 95):.0f}"
                )
        return "\n".join(lines)
