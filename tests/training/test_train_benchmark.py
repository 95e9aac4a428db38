"""The benchmark of training runs at small size, where its figures mean nothing."""

from __future__ import annotations

import pytest

from benchmarks import train as benchmark
from tests.support.tiny_recipe import SMALL

pytest.importorskip("torch.utils.flop_counter", reason="this PyTorch counts no FLOPs")


@pytest.mark.long
def test_a_training_is_measured_and_the_shares_of_the_time_add_up(capsys) -> None:
    small = ["--minutes", "0.5", "--vocab-size", "60", "--matrix-size", "64"]
    benchmark.main([*small, "--cuts", "waveform", "--", *SMALL])
    lines = capsys.readouterr().out.splitlines()
    head, *rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    (row,) = rows
    cells = dict(zip(head, row))
    shares = [float(cells[f"{part} %"]) for part in benchmark.PARTS]
    assert row[:2] == ["waveform", "20"] and int(cells["steps"]) > 0
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert float(cells["forward %"]) > 10 and float(cells["backward %"]) > 10
    assert float(cells["outside %"]) == pytest.approx(shares[3] + shares[4], abs=0.15)
    assert float(cells["hours of audio per hour"]) > 0
