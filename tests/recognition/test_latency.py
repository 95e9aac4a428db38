"""The account of latencies, on steps whose times are known."""

from __future__ import annotations

import pytest

from xlsr_transducer.recognition.latency import LatencyReport, StreamTimes


def test_latencies_count_from_the_token_and_from_the_end_of_the_audio() -> None:
    # Chunks are there at 0.645 and 1.285 s; the first takes longer than the second lasts.
    times = StreamTimes()
    for step in ((0.645, 0.7, True), (1.285, 0.1, True), (1.5, 0.05, True)):
        times.add(*step)
    report = LatencyReport(state_bytes=1, frame=0.04)
    report.add(times, [9, 30], 1.5)
    assert report.first == [pytest.approx((0.645 - 0.4, 0.645 + 0.7 - 0.4))]
    assert report.last == [pytest.approx((0.0, 0.05))]


def test_a_backlog_delays_what_comes_after_it() -> None:
    times = StreamTimes()
    times.add(0.645, 2.0, False)
    times.add(1.0, 0.5, True)
    report = LatencyReport(state_bytes=1, frame=0.04)
    report.add(times, [0], 1.0)
    assert report.first == [pytest.approx((1.0 - 0.04, 0.645 + 2.0 + 0.5 - 0.04))]
    assert report.last == [pytest.approx((0.0, 0.645 + 2.0 + 0.5 - 1.0))]


def test_a_stream_without_tokens_has_no_latency() -> None:
    report = LatencyReport(state_bytes=1, frame=0.04)
    report.add(StreamTimes(), [], 1.0)
    assert report.first == report.last == []
