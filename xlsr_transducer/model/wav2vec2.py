"""XLSR (wav2vec 2.0), the whole of it or the part between two levels.

The part below a level computes stored features; the part above it belongs to the model and
can be trained; a deployed model has all of it. Parameter names are those of Hugging Face's
``Wav2Vec2Model``. Letters: N batch, n samples, T frames, D width, H heads, C chunk size,
S attention sinks, P frames of left context, F new frames of a streaming step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlsr_transducer.model.mamba2 import state_shapes, sum_dtype
from xlsr_transducer.model.normalize import (
    check_mode,
    cumulative_step,
    normalize_cumulative,
    normalize_utterance,
)
from xlsr_transducer.model.state import Wav2Vec2State
from xlsr_transducer.model.wav2vec2_front_end import FeatureEncoder, FeatureProjection
from xlsr_transducer.model.wav2vec2_layers import Encoder, zero_padding
from xlsr_transducer.model.xlsr_config import FRONTEND, WAVEFORM, XlsrConfig


class Wav2Vec2(nn.Module):
    """The part of XLSR from level ``start`` to level ``end``."""

    def __init__(
        self,
        config: XlsrConfig,
        start: str = "waveform",
        end: str = "last",
        normalize: str = "cumulative",
        mamba_layers: Sequence[int] = (),
        mamba_residual: bool = False,
    ):
        """``mamba_layers``, ``mamba_residual``: as ``Encoder`` takes them."""
        super().__init__()
        first, last = config.number_of_level(start), config.number_of_level(end)
        if first > last:
            raise ValueError(f"the part from {start} to {end} runs downwards")
        self.overlap = config.overlap
        self.hop = config.hop
        self.normalize = check_mode(normalize)
        self.from_waveform = first == WAVEFORM < last
        self.from_frontend = first <= FRONTEND < last
        self.has_layers = FRONTEND < last and first < last
        self.has_all_layers = first <= FRONTEND and last == config.num_hidden_layers
        self.is_stream_safe = not (self.from_waveform and config.feat_extract_norm == "group")
        self.hidden_size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.history_size = config.num_conv_pos_embeddings // 2 if self.from_frontend else 0
        if self.from_waveform:
            self.feature_extractor = FeatureEncoder(config)
        if self.from_frontend:
            self.feature_projection = FeatureProjection(config)
            self.masked_spec_embed = nn.Parameter(torch.rand(config.hidden_size))
        if self.has_layers:
            self.encoder = Encoder(config, first, last, mamba_layers, mamba_residual)

    def forward(
        self,
        x: Tensor,
        lens: Tensor,
        chunk_size: int = -1,
        left_context_chunks: int = -1,
        sink_size: int = 0,
        time_mask: Optional[Tensor] = None,
        channel_mask: Optional[Tensor] = None,
        layer_weights: Optional[Tensor] = None,
        layer_outputs: Optional[List[Tensor]] = None,
    ) -> Tuple[Tensor, Tensor]:
        """Whole utterances, each frame seeing what the chunk settings let it see.

        Args:
          x: (N, n) samples at 16 kHz in [-1, 1], or (N, T, D) features at the start level.
          lens: (N,) int64, valid samples or frames; what lies beyond does not matter.
          time_mask: (N, T) bool, frames to hide from the transformer (training).
          channel_mask: (N, D) bool, channels of its input to hide (training).
          layer_weights: (L + 1,), whose softmax weighs all layers (see ``Encoder.forward``).
          layer_outputs: takes the output of each layer.

        Returns:
          (N, T, D) at the end level, zero at padding, and its lengths (N,).
        """
        if self.from_waveform:
            x, lens = self.front_end(x, lens)
        if self.from_frontend:
            x = self.feature_projection(x)
        if time_mask is not None:
            hidden = self.masked_spec_embed.to(x.dtype) if self.from_frontend else x.new_zeros(1)
            x = torch.where(time_mask.unsqueeze(2), hidden, x)
        if channel_mask is not None:
            x = x.masked_fill(channel_mask.unsqueeze(1), 0.0)
        x = zero_padding(x, lens)
        if self.has_layers:
            x = self.encoder(
                x,
                lens,
                chunk_size,
                left_context_chunks,
                sink_size,
                layer_weights,
                layer_outputs,
            )
        return x, lens

    def front_end(self, x: Tensor, lens: Tensor) -> Tuple[Tensor, Tensor]:
        """(N, n) samples -> normalisation and convolutions -> (N, T, D) and lengths."""
        shortest = self.overlap + self.hop
        if x.shape[1] < shortest:
            x = F.pad(x, (0, shortest - x.shape[1]))
        if self.normalize == "cumulative":
            x = normalize_cumulative(x, self.hop, self.overlap)
            lens = lens.clamp(max=x.shape[1])
        elif self.normalize == "utterance":
            x = normalize_utterance(x, lens)
        else:
            is_padding = torch.arange(x.shape[1], device=x.device) >= lens.unsqueeze(1)
            x = x.masked_fill(is_padding, 0.0)
        return self.feature_extractor(x, lens)

    def get_init_states(
        self, batch_size: int, device: torch.device, dtype: torch.dtype, cached_frames: int
    ) -> Wav2Vec2State:
        """Returns the state of streams before their first sample.

        Args:
          cached_frames: S + P, the slots of the attention cache.
        """
        layers = self.encoder.num_attention if self.has_layers else 0
        mambas = self.encoder.num_mamba if self.has_layers else 0
        conv, ssm = state_shapes(self.hidden_size)
        if mambas == 0:
            conv, ssm = [0, 0], [0, 0, 0]
        audio_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        head_dim = self.hidden_size // self.num_heads
        cache_shape = [batch_size, layers, 2, self.num_heads, cached_frames, head_dim]
        history_shape = [batch_size, self.history_size, self.hidden_size]
        tail = self.overlap if self.from_waveform else 0
        return Wav2Vec2State(
            torch.zeros(batch_size, dtype=torch.int64, device=device),
            torch.zeros([batch_size, 2 if tail else 0], dtype=torch.float64, device=device),
            torch.zeros([batch_size, tail], dtype=audio_dtype, device=device),
            torch.zeros(history_shape, dtype=dtype, device=device),
            torch.zeros(cache_shape, dtype=dtype, device=device),
            torch.zeros([batch_size, mambas] + conv, dtype=dtype, device=device),
            torch.zeros([batch_size, mambas] + ssm, dtype=sum_dtype(dtype), device=device),
        )

    @torch.jit.export
    def streaming_forward(
        self,
        x: Tensor,
        lens: Tensor,
        state: Wav2Vec2State,
        chunk_size: int,
        left_context_chunks: int,
        sink_size: int,
        layer_weights: Optional[Tensor] = None,
    ) -> Tuple[Tensor, Tensor, Wav2Vec2State]:
        """Computes the next chunk, or chunks, of each stream; streams may be of different ages.

        A stream's first 80 samples do not come in ``x``: they are put in ``state.tail`` at
        its start. A row that is not full ends its stream; one without a frame leaves the
        state of its stream as it is.

        Args:
          x: (N, F * 320) samples, or (N, F, D) features at the start level.
          lens: (N,) int64, valid samples or frames of ``x``.

        Returns:
          (N, F, D) at the end level, zero at padding; frames (N,); the new state.
        """
        done, stats, tail, history, cache, conv, ssm = state
        num_new = lens
        if self.from_waveform:
            num_new = torch.div(lens, self.hop, rounding_mode="floor")
            is_full = num_new == x.shape[1] // self.hop
            x, stats, tail = self._stream_front_end(x, is_full, state)
        if self.from_frontend:
            x = self.feature_projection(x)
        x = zero_padding(x, num_new)
        if self.has_layers:
            x, history, cache, conv, ssm = self.encoder.streaming_forward(
                x,
                num_new,
                done,
                history,
                cache,
                conv,
                ssm,
                chunk_size,
                left_context_chunks,
                sink_size,
                layer_weights,
            )
        return x, num_new, Wav2Vec2State(done + num_new, stats, tail, history, cache, conv, ssm)

    def _stream_front_end(
        self, x: Tensor, is_full: Tensor, state: Wav2Vec2State
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Frames (N, F, D) from new samples (N, F * 320), and stats and tail after them."""
        stats, tail = state.stats, state.tail
        x = x.to(tail.dtype)
        if self.normalize == "cumulative":
            tail, x, sums = cumulative_step(x, tail, stats, state.done, self.hop)
            stats = torch.where(is_full.unsqueeze(1), sums[:, -1], stats)
        audio = torch.cat((tail, x), dim=1)
        lens = torch.full_like(state.done, audio.shape[1])
        frames, _ = self.feature_extractor(audio, lens)
        tail = torch.where(is_full.unsqueeze(1), audio[:, -self.overlap :], state.tail)
        return frames, stats, tail
