"""An encoder whose output is in the audio itself: streams with any encoder output, at no cost."""

from __future__ import annotations

import types

import torch
from torch import Tensor, nn

from xlsr_transducer.model.state import EncoderState, Wav2Vec2State

HOP, HEAD = 320, 80
FRAME = 2 * HOP  # samples of an encoder frame


def audio_of(frames: Tensor) -> Tensor:
    """(n,) samples that ``FrameEncoder`` makes the encoder frames (T, D) of."""
    chunks = torch.nn.functional.pad(frames, (0, FRAME - frames.shape[1]))
    return torch.cat([frames.new_zeros(HEAD), chunks.flatten()])


class FrameEncoder(nn.Module):
    """Encoder frame t is the first D of the samples from 80 + 640 t on."""

    def __init__(self, width: int, chunk_size: int, dtype: torch.dtype = torch.float64):
        super().__init__()
        self.frame_seconds = FRAME / 16000
        self.width, self.chunk_size, self.left_context_chunks = width, chunk_size, 0
        self.xlsr = types.SimpleNamespace(hop=HOP, overlap=HEAD)
        self.weight = nn.Parameter(torch.zeros(0, dtype=dtype))

    def get_init_states(self, batch_size: int, device: torch.device) -> EncoderState:
        """A count of the frames, and nothing else."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(batch_size, *shape, dtype=self.weight.dtype, device=device)

        done = zeros().to(torch.int64)
        nothing = (zeros(0), zeros(0, 0, 0, 0, 0), zeros(0), zeros(0))
        return EncoderState(Wav2Vec2State(done, zeros(0), zeros(HEAD), *nothing), zeros(0))

    def streaming_forward(
        self, x: Tensor, x_lens: Tensor, states: EncoderState
    ) -> tuple[Tensor, Tensor, EncoderState]:
        """(N, 320 C) samples -> (N, C / 2, D) frames and their number."""
        lens = x_lens.div(FRAME, rounding_mode="floor")
        states.xlsr.done.add_(2 * lens)
        return x.view(len(x), -1, FRAME)[:, :, : self.width], lens, states
