"""The account of latencies, on steps whose times are known."""

from __future__ import annotations

import pytest
import torch

from xlsr_transducer.recognition.latency import LatencyReport
from xlsr_transducer.recognition.streaming import Step, Stream
from xlsr_transducer.search import Hypothesis


def test_latencies_count_from_the_token_and_from_the_end_of_the_audio() -> None:
    stream = Stream("a", chunk_samples=32 * 320, hop=320, overlap=80)
    stream.accept(torch.zeros(int(1.5 * 16000)))
    stream.result = Hypothesis(tokens=[5, 6], frames=[9, 30])
    # Chunks are there at 0.645 and 1.285 s; the first takes longer than the second lasts.
    stream.steps = [Step(0.645, 0.7, 1), Step(1.285, 0.1, 1), Step(1.5, 0.05, 2)]
    report = LatencyReport(state_bytes=1)
    report.add(stream)
    assert report.first == [pytest.approx((0.645 - 0.4, 0.645 + 0.7 - 0.4))]
    assert report.last == [pytest.approx((0.0, 0.05))]


def test_a_backlog_delays_what_comes_after_it() -> None:
    stream = Stream("a", chunk_samples=32 * 320, hop=320, overlap=80)
    stream.accept(torch.zeros(16000))
    stream.result = Hypothesis(tokens=[5], frames=[0])
    stream.steps = [Step(0.645, 2.0, 1), Step(1.0, 0.5, 1)]
    report = LatencyReport(state_bytes=1)
    report.add(stream)
    assert report.last == [pytest.approx((0.0, 0.645 + 2.0 + 0.5 - 1.0))]


def test_a_stream_without_tokens_has_no_latency() -> None:
    report = LatencyReport(state_bytes=1)
    report.add(Stream("a", 320, 320, 80))
    assert report.first == report.last == []
