"""Callers that speak in real time to a server with sherpa's websocket protocol; a process of
``benchmarks.serve``. Prints what they saw as one line of JSON.

Each caller makes one call after the other, of 5 to 15 s, so that the number of calls stays the
same while calls begin and end. All times count from when a sample was due in real time, not from
when it was sent: a server or client that falls behind shows as latency.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from websockets.asyncio.client import connect

from benchmarks.serve_models import noise
from xlsr_transducer.core.geometry import ENCODER_FRAME, OVERLAP, SAMPLING_RATE

CALL = (5.0, 15.0)  # seconds, from, to
NOISE = 60.0  # seconds of audio, from which all calls are cut


@dataclass
class Seen:
    """What the callers saw; each a list of pairs: when, and seconds."""

    finals: list[tuple[float, float]] = field(default_factory=list)  # last sample to last result
    partials: list[tuple[float, float]] = field(default_factory=list)  # a chunk's last sample ...
    late: list[tuple[float, float]] = field(default_factory=list)  # messages sent behind time
    tokens: int = 0
    seconds: float = 0.0  # of audio in the calls that ended
    errors: list[str] = field(default_factory=list)
    cores: float = 0.0  # processor time of this process over time


def ready_sample(timestamp: float, chunk_samples: int) -> int:
    """Returns how many samples must have arrived before a token of that time can be shown."""
    frame = round(timestamp / ENCODER_FRAME)
    frames = round(chunk_samples / SAMPLING_RATE / ENCODER_FRAME)
    return OVERLAP + (frame // frames + 1) * chunk_samples


class Caller:
    """One caller."""

    def __init__(self, options: argparse.Namespace, number: int, audio: np.ndarray, seen: Seen):
        self.options, self.audio, self.seen = options, audio, seen
        self.draw = random.Random(f"{options.seed} {number}")
        self.size = options.message_ms * SAMPLING_RATE // 1000

    async def run(self) -> None:
        """Calls until it is cancelled."""
        await asyncio.sleep(self.draw.uniform(0, self.options.ramp))
        while True:
            try:
                await self.call()
            except Exception as e:  # all that can go wrong is counted, and shown at the end
                self.seen.errors.append(f"{type(e).__name__}: {e}"[:200])
                await asyncio.sleep(1)

    async def call(self) -> None:
        length = int(self.draw.uniform(*CALL) * SAMPLING_RATE)
        start = self.draw.randrange(len(self.audio) - length)
        samples = self.audio[start : start + length]
        async with connect(self.options.url, max_size=None, compression=None) as websocket:
            begin = time.monotonic()
            receiving = asyncio.create_task(self.receive(websocket, begin, length))
            try:
                for position in range(0, length, self.size):
                    message = samples[position : position + self.size]
                    due = begin + (position + len(message)) / SAMPLING_RATE
                    await asyncio.sleep(due - time.monotonic())
                    await websocket.send(message.tobytes())
                    self.seen.late.append((due, time.monotonic() - due))
                await websocket.send("Done")
                tokens = await receiving
            finally:
                receiving.cancel()
                await asyncio.gather(receiving, return_exceptions=True)
            now = time.monotonic()
        self.seen.finals.append((now, now - due))
        self.seen.tokens += tokens
        self.seen.seconds += length / SAMPLING_RATE

    async def receive(self, websocket, begin: float, length: int) -> int:
        """Reads results until the server has sent its last one; returns the number of tokens."""
        by_segment: dict[int, int] = {}
        shown = -1.0  # time of the newest token so far
        async for message in websocket:
            if message == "Done!":  # sherpa-onnx's server says so
                break
            now, result = time.monotonic(), json.loads(message)
            by_segment[result["segment"]] = len(result["tokens"])
            if result["is_final"] or not result["timestamps"]:
                continue
            newest = result["start_time"] * self.options.from_segment + result["timestamps"][-1]
            if newest <= shown:  # nothing new; sherpa-onnx's server says so after every chunk
                continue
            shown, sample = newest, ready_sample(newest, self.options.chunk_samples)
            if sample <= length:  # otherwise it came of the last chunk, which is short
                in_message = -(-sample // self.size) * self.size
                due = begin + min(in_message, length) / SAMPLING_RATE
                self.seen.partials.append((now, now - due))
        return sum(by_segment.values())


async def call_all(options: argparse.Namespace) -> Seen:
    """Lets all callers speak, ``--warm`` and ``--seconds`` long; returns what counts."""
    audio, seen = noise(NOISE, options.seed).numpy().astype("<f4"), Seen()
    begin, busy = time.monotonic(), time.process_time()
    callers = [Caller(options, n, audio, seen) for n in range(options.callers)]
    tasks = [asyncio.create_task(caller.run()) for caller in callers]
    await asyncio.sleep(options.warm + options.seconds)
    seen.cores = (time.process_time() - busy) / (time.monotonic() - begin)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for name in ("finals", "partials", "late"):
        counted = [(t - begin - options.warm, s) for t, s in getattr(seen, name)]
        setattr(seen, name, [pair for pair in counted if pair[0] >= 0])
    return seen


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--callers", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warm", type=float, required=True, help="seconds that do not count")
    parser.add_argument("--ramp", type=float, required=True, help="seconds in which they begin")
    parser.add_argument("--message-ms", type=int, required=True)
    parser.add_argument("--chunk-samples", type=int, required=True)
    parser.add_argument(
        "--from-segment", type=int, required=True, help="1: times count from there"
    )
    parser.add_argument("--seed", type=int, required=True)
    print(json.dumps(asdict(asyncio.run(call_all(parser.parse_args(argv))))))


if __name__ == "__main__":
    main()
