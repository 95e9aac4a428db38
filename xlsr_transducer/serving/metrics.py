"""What ``/metrics`` tells, for Prometheus.

| name | kind | what |
|---|---|---|
| ``xlsr_sessions`` | gauge | sessions that are open |
| ``xlsr_max_sessions`` | gauge | sessions that may be open (``--max-sessions``) |
| ``xlsr_sessions_ended_total{how}`` | counter | sessions that ended (see ``HOW``) |
| ``xlsr_sessions_refused_total{status}`` | counter | sessions refused at once, by HTTP status |
| ``xlsr_backlog_seconds`` | gauge | audio that has come and is not computed, of all sessions |
| ``xlsr_audio_seconds_total`` | counter | audio that was computed |
| ``xlsr_computing_seconds_total`` | counter | time that this took |
| ``xlsr_real_time_factor`` | gauge | the latter over the former, since the start |
| ``xlsr_step_seconds`` | histogram | time of a step, which computes one batch |
| ``xlsr_batch_size`` | histogram | streams in a step |
| ``xlsr_latency_seconds`` | histogram | from a chunk's last sample, when it came, to its result |
| ``process_...`` | | memory, CPU time, open files, start of the process |
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from xlsr_transducer.serving.scheduler import StepReport
from xlsr_transducer.serving.session import Sessions

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.64, 1.0, 2.0, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)

# How sessions end: "left" is the caller's, "cut" the server's doing at its own end.
HOW = ("finished", "left", "cut", "bad data", "idle", "failed")


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        common = {"registry": self.registry}
        self.sessions = Gauge("xlsr_sessions", "sessions that are open", **common)
        self.max_sessions = Gauge("xlsr_max_sessions", "sessions that may be open", **common)
        self.backlog = Gauge(
            "xlsr_backlog_seconds", "audio that has arrived and is not computed", **common
        )
        self.refused = Counter(
            "xlsr_sessions_refused", "sessions that were refused", ["status"], **common
        )
        self.ended = Counter("xlsr_sessions_ended", "sessions that ended", ["how"], **common)
        for how in HOW:
            self.ended.labels(how)  # so that all of them are shown from the start
        self.audio = Counter("xlsr_audio_seconds", "audio that was computed", **common)
        self.computing = Counter("xlsr_computing_seconds", "time that steps took", **common)
        self.step = Histogram("xlsr_step_seconds", "time of a step", buckets=SECONDS, **common)
        self.latency = Histogram(
            "xlsr_latency_seconds",
            "from a chunk's last sample to its result",
            buckets=SECONDS,
            **common,
        )
        self.batch = Histogram("xlsr_batch_size", "streams in a step", buckets=SIZES, **common)
        self.real_time_factor = Gauge(
            "xlsr_real_time_factor", "computing time over audio time, since the start", **common
        )
        self._audio = self._computing = 0.0
        ProcessCollector(**common)

    def watch(self, sessions: Sessions) -> None:
        """Reads the gauges from ``sessions`` whenever they are asked for, and counts ends."""
        self.sessions.set_function(lambda: len(sessions))
        self.backlog.set_function(lambda: sessions.backlog)
        self.max_sessions.set(sessions.max_sessions)
        sessions.on_end = lambda how: self.ended.labels(how).inc()

    def observe(self, report: StepReport) -> None:
        """Takes in a step; called in the scheduler's thread."""
        self.step.observe(report.elapsed)
        self.batch.observe(report.size)
        for seconds in report.waited:
            self.latency.observe(seconds)
        self.audio.inc(report.audio)
        self.computing.inc(report.elapsed)
        self._audio += report.audio
        self._computing += report.elapsed
        self.real_time_factor.set(self._computing / max(self._audio, 1e-9))

    def page(self) -> bytes:
        """Returns the text that Prometheus reads."""
        return generate_latest(self.registry)
