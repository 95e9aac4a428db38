"""The encoders: XLSR above a level, then an adapter to 40 ms frames, or none.

``XLSREncoder`` encodes whole utterances, ``StreamingXLSREncoder`` chunks too. They share
modules and weights: a checkpoint trained by one loads in the other. Letters: N batch,
T XLSR frames, D width of XLSR, E width of the encoder, C chunk size, K adapter kernel.
"""

from __future__ import annotations

import dataclasses
from typing import List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlsr_transducer.core.compat import gelu
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import FRAME_SHIFT, SUBSAMPLING
from xlsr_transducer.model.chunking import ChunkSettings, grow, roll, shrink
from xlsr_transducer.model.encoder_options import EncoderOptions, mamba_layers
from xlsr_transducer.model.masking import draw_spans
from xlsr_transducer.model.normalize import check_mode
from xlsr_transducer.model.state import EncoderState, with_cache
from xlsr_transducer.model.wav2vec2 import Wav2Vec2
from xlsr_transducer.model.wav2vec2_layers import zero_padding
from xlsr_transducer.model.xlsr_config import XlsrConfig

LONGEST_WHOLE = 3000  # XLSR frames (60 s) that ``encode`` computes at once
BLOCK_FRAMES = 1024  # of longer utterances, where the left context is limited


class Adapter(nn.Module):
    """Pairs of XLSR frames, projected, and a causal convolution over their past.

    An odd last frame is paired with zeros, so that no audio is lost.
    """

    def __init__(self, width: int, options: EncoderOptions):
        super().__init__()
        dim = options.encoder_dim
        self.history = options.adapter_kernel - 1
        self.input_dropout = nn.Dropout(options.feature_dropout)
        self.projection = nn.Linear(SUBSAMPLING * width, dim)
        self.conv_norm = nn.LayerNorm(dim)
        self.conv = nn.Conv1d(dim, dim, options.adapter_kernel)
        self.dropout = nn.Dropout(options.dropout)
        self.output_norm = nn.LayerNorm(dim)

    def _pairs(self, x: Tensor, lens: Tensor) -> Tuple[Tensor, Tensor]:
        """(N, T, D) -> normed projection (N, ceil(T / 2), E), zero at padding, and lengths."""
        x = F.pad(self.input_dropout(x), (0, 0, 0, x.shape[1] % 2))
        x = x.reshape(x.shape[0], x.shape[1] // 2, -1)
        lens = torch.div(lens + 1, 2, rounding_mode="floor")
        return zero_padding(self.conv_norm(self.projection(x)), lens), lens

    def _convolve(self, x: Tensor, past: Tensor) -> Tensor:
        y = self.conv(torch.cat((past, x), dim=1).transpose(1, 2)).transpose(1, 2)
        return self.output_norm(self.dropout(x + gelu(y)))

    def forward(self, x: Tensor, lens: Tensor) -> Tuple[Tensor, Tensor]:
        """(N, T, D), zero at padding -> (N, ceil(T / 2), E) and lengths."""
        x, lens = self._pairs(x, lens)
        past = x.new_zeros(x.shape[0], self.history, x.shape[2])
        return zero_padding(self._convolve(x, past), lens), lens

    def streaming_forward(
        self, x: Tensor, lens: Tensor, past: Tensor, is_full: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Computes the next frames after their past (N, K - 1, E); the new past comes third."""
        x, lens = self._pairs(x, lens)
        return zero_padding(self._convolve(x, past), lens), lens, roll(past, x, is_full)


class NoAdapter(nn.Module):
    """XLSR's frames as they are, with the calls of ``Adapter``."""

    def __init__(self, options: EncoderOptions):
        super().__init__()
        self.history = 0
        self.input_dropout = nn.Dropout(options.feature_dropout)

    def forward(self, x: Tensor, lens: Tensor) -> Tuple[Tensor, Tensor]:
        """(N, T, D) -> the same, and lengths."""
        return self.input_dropout(x), lens

    def streaming_forward(
        self, x: Tensor, lens: Tensor, past: Tensor, is_full: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """(N, T, D) -> the same; there is no past, (N, 0, D)."""
        return self.input_dropout(x), lens, past


class XLSREncoder(nn.Module):
    """Whole utterances, in full context unless chunk settings are given."""

    def __init__(
        self,
        config: XlsrConfig,
        options: EncoderOptions,
        level: str = "waveform",
        normalize: str = "cumulative",
    ):
        super().__init__()
        activation_dropout = options.activation_dropout
        if activation_dropout is None:
            activation_dropout = config.activation_dropout
        self.config = dataclasses.replace(
            config,
            hidden_dropout=options.xlsr_dropout,
            attention_dropout=options.xlsr_dropout,
            activation_dropout=activation_dropout,
        )
        self.level = level
        has_adapter = options.adapter != "none"
        self.output_dim = options.encoder_dim if has_adapter else config.hidden_size
        self.longest_whole = LONGEST_WHOLE
        self.block_frames = BLOCK_FRAMES
        self.subsampling_factor = SUBSAMPLING if has_adapter else 1
        self.frame_seconds = self.subsampling_factor * FRAME_SHIFT  # of its output
        self.time_mask_prob = options.time_mask_prob
        self.time_mask_length = options.time_mask_length
        self.channel_mask_prob = options.channel_mask_prob
        self.channel_mask_length = options.channel_mask_length
        self.has_fixed_masks = options.mask_lengths == "fixed"
        layers = mamba_layers(options, config.num_hidden_layers)
        mamba = dict(mamba_layers=layers, mamba_residual=options.mixer_residual)
        self.xlsr = Wav2Vec2(self.config, level, normalize=normalize, **mamba)
        self.layer_weights = self._layer_weights() if options.weighted_layers else None
        # Has the device and precision of the module, which may have no parameter.
        self.register_buffer("like", torch.zeros(0), persistent=False)
        self.adapter = Adapter(config.hidden_size, options) if has_adapter else NoAdapter(options)

    def forward(
        self,
        x: Tensor,
        x_lens: Tensor,
        chunk_size: int = -1,
        left_context_chunks: int = -1,
        attention_sink_size: int = 0,
        time_mask: Optional[Tensor] = None,
        channel_mask: Optional[Tensor] = None,
        layer_outputs: Optional[List[Tensor]] = None,
    ) -> Tuple[Tensor, Tensor]:
        """Encodes whole utterances.

        Args:
          x: (N, n) samples or (N, T, D) features at the level.
          x_lens: (N,) int64, valid samples or frames.
          time_mask, channel_mask: of ``draw_masks``; in training they are drawn if none is given.
          layer_outputs: takes the output of each layer of XLSR above the level.

        Returns:
          (N, ceil(T / 2), E), zero at padding, and lengths (N,) int64; (N, T, D) without an
          adapter.
        """
        if time_mask is None and channel_mask is None:
            time_mask, channel_mask = self.draw_masks(x)
        x, lens = self.xlsr(
            x,
            x_lens,
            chunk_size,
            left_context_chunks,
            attention_sink_size,
            time_mask,
            channel_mask,
            self.layer_weights,
            layer_outputs,
        )
        return self.adapter(x, lens)

    @torch.jit.unused
    def xlsr_frames(self, x_lens: Tensor) -> Tensor:
        """Returns the XLSR frames (N,) of inputs of these lengths (N,) int64."""
        if not self.xlsr.from_waveform:
            return x_lens
        frames = torch.div(x_lens - self.xlsr.overlap, self.xlsr.hop, rounding_mode="floor")
        return frames.clamp(min=0)

    def _layer_weights(self) -> nn.Parameter:
        """Returns weights before their softmax, (L + 1,): of the first layer's input and of the
        output of each layer.

        Raises:
          UserError: the features come from above the first layer.
        """
        if not self.xlsr.has_all_layers:
            raise UserError(
                f"--weighted-layers 1 needs all layers of XLSR, but the features are of --cut "
                f"{self.level}: use --cut frontend or waveform"
            )
        return nn.Parameter(torch.zeros(self.config.num_hidden_layers + 1))

    @torch.jit.export
    def encode(
        self,
        x: Tensor,
        x_lens: Tensor,
        chunk_size: int = -1,
        left_context_chunks: int = -1,
        attention_sink_size: int = 0,
    ) -> Tuple[Tensor, Tensor]:
        """``forward`` for recognition: long utterances take no more memory than short ones.

        With a limited left context they are encoded block by block, as a stream of several
        chunks at a time is. The numbers are those of ``forward``, but for rounding.
        """
        unit, overlap = (self.xlsr.hop, self.xlsr.overlap) if self.xlsr.from_waveform else (1, 0)
        frames = (x.shape[1] - overlap) // unit
        if frames <= self.longest_whole or not self.is_blockwise(chunk_size, left_context_chunks):
            settings = (chunk_size, left_context_chunks, attention_sink_size)
            return self.forward(x, x_lens, *settings, None, None, None)
        state = self._init_states(
            x.shape[0], x.device, chunk_size, left_context_chunks, attention_sink_size
        )
        if overlap > 0:
            state.xlsr.tail.copy_(x[:, :overlap])
            x, x_lens = x[:, overlap:], x_lens - overlap
        size = max(self.block_frames // chunk_size, 1) * chunk_size
        outputs: List[Tensor] = []
        lens = torch.zeros_like(x_lens)
        for start in range(0, frames, size):
            chunks = (min(size, frames - start) + chunk_size - 1) // chunk_size
            block = x[:, start * unit : (start + chunks * chunk_size) * unit]
            missing = chunks * chunk_size * unit - block.shape[1]
            block = F.pad(block, [0, missing] if x.dim() == 2 else [0, 0, 0, missing])
            block_lens = (x_lens - start * unit).clamp(0, chunks * chunk_size * unit)
            out, out_lens, state = self._step(
                block, block_lens, state, chunk_size, left_context_chunks, attention_sink_size
            )
            outputs.append(out)
            lens = lens + out_lens
        longest = (frames + self.subsampling_factor - 1) // self.subsampling_factor
        return torch.cat(outputs, dim=1)[:, :longest], lens

    def is_blockwise(self, chunk_size: int, left_context_chunks: int) -> bool:
        """Returns whether ``encode`` needs no more memory for longer utterances."""
        is_limited = chunk_size > 0 and left_context_chunks >= 0
        is_normalized = self.xlsr.from_waveform and self.xlsr.normalize == "utterance"
        return is_limited and self.xlsr.is_stream_safe and not is_normalized

    def _init_states(
        self,
        batch_size: int,
        device: torch.device,
        chunk_size: int,
        left_context_chunks: int,
        attention_sink_size: int,
    ) -> EncoderState:
        cached = attention_sink_size + max(left_context_chunks, 0) * chunk_size
        dtype = self.like.dtype
        xlsr = self.xlsr.get_init_states(batch_size, device, dtype, cached)
        shape = [batch_size, self.adapter.history, self.output_dim]
        return EncoderState(xlsr, torch.zeros(shape, dtype=dtype, device=device))

    def _step(
        self,
        x: Tensor,
        x_lens: Tensor,
        states: EncoderState,
        chunk_size: int,
        left_context_chunks: int,
        attention_sink_size: int,
    ) -> Tuple[Tensor, Tensor, EncoderState]:
        """``StreamingXLSREncoder.streaming_forward`` for one chunk or several at a time."""
        frames = x.shape[1] // self.xlsr.hop if self.xlsr.from_waveform else x.shape[1]
        xlsr = states.xlsr
        if left_context_chunks < 0:
            xlsr = with_cache(xlsr, grow(xlsr.cache, frames))
        x, lens, xlsr = self.xlsr.streaming_forward(
            x,
            x_lens,
            xlsr,
            chunk_size,
            left_context_chunks,
            attention_sink_size,
            self.layer_weights,
        )
        if left_context_chunks < 0:
            xlsr = with_cache(xlsr, shrink(xlsr.cache, xlsr.done))
        out, out_lens, past = self.adapter.streaming_forward(
            x, lens, states.adapter, lens == frames
        )
        return out, out_lens, EncoderState(xlsr, past)

    def draw_masks(self, x: Tensor) -> Tuple[Optional[Tensor], Optional[Tensor]]:
        """Draws which of XLSR's frames (N, T) and channels (N, D) training hides, bool; None:
        none of them."""
        if not self.training:
            return None, None
        return self._draw_time_mask(x), self._draw_channel_mask(x)

    def _draw_time_mask(self, x: Tensor) -> Optional[Tensor]:
        """Returns (N, T) bool for an input (N, n) or (N, T, D)."""
        if self.time_mask_prob <= 0.0:
            return None
        frames = x.shape[1]
        if self.xlsr.from_waveform:
            frames = max((frames - self.xlsr.overlap) // self.xlsr.hop, 1)
        shape = (self.time_mask_prob, self.time_mask_length, self.has_fixed_masks)
        return draw_spans(x.shape[0], frames, *shape).to(x.device)

    def _draw_channel_mask(self, x: Tensor) -> Optional[Tensor]:
        """Returns (N, D) bool for an input of N rows."""
        if self.channel_mask_prob <= 0.0:
            return None
        width = self.xlsr.hidden_size
        shape = (self.channel_mask_prob, self.channel_mask_length, self.has_fixed_masks)
        return draw_spans(x.shape[0], width, *shape).to(x.device)


class StreamingXLSREncoder(XLSREncoder):
    """The same network with chunked attention: simulated, or chunk by chunk with state.

    ``forward`` with the same chunk settings gives the numbers of ``streaming_forward``.
    """

    def __init__(
        self,
        config: XlsrConfig,
        options: EncoderOptions,
        level: str = "waveform",
        normalize: str = "cumulative",
        chunk: ChunkSettings = ChunkSettings(32, 2, 4),  # noqa: B008  frozen
    ):
        super().__init__(config, options, level, normalize)
        if level == "waveform":
            check_mode(normalize, streaming=True)
        if not self.xlsr.is_stream_safe:
            raise UserError(
                "this network's front end has group norm, which averages over the whole "
                "utterance and so cannot stream; use one with layer norm, such as XLSR-53 or XLS-R"
            )
        self.set_chunk(chunk)

    @torch.jit.unused
    def set_chunk(self, chunk: ChunkSettings) -> None:
        """Chooses the chunk settings of ``streaming_forward``."""
        chunk = chunk.require_streaming()
        self.chunk_size = chunk.chunk_size
        self.left_context_chunks = chunk.left_context_chunks
        self.attention_sink_size = chunk.attention_sink_size

    @torch.jit.export
    def get_init_states(self, batch_size: int, device: torch.device) -> EncoderState:
        """Returns the state of streams before their first sample.

        From the waveform, put a stream's first 80 samples in ``state.xlsr.tail``: the first
        frame has them in view, later ones have the end of the samples before.
        """
        return self._init_states(
            batch_size,
            device,
            self.chunk_size,
            self.left_context_chunks,
            self.attention_sink_size,
        )

    @torch.jit.export
    def streaming_forward(
        self, x: Tensor, x_lens: Tensor, states: EncoderState
    ) -> Tuple[Tensor, Tensor, EncoderState]:
        """Computes the next chunk of each stream; streams may be of different ages.

        A chunk that is not full ends its stream; a row without a frame is idle.

        Args:
          x: (N, C * 320) samples (after the first 80 of a stream), or (N, C, D) features.
          x_lens: (N,) int64, valid samples or frames.

        Returns:
          (N, C / 2, E), zero at padding; lengths (N,); the new states.
        """
        return self._step(
            x,
            x_lens,
            states,
            self.chunk_size,
            self.left_context_chunks,
            self.attention_sink_size,
        )
