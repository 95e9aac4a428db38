"""The load benchmark counts what it says: waits from when samples were due, and what holds."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

import pytest

from benchmarks import serve_callers
from benchmarks.serve import Outcome, largest
from benchmarks.serve_callers import call_all, ready_sample
from tests.support.live_server import load_live, serving

CHUNK = 0.64  # seconds
SECONDS = 30.0


def outcome(waits: list[tuple[float, float]], errors: tuple[str, ...] = ()) -> Outcome:
    return Outcome(4, waits, waits, [], 4.0, list(errors), 0.5, 0.1)


def test_a_number_of_callers_holds_if_waits_are_short_and_do_not_grow() -> None:
    times = [0.1 * n for n in range(300)]
    assert outcome([(t, 0.2) for t in times]).holds(CHUNK, SECONDS)
    assert not outcome([(t, 0.7) for t in times]).holds(CHUNK, SECONDS)
    assert not outcome([(t, 0.02 * t) for t in times]).holds(CHUNK, SECONDS)
    assert not outcome([(t, 0.2) for t in times], ("it broke",)).holds(CHUNK, SECONDS)
    assert not outcome([]).holds(CHUNK, SECONDS)


@pytest.mark.parametrize("limit", [0, 1, 5, 64, 100, 333])
def test_the_largest_number_is_found_to_a_tenth(limit: int) -> None:
    found = largest(lambda callers: callers <= limit, 8)
    assert found <= limit <= 1.1 * found


def test_a_token_can_be_shown_once_the_last_sample_of_its_chunk_is_there() -> None:
    assert ready_sample(0.0, 10240) == 80 + 10240
    assert ready_sample(0.6, 10240) == 80 + 10240  # its last frame of 40 ms
    assert ready_sample(0.64, 10240) == 80 + 2 * 10240


def test_callers_see_the_results_of_calls_one_after_the_other(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_callers, "CALL", (0.5, 0.8))
    with serving(load_live(checkpoint)) as address:
        options = argparse.Namespace(
            url=f"ws://{address}/",
            callers=2,
            seconds=4.0,
            warm=0.0,
            ramp=0.1,
            message_ms=100,
            chunk_samples=5120,
            from_segment=0,
            seed=0,
        )
        seen = asyncio.run(call_all(options))
    assert seen.errors == []
    assert seen.finals and seen.tokens > 0 and seen.seconds > 0.5
    assert seen.partials and all(wait > 0 for _, wait in seen.finals + seen.partials)
