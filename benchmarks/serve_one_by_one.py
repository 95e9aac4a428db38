"""``serve``, but every step takes one stream: what a server without batches would do.

A contender of ``benchmarks.serve``.
"""

from __future__ import annotations

from xlsr_transducer import serve
from xlsr_transducer.core.errors import run_command
from xlsr_transducer.recognition import live
from xlsr_transducer.recognition.engine import Stream, StreamingEngine


class OneByOne(StreamingEngine):
    """An engine whose steps take the stream that has waited longest."""

    def ready(self) -> list[Stream]:
        """Returns the one stream of which the next step computes a chunk."""
        return sorted(super().ready(), key=lambda s: -s.buffer.num_waiting)[:1]


if __name__ == "__main__":
    live.StreamingEngine = OneByOne
    run_command(serve.main)
