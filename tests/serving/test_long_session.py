"""A session of hours costs at its end what it costs at its start."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from statistics import median

import pytest
import torch

from tests.support.live_client import connect
from tests.support.live_server import ENDPOINT, waves
from tests.support.server_process import ServerProcess, server_process
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model

RATE = 16000
PARTS = 24  # in which costs are measured


def reading(process: ServerProcess) -> tuple[float, float, float]:
    """Returns seconds of audio computed, seconds of CPU time, and bytes of memory."""
    names = ("xlsr_audio_seconds_total", "process_cpu_seconds_total")
    audio, cpu = (process.metric(name) for name in names)
    return audio, cpu, process.metric("process_resident_memory_bytes")


async def speak(process: ServerProcess, wave: torch.Tensor, seconds: int) -> list[tuple]:
    """Sends ``seconds`` of audio as fast as they are taken; returns readings between its parts."""
    readings = []

    async def read(websocket) -> float:
        end = 0.0
        async for message in websocket:
            end = max(end, *json.loads(message)["timestamps"], 0.0)
        return end

    # As fast as they are taken: pings wait behind audio, and are no sign of a dead server.
    async with connect(f"ws://{process.address}/", ping_timeout=None) as websocket:
        reads = asyncio.create_task(read(websocket))
        data = wave.numpy().astype("<f4").tobytes()
        for second in range(seconds):
            start = second * RATE * 4 % len(data)
            piece = data[start : start + RATE * 4]
            await websocket.send(piece + data[: RATE * 4 - len(piece)])
            if second % (seconds // PARTS) == 0:
                readings.append(await asyncio.to_thread(reading, process))
        await websocket.send("Done")
        assert seconds - 10 < await reads <= seconds
    assert websocket.close_code == 1000
    return [*readings, reading(process)]


@pytest.mark.parametrize("seconds", [240, pytest.param(3 * 3600, marks=pytest.mark.long)])
def test_a_second_of_audio_costs_the_same_at_the_end_of_a_long_session_and_memory_is_flat(
    checkpoint: Path, tmp_path: Path, seconds: int
) -> None:
    """Compared are the medians of CPU time, which does not depend on other programs."""
    wave = torch.cat(waves(load_model(CheckpointOptions(checkpoint=checkpoint)).model, 8))
    with server_process(checkpoint, tmp_path / "log.txt", *ENDPOINT) as process:
        found = asyncio.run(speak(process, wave, seconds))
        assert process.metric("xlsr_audio_seconds_total") == pytest.approx(seconds, abs=1)
    costs = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in zip(found, found[1:]) if b[0] > a[0]]
    third = len(costs) // 3
    first, last = median(costs[:third]), median(costs[-third:])
    memory = [m for _, _, m in found]
    quarter, end = memory[PARTS // 4] / 1e6, memory[-1] / 1e6
    print(f"{seconds} s: CPU time per second at first {first:.4f} s, at last {last:.4f} s")
    print(f"memory after a quarter {quarter:.1f} MB, at the end {end:.1f} MB")
    assert last < 1.7 * first
    assert end - quarter < 20
