"""The engine without a server, at the pace of real time: a part of ``benchmarks.serve``.

Chunks of the streams become due at random moments, evenly spread; a step takes all that are due,
as the server's scheduler does. So a step holds the chunks that came while the one before it ran.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from xlsr_transducer.core.geometry import OVERLAP, SAMPLING_RATE
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.recognition.endpoint import EndpointOptions
from xlsr_transducer.recognition.engine import StreamingEngine
from xlsr_transducer.search import SearchOptions, make_search


@dataclass
class Steps:
    """What was measured."""

    seconds: list[float] = field(default_factory=list)  # of each step
    latency: list[float] = field(default_factory=list)  # of each chunk, from when it was due
    sizes: list[int] = field(default_factory=list)  # of the batches
    tokens: int = 0  # of all streams, from the first chunk on
    chunks: int = 0  # likewise


def engine_of(network: SpeechModel, num_slots: int) -> StreamingEngine:
    """Returns an engine with greedy search and endpoints, as the server has them."""
    search = make_search(SearchOptions(), network)
    return StreamingEngine(network.encoder, search, EndpointOptions(True).rules(), num_slots)


def wait(engine: StreamingEngine) -> None:
    """Until the device has done what it was given."""
    if engine.device.type == "cuda":
        torch.cuda.synchronize()


class RealTime:
    """Streams of an engine that are fed as if their audio came now."""

    def __init__(self, network: SpeechModel, num_streams: int, audio: Tensor, seed: int = 0):
        self.engine = engine_of(network, num_streams)
        self.chunk = self.engine.chunk_samples
        self.period = self.chunk / SAMPLING_RATE
        self.length = len(audio)
        self.audio = torch.cat((audio, audio[: self.chunk]))  # so that no piece ends at its end
        generator = torch.Generator().manual_seed(seed)
        phases, _ = (self.period * torch.rand(num_streams, generator=generator)).sort()
        places = torch.randint(len(audio), (num_streams,), generator=generator).tolist()
        self.streams = [self.engine.open(str(n)) for n in range(num_streams)]
        for stream, place in zip(self.streams, places):
            stream.accept(self.piece(place, OVERLAP))
        self.places = places
        self.due = phases.tolist()  # seconds after the start, of each stream's next chunk

    def piece(self, start: int, size: int) -> Tensor:
        """Returns (size,) samples, from the start again after the end."""
        start %= self.length
        return self.audio[start : start + size]

    def run(self, warm: float, seconds: float) -> Steps:
        """Runs for so long; steps of the first ``warm`` seconds do not count."""
        steps, begin = Steps(), time.perf_counter()
        while (now := time.perf_counter() - begin) < warm + seconds:
            due = [n for n, at in enumerate(self.due) if at <= now]
            if not due:
                time.sleep(max(min(self.due) - now, 0))
                continue
            for n in due:
                self.streams[n].accept(self.piece(self.places[n], self.chunk))
                self.places[n] += self.chunk
            computed, _ = self.engine.step()
            self.engine.read(computed)
            wait(self.engine)
            end = time.perf_counter() - begin
            if now >= warm:
                steps.seconds.append(end - now)
                steps.sizes.append(len(computed))
                steps.latency += [end - self.due[n] for n in due]
            steps.chunks += len(computed)
            steps.tokens += sum(len(h.tokens) for s in computed for h in s.take_segments())
            for n in due:
                self.due[n] += self.period
        steps.tokens += sum(len(s.live.hypothesis().tokens) for s in self.streams)
        return steps
