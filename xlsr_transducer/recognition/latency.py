"""The latency of a live recogniser, from audio to token, with and without computing time.

Of each stream the first and the last token count. Delays are measured from the end of
the token's 40 ms encoder frame (for the last token: from the end of the audio, as nothing
is final before) to the moment when the token is there. *Algorithmic*: the
chunk must arrive, computing takes no time. *Measured*: audio arrives in real time, and a
chunk is computed when it has arrived and the one before is done.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from xlsr_transducer.core.geometry import ENCODER_FRAME
from xlsr_transducer.recognition.decoding import Results
from xlsr_transducer.recognition.streaming import Step, Stream


@dataclasses.dataclass
class LatencyReport:
    """Collects streams and prints a small table."""

    state_bytes: int
    num_steps: int = 0
    first: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    last: list[tuple[float, float]] = dataclasses.field(default_factory=list)

    def add(self, stream: Stream) -> None:
        """Takes in a stream that has ended; one without tokens has no latency."""
        frames = stream.result.frames
        if not frames:
            return
        shown = _times_shown(stream.steps)
        steps = stream.steps
        first = next(i for i, s in enumerate(steps) if s.num_tokens > 0)
        emitted = (frames[0] + 1) * ENCODER_FRAME
        self.first.append((steps[first].arrived - emitted, shown[first] - emitted))
        # The last chunk is known to be the last one when the audio ends.
        ends = [max(time, stream.seconds) for time in (steps[-1].arrived, shown[-1])]
        self.last.append((ends[0] - stream.seconds, ends[1] - stream.seconds))

    def format(self, name: str, results: Results) -> str:
        """Returns the report as text."""
        rate = self.num_steps / max(results.elapsed, 1e-9)
        lines = [
            f"{name}: RTF {results.rtf:.4f}, {rate:.1f} steps per second, "
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


def _times_shown(steps: list[Step]) -> list[float]:
    """Returns when the result of each step is there, in seconds from the start of the audio."""
    times, done = [], 0.0
    for step in steps:
        done = max(done, step.arrived) + step.elapsed
        times.append(done)
    return times
