"""Feeds streams to an encoder as a server does: pieces of any size, packed as they come."""

from __future__ import annotations

import math
from typing import List, Optional, Tuple

import torch
from torch import Tensor

from xlsr_transducer.data.stream_buffer import AudioBuffer
from xlsr_transducer.model.encoder import StreamingXLSREncoder
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.state import EncoderState, cat_states, select_states
from xlsr_transducer.model.xlsr_config import XlsrConfig

# Widths are multiples of 16, as XLSR's are: the vectors of a CPU then divide every row, and
# equality to the last bit can be asked for.
TINY = XlsrConfig(
    conv_dim=(16,) * 7,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=2,
)


def tiny_encoder(seed: int = 0, **kwargs) -> StreamingXLSREncoder:
    """A random encoder with outputs of rms about 1 (its last step is a layer norm)."""
    torch.manual_seed(seed)
    return StreamingXLSREncoder(TINY, EncoderOptions(encoder_dim=32), **kwargs).eval()


def speech(num_samples: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Noise whose level wanders, with a DC offset, so that normalisation has work to do."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_samples, generator=generator, dtype=torch.float64)
    time = torch.arange(num_samples) / 16000
    level = 0.05 + 0.04 * torch.sin(2 * math.pi * time / 1.7 + seed)
    return (level * noise + 0.01 * (1 + seed % 7)).to(dtype)


def padded(waves: List[Tensor], filler: float = 0.0) -> Tuple[Tensor, Tensor]:
    """(N, n) and lengths; ``filler`` lies beyond the lengths."""
    lens = torch.tensor([len(w) for w in waves])
    x = waves[0].new_full((len(waves), int(lens.max())), filler)
    for row, wave in zip(x, waves):
        row[: len(wave)] = wave
    return x, lens


class Stream:
    """One stream: audio that arrives in random pieces, and what the encoder gave."""

    def __init__(self, wave: Tensor, chunk_size: int, seed: int, whole: bool = False):
        self.buffer = AudioBuffer(chunk_size * 320)
        self.outputs: List[Tensor] = []
        self._rest = wave
        self._whole = whole
        self._generator = torch.Generator().manual_seed(seed)

    def listen(self) -> None:
        """The next piece: from 1 sample to 10 seconds."""
        if self.buffer.is_finished:
            return
        exponent = float(torch.rand(1, generator=self._generator))
        size = len(self._rest) if self._whole else int(160000**exponent)
        self.buffer.add(self._rest[:size])
        self._rest = self._rest[size:]
        if len(self._rest) == 0:
            self.buffer.finish()

    def result(self, width: int, dtype: torch.dtype) -> Tensor:
        return torch.cat([torch.zeros(0, width, dtype=dtype), *self.outputs])


@torch.inference_mode()
def serve(
    encoder: StreamingXLSREncoder, waves: List[Tensor], starts: List[int], whole: bool = False
) -> List[Tensor]:
    """Outputs of streams that begin at the ticks ``starts``, all packed in one batch.

    A row whose chunk is not there yet is idle in its step; a stream that is over leaves.
    What lies in a chunk beyond its samples is NaN, so that using it would be seen.
    """
    dtype = encoder.like.dtype
    streams = [Stream(w, encoder.chunk_size, i, whole) for i, w in enumerate(waves)]
    live: List[Stream] = []
    state: Optional[EncoderState] = None
    tick = 0
    while live or tick <= max(starts):
        joining = [s for s, start in zip(streams, starts) if start == tick]
        if joining:
            new = encoder.get_init_states(len(joining), torch.device("cpu"))
            state = cat_states([state, new]) if live else new
            live = live + joining
        if live:
            state = _step(encoder, live, state)
            rows = [i for i, s in enumerate(live) if not s.buffer.is_exhausted]
            state = select_states(state, torch.tensor(rows, dtype=torch.int64))
            live = [live[i] for i in rows]
        tick += 1
    return [s.result(encoder.output_dim, dtype) for s in streams]


def _step(encoder: StreamingXLSREncoder, live: List[Stream], state: EncoderState) -> EncoderState:
    """One tick: everybody listens, and those with a chunk are encoded."""
    dtype = encoder.like.dtype
    x = torch.full((len(live), encoder.chunk_size * 320), float("nan"), dtype=dtype)
    lens = torch.zeros(len(live), dtype=torch.int64)
    for i, stream in enumerate(live):
        stream.listen()
        overlap = stream.buffer.pop_overlap()
        if overlap is not None:
            state.xlsr.tail[i] = overlap
        chunk = stream.buffer.pop_chunk()
        if chunk is not None:
            lens[i] = chunk[1]
            x[i, : chunk[1]] = chunk[0][: chunk[1]]
    if int(lens.max()) == 0:
        return state
    out, out_lens, state = encoder.streaming_forward(x, lens, state)
    for i, stream in enumerate(live):
        stream.outputs.append(out[i, : out_lens[i]])
    return state
