"""What a step of one stream costs with each setting: time, and memory between steps."""

from __future__ import annotations

import dataclasses
import statistics
import time

import torch

from xlsr_transducer.core.geometry import FRAME_SHIFT, HOP, OVERLAP
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.model.state import state_bytes
from xlsr_transducer.search import Search

STEPS = 8  # measured
MOST_WARM = 12  # steps before, in which the left context fills up


@dataclasses.dataclass(frozen=True)
class StepCost:
    """A step of one stream, from samples to tokens."""

    seconds: float  # median
    share: float  # of the time in which its chunk arrives: below 1 keeps up
    state_bytes: int  # that a stream keeps between two steps


@torch.no_grad()
def measure_step(model: SpeechModel, search: Search, chunk: ChunkSettings) -> StepCost:
    """Measures steps on noise, on the device where the model recognises.

    Args:
      model: with a ``StreamingXLSREncoder`` that takes the waveform.
    """
    encoder = model.encoder
    device = encoder.like.device
    encoder.set_chunk(chunk)
    state, found = encoder.get_init_states(1, device), search.init_state(1, device)
    generator = torch.Generator().manual_seed(0)
    noise = 0.05 * torch.randn(1, chunk.chunk_size * HOP, generator=generator)
    noise, lens = noise.to(device), torch.tensor([noise.shape[1]], device=device)
    state.xlsr.tail.copy_(noise[:, :OVERLAP])
    warm = min(max(chunk.left_context_chunks, 0) + 2, MOST_WARM)
    times = []
    for _ in range(warm + STEPS):
        start = time.perf_counter()
        out, out_lens, state = encoder.streaming_forward(noise, lens, state)
        found = search.advance(out, out_lens, found)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[warm:])
    return StepCost(seconds, seconds / (chunk.chunk_size * FRAME_SHIFT), state_bytes(state))
