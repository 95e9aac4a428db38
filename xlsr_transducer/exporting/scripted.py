"""Modules for TorchScript files, which keep the call contracts of k2's servers.

sherpa calls an offline transducer as ``encoder.forward(x, x_lens)``, and a streaming one, by
the name of its encoder's class, as it calls a streaming zipformer; see docs/deploy.md. Both
take samples at 16 kHz: as (N, n), as (N, n, 1), or framed, (N, n / 160, 160), which servers
that know features only can carry. Letters: N batch, n samples, T encoder frames, E width of
the encoder, L layers, H heads, P cached frames, C chunk size in XLSR frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlsr_transducer.data.tokenizer import hash_of_tokens
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.encoder import StreamingXLSREncoder, XLSREncoder
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.model.state import EncoderState, Wav2Vec2State
from xlsr_transducer.recognition.script_models import TOKENS_RECORD


def as_samples(x: Tensor, lens: Tensor) -> Tuple[Tensor, Tensor]:
    """Returns (N, n) samples and their numbers, from any of the shapes that servers can carry.

    What servers make up to warm up, of any other width, becomes silence.

    Raises:
      ValueError: ``x`` holds features, such as filter banks.
    """
    if x.dim() == 2:
        return x, lens
    width = x.shape[2]
    if width == 1 or width == 160:
        return x.flatten(1), lens * width
    if not is_warm_up(x):
        raise ValueError(
            "this model takes samples at 16 kHz in frames of 160, not filter banks: "
            "see docs/deploy.md"
        )
    return torch.zeros(x.shape[0], x.shape[1] * 160, device=x.device), lens * 160


def is_warm_up(x: Tensor) -> bool:
    """Returns whether features are those with which servers warm up, and no one's speech.

    sherpa's live programs take uniform noise in [0, 1), the others the log filter banks of
    digital silence, which are the log of float32's epsilon, -15.94, throughout.
    """
    is_noise = bool(((x >= 0) & (x < 1)).all())
    is_silence = bool(((x + 15.9424).abs() < 0.01).all())
    return is_noise or is_silence


class OfflineEncoder(nn.Module):
    """Whole utterances, each frame seeing what ``chunk`` lets it see."""

    def __init__(self, encoder: XLSREncoder, chunk: ChunkSettings):
        super().__init__()
        self.encoder = encoder
        self.chunk_size = chunk.chunk_size
        self.left_context_chunks = chunk.left_context_chunks
        self.attention_sink_size = chunk.attention_sink_size

    def forward(self, x: Tensor, x_lens: Tensor) -> Tuple[Tensor, Tensor]:
        """Samples and int64 lengths -> (N, T, E) and int64 lengths (N,).

        What lies beyond a length does not matter.
        """
        x, x_lens = as_samples(x, x_lens)
        settings = (self.chunk_size, self.left_context_chunks, self.attention_sink_size)
        if torch.jit.is_scripting():
            return self.encoder.encode(x, x_lens, *settings)
        return self.encoder(
            x, x_lens, *settings
        )  # a trace has no blocks, and holds for any length


class StreamingEncoderModel(nn.Module):
    """Chunk by chunk; servers know by this name how to call it.

    A window has 2 C + 1 frames of 10 ms, the next one begins 2 C frames later: a stream's
    first window holds the 80 samples more that its first frame sees, and in the others they
    are passed over.
    """

    def __init__(self, encoder: StreamingXLSREncoder):
        super().__init__()
        self.encoder = encoder
        self.chunk_size = encoder.chunk_size
        self.pad_length = 1
        self.left_context_chunks = encoder.left_context_chunks
        self.attention_sink_size = encoder.attention_sink_size
        self.overlap = encoder.xlsr.overlap
        self.chunk_samples = encoder.chunk_size * encoder.xlsr.hop

    @torch.jit.export
    def get_init_states(
        self,
        batch_size: int = 1,
        device: torch.device = torch.device("cpu"),  # noqa: B008  as TorchScript wants it
    ) -> List[Tensor]:
        """Returns the states of streams before their first sample."""
        return pack_states(self.encoder.get_init_states(batch_size, device))

    def forward(
        self, features: Tensor, feature_lengths: Tensor, states: Optional[List[Tensor]] = None
    ) -> Tuple[Tensor, Tensor, List[Tensor]]:
        """Computes the next window of each stream, or whole utterances where no states are given.

        Args:
          features: samples in any of the shapes; a window's missing end may be left out.
          feature_lengths: (N,) int64, what is valid; a window that is not full is the last.

        Returns:
          (N, T, E); lengths (N,) int64; the new states.
        """
        x, lens = as_samples(features, feature_lengths)
        if states is None:
            out, out_lens = self.encoder.encode(
                x, lens, self.chunk_size, self.left_context_chunks, self.attention_sink_size
            )
            nothing: List[Tensor] = []
            return out, out_lens, nothing
        x = F.pad(x, (0, max(self.overlap + self.chunk_samples - x.shape[1], 0)))
        state = unpack_states(states)
        is_first = (state.xlsr.done == 0).unsqueeze(1)
        first = x[:, : self.overlap].to(state.xlsr.tail.dtype)
        tail = torch.where(is_first, first, state.xlsr.tail)
        xlsr = state.xlsr
        xlsr = Wav2Vec2State(xlsr.done, xlsr.stats, tail, xlsr.history, xlsr.cache)
        out, out_lens, state = self.encoder.streaming_forward(
            x[:, self.overlap : self.overlap + self.chunk_samples],
            (lens - self.overlap).clamp(0, self.chunk_samples),
            EncoderState(xlsr, state.adapter),
        )
        return out, out_lens, pack_states(state)

    @torch.jit.export
    def streaming_forward(
        self, x: Tensor, x_lens: Tensor, states: List[Tensor]
    ) -> Tuple[Tensor, Tensor, List[Tensor]]:
        """``forward`` with states, under the name that it has in this project."""
        return self.forward(x, x_lens, states)


def pack_states(state: EncoderState) -> List[Tensor]:
    """Returns the tensors of a state, laid out as a streaming zipformer's are.

    Six tensors per layer, the batch in dimension 1 of the first four and 0 of the others, then
    two with the batch in dimension 0; servers join and part streams by that.
    """
    xlsr = state.xlsr
    batch = xlsr.done.shape[0]
    packed: List[Tensor] = []
    for layer in xlsr.cache.unbind(1):
        empty = layer.new_zeros(batch, 0)
        packed += [layer[:, 0].transpose(0, 1), layer[:, 1].transpose(0, 1)]  # (H, N, P, D / H)
        packed += [empty.t(), empty.t(), empty, empty]
    packed[4], packed[5] = xlsr.history, state.adapter
    return packed + [torch.cat((xlsr.stats, xlsr.tail.double()), dim=1), xlsr.done]


def unpack_states(packed: List[Tensor]) -> EncoderState:
    """Returns what ``pack_states`` packed."""
    layers: List[Tensor] = []
    for i in range((len(packed) - 2) // 6):
        keys, values = packed[6 * i].transpose(0, 1), packed[6 * i + 1].transpose(0, 1)
        layers.append(torch.stack((keys, values), dim=1))
    stats, tail = packed[-2][:, :2], packed[-2][:, 2:].float()
    cache = torch.stack(layers, dim=1)
    return EncoderState(Wav2Vec2State(packed[-1], stats, tail, packed[4], cache), packed[5])


def save(module: torch.jit.ScriptModule, path: Path, tokens: Sequence[str]) -> None:
    """Writes a TorchScript file, with the hash of the model's tokens beside the network.

    PyTorch's own writer aborts the process when a disk is full.

    Raises:
      OSError: it cannot be written.
    """
    extra = {TOKENS_RECORD: hash_of_tokens(tokens)}
    path.write_bytes(module.save_to_buffer(_extra_files=extra))


def script_model(encoder: nn.Module, model: SpeechModel) -> torch.jit.ScriptModule:
    """Returns an encoder of this module with the heads of ``model``."""
    parts = ScriptedTransducer if model.joiner is not None else ScriptedCtc
    return torch.jit.script(parts(encoder, model).eval())


class ScriptedTransducer(nn.Module):
    """Encoder, decoder and joiner side by side, without what only training needs."""

    def __init__(self, encoder: nn.Module, model: SpeechModel):
        super().__init__()
        self.encoder = encoder
        self.decoder = model.decoder
        self.joiner = model.joiner
        self.ctc_output = model.ctc_output


class ScriptedCtc(nn.Module):
    """Encoder and CTC head side by side. Servers must find no attribute ``joiner``."""

    def __init__(self, encoder: nn.Module, model: SpeechModel):
        super().__init__()
        self.encoder = encoder
        self.ctc_output = model.ctc_output
