"""What is chosen among settings: the Pareto front, and the best within a latency."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np

from xlsr_transducer.evaluation.rows import Row, best_within, pareto, transcripts
from xlsr_transducer.evaluation.steps import StepCost
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.recognition.scoring import ErrorRate, Score, Transcript


def row(size: int, left: int, wer: float, seconds: float = 0.01) -> Row:
    rate = ErrorRate(1, 1, 1, 100, wer, wer - 1, wer + 1)
    total = Score("all", "x", 10, rate, rate)
    cost = None if size < 0 else StepCost(seconds, 0.1, 1000)
    chunk = ChunkSettings(size, left if size > 0 else -1)
    return Row("exp", chunk, {}, total, np.zeros(0), cost, 0, 0)


def test_no_setting_beats_one_of_the_front_and_every_other_is_beaten() -> None:
    draw = random.Random(0)
    for _ in range(200):
        sizes = draw.choices((-1, 16, 32, 64), k=7)
        rows = [row(s, draw.randint(0, 3), draw.randint(1, 6), draw.random()) for s in sizes]

        def beats(a: Row, b: Row) -> bool:
            better = a.latency < b.latency or a.total.wer.percent < b.total.wer.percent
            return a.latency <= b.latency and a.total.wer.percent <= b.total.wer.percent and better

        front = pareto(rows)
        points = {(r.latency, r.total.wer.percent) for r in front}
        assert len(points) == len(front)
        for one in rows:
            is_best = not any(beats(other, one) for other in rows)
            assert is_best == ((one.latency, one.total.wer.percent) in points)


def test_the_best_within_a_latency_is_the_fastest_and_cheapest_of_the_least_wer() -> None:
    rows = [row(16, 1, 5.0), row(32, 2, 3.0, 0.04), row(32, 1, 3.0, 0.02), row(64, 1, 3.0),
            row(-1, -1, 1.0)]  # fmt: skip
    assert best_within(rows, 0.3) is None
    assert best_within(rows, 0.4) is rows[0]
    assert best_within(rows, 2.0) is rows[2]
    assert best_within(rows, float("inf")) is rows[4]


def test_both_sides_are_normalised_before_they_are_scored() -> None:
    found = [Transcript("a", ["Tere", "ja"], ["tere,", "JA"]), Transcript("b", ["-"], [])]
    results = SimpleNamespace(transcripts=lambda tokenizer: found)
    experiment = SimpleNamespace(loaded=SimpleNamespace(tokenizer=None))
    normalized = transcripts(
        results, experiment, lambda text: text.lower().strip("-").replace(",", "")
    )
    assert normalized == [Transcript("a", ["tere", "ja"], ["tere", "ja"]), Transcript("b", [], [])]
