"""The transformer of XLSR (wav2vec 2.0), each layer for whole utterances and for one chunk.

Parameter names are those of Hugging Face's ``Wav2Vec2Model``, so its state dict loads as
it is. A. Baevski et al., "wav2vec 2.0", NeurIPS 2020; A. Conneau et al., "Unsupervised
cross-lingual representation learning for speech recognition", Interspeech 2021.

Letters: N batch, n samples, T frames of 20 ms, D width, H heads, C chunk size, F new frames of a
streaming step, a multiple of C.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from xlsr_transducer.core.compat import attend, gelu
from xlsr_transducer.model.chunking import attention_mask, cache_mask, fill_sinks, roll
from xlsr_transducer.model.mamba2 import BiMamba2
from xlsr_transducer.model.xlsr_config import XlsrConfig


class PositionalConv(nn.Module):
    """Relative positions by a wide convolution that does not look beyond a frame's chunk.

    Output t of a kernel of width K uses inputs t - K//2 .. t + K - 1 - K//2. Inputs after
    the end of t's chunk count as zero; for the whole utterance that is XLSR's padding.
    """

    def __init__(self, config: XlsrConfig):
        super().__init__()
        width = config.num_conv_pos_embeddings
        self.left = width // 2
        self.right = width - 1 - width // 2
        self.conv = nn.Conv1d(
            config.hidden_size,
            config.hidden_size,
            width,
            groups=config.num_conv_pos_embedding_groups,
        )

    def _convolve(self, x: Tensor) -> Tensor:
        """(N, left + T, D) -> (N, T, D): nothing follows the input."""
        x = F.pad(x.transpose(1, 2), (0, self.right))
        return gelu(self.conv(x)).transpose(1, 2)

    def forward(self, x: Tensor, chunk_size: int) -> Tensor:
        """(N, T, D), zero at padding -> (N, T, D); ``chunk_size`` -1 is the whole of it."""
        frames = x.shape[1]
        if chunk_size < 0 or chunk_size >= frames:
            return self._convolve(F.pad(x, (0, 0, self.left, 0)))
        chunks = (frames + chunk_size - 1) // chunk_size
        x = F.pad(x, (0, 0, self.left, chunks * chunk_size - frames))
        return self._convolve_chunks(x, chunk_size)[:, :frames]

    def _convolve_chunks(self, x: Tensor, chunk_size: int) -> Tensor:
        """(N, left + T, D) -> (N, T, D), T a multiple of the chunk size."""
        windows = x.unfold(1, self.left + chunk_size, chunk_size).transpose(2, 3)
        out = self._convolve(windows.flatten(0, 1))
        return out.reshape(x.shape[0], x.shape[1] - self.left, x.shape[2])

    def streaming_forward(
        self, x: Tensor, history: Tensor, is_full: Tensor, chunk_size: int
    ) -> Tuple[Tensor, Tensor]:
        """Computes the next chunks (N, F, D), zero at padding, after their history (N, left,
        D)."""
        seen = torch.cat((history, x), dim=1)
        if x.shape[1] > chunk_size:
            return self._convolve_chunks(seen, chunk_size), roll(history, x, is_full)
        return self._convolve(seen), roll(history, x, is_full)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: XlsrConfig):
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.head_dim = width // config.num_attention_heads
        self.dropout = config.attention_dropout
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, H, T, D / H)."""
        return x.view(x.shape[0], x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)

    def keys_values(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        return self._split(self.k_proj(x)), self._split(self.v_proj(x))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Optional[Tensor]) -> Tensor:
        """Queries from x (N, T, D); keys, values (N, H, K, D / H); mask over (N, H, T, K)."""
        dropout = self.dropout if self.training else 0.0
        out = attend(self._split(self.q_proj(x)), keys, values, mask, dropout)
        return self.out_proj(out.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, config: XlsrConfig):
        super().__init__()
        self.intermediate_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output_dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation_dropout = nn.Dropout(config.activation_dropout)
        self.output_dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation_dropout(gelu(self.intermediate_dense(x)))
        return self.output_dropout(self.output_dense(x))


class LanguageAdapter(nn.Module):
    """The small network at the end of each layer that MMS has for every language.

    V. Pratap et al., "Scaling speech technology to 1,000+ languages", JMLR 2024.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear_1 = nn.Linear(width, hidden)
        self.linear_2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, D) -> (N, T, D), to be added to it."""
        return self.linear_2(torch.relu(self.linear_1(self.norm(x))))


class Layer(nn.Module):
    """What all layers have around their mixer of frames: norms before (XLSR, "stable") or after
    it (wav2vec2-base), and the feed-forward network."""

    def __init__(self, config: XlsrConfig, name: str, mixer: nn.Module):
        """``mixer``, under its ``name``, is the first submodule: the optimizer's state in
        checkpoints goes by the order of parameters."""
        super().__init__()
        self.add_module(name, mixer)
        self.norm_first = config.do_stable_layer_norm
        self.is_dropped = False  # left out of this training step, see masking.py
        self.is_recomputed = False  # in the backward pass, which saves memory
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        width = config.adapter_attn_dim
        self.adapter_layer = LanguageAdapter(config.hidden_size, width) if width else None

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.dropout(mixed)
        if self.norm_first:
            x = x + self.feed_forward(self.final_layer_norm(x))
            if self.adapter_layer is not None:
                x = x + self.adapter_layer(x)
            return x
        x = self.layer_norm(x)
        return self.final_layer_norm(x + self.feed_forward(x))


class EncoderLayer(Layer):
    """A transformer layer: attention mixes the frames."""

    def __init__(self, config: XlsrConfig):
        super().__init__(config, "attention", Attention(config))
        self.has_attention = True

    def forward(self, x: Tensor, mask: Optional[Tensor], lens: Tensor, chunk_size: int) -> Tensor:
        """(N, T, D) -> (N, T, D); lengths and chunks are in the mask."""
        if not torch.jit.is_scripting():
            if self.is_recomputed and self.training:
                return checkpoint(self._compute, x, mask, use_reentrant=False)
        return self._compute(x, mask)

    def _compute(self, x: Tensor, mask: Optional[Tensor]) -> Tensor:
        normed = self.layer_norm(x) if self.norm_first else x
        keys, values = self.attention.keys_values(normed)
        return self._finish(x, self.attention(normed, keys, values, mask))

    def streaming_forward(
        self,
        x: Tensor,
        cache: Tensor,
        unused: Tensor,
        mask: Optional[Tensor],
        lens: Tensor,
        chunk_size: int,
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Computes the next chunks after their cache.

        Args:
          x: (N, F, D). cache: (N, 2, H, P, D / H), keys and values of earlier frames.
          mask: over (N, H, F, P + F).

        Returns:
          (N, F, D), and keys and values of these frames (N, 2, H, F, D / H); what is unused.
        """
        normed = self.layer_norm(x) if self.norm_first else x
        keys, values = self.attention.keys_values(normed)
        new = torch.stack((keys, values), dim=1)
        seen = torch.cat((cache, new), dim=3)
        attended = self.attention(normed, seen[:, 0], seen[:, 1], mask)
        return self._finish(x, attended), new, unused


class MambaLayer(Layer):
    """The same layer with Mamba-2, forwards and backwards, in the place of attention."""

    def __init__(self, config: XlsrConfig, has_residual: bool = False):
        super().__init__(config, "mamba", BiMamba2(config.hidden_size, has_residual))
        self.has_attention = False

    def forward(self, x: Tensor, mask: Optional[Tensor], lens: Tensor, chunk_size: int) -> Tensor:
        """(N, T, D), lengths (N,) -> (N, T, D)."""
        if not torch.jit.is_scripting():
            if self.is_recomputed and self.training:
                return checkpoint(self._compute, x, lens, chunk_size, use_reentrant=False)
        return self._compute(x, lens, chunk_size)

    def _compute(self, x: Tensor, lens: Tensor, chunk_size: int) -> Tensor:
        conv, ssm = self.mamba.forwards.init_states(x.shape[0], x.device, x.dtype)
        normed = self.layer_norm(x) if self.norm_first else x
        return self._finish(x, self.mamba(normed, lens, chunk_size, conv, ssm)[0])

    def streaming_forward(
        self,
        x: Tensor,
        conv: Tensor,
        ssm: Tensor,
        mask: Optional[Tensor],
        lens: Tensor,
        chunk_size: int,
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Computes the next chunks (N, F, D) after the states ``conv`` and ``ssm``.

        Returns:
          (N, F, D), and the states after them.
        """
        normed = self.layer_norm(x) if self.norm_first else x
        mixed, conv, ssm = self.mamba(normed, lens, chunk_size, conv, ssm)
        return self._finish(x, mixed), conv, ssm


class Encoder(nn.Module):
    """Layers ``first`` .. ``last`` - 1 of the transformer, with what stands around them.

    The positional convolution belongs to a part that starts below layer 0 (``first`` < 0).
    The outer norm stands after the last layer in XLSR, before the first in wav2vec2-base.
    """

    def __init__(
        self,
        config: XlsrConfig,
        first: int,
        last: int,
        mamba_layers: Sequence[int] = (),
        mamba_residual: bool = False,
    ):
        """``mamba_layers``: those that have Mamba-2 in the place of attention; with
        ``mamba_residual`` it adds its input once more."""
        super().__init__()
        self.norm_first = config.do_stable_layer_norm
        self.has_bottom = first < 0
        self.has_top = first < last == config.num_hidden_layers
        if self.has_bottom:
            self.pos_conv_embed = PositionalConv(config)
        if self.has_top if self.norm_first else self.has_bottom:
            self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        # A dictionary, so that a part keeps the layer numbers of the whole in its names.
        numbers = range(max(first, 0), last)
        self.layers = nn.ModuleDict()
        for i in numbers:
            is_mamba = i in mamba_layers
            layer = MambaLayer(config, mamba_residual) if is_mamba else EncoderLayer(config)
            self.layers[str(i)] = layer
        self.num_mamba = len(set(numbers) & set(mamba_layers))
        self.num_attention = len(numbers) - self.num_mamba

    def forward(
        self,
        x: Tensor,
        lens: Tensor,
        chunk_size: int,
        left_context_chunks: int,
        sink_size: int,
        layer_weights: Optional[Tensor] = None,
        layer_outputs: Optional[List[Tensor]] = None,
    ) -> Tensor:
        """(N, T, D), zero at padding -> (N, T, D), zero at padding.

        Args:
          layer_weights: (L + 1,): the output is the sum of the first layer's input and of each
            layer's output, the last one after the outer norm, weighted by their softmax.
          layer_outputs: takes the output of each layer, (N, T, D), before the outer norm; of one
            that is left out in this step its input.
        """
        if self.has_bottom:
            x = x + self.pos_conv_embed(x, chunk_size)
            if not self.norm_first:
                x = self.layer_norm(x)
            x = self.dropout(x)
        mask: Optional[Tensor] = None
        if self.num_attention > 0:
            mask = attention_mask(lens, x.shape[1], chunk_size, left_context_chunks, sink_size)
        inputs: List[Tensor] = []
        for layer in self.layers.values():
            if layer_weights is not None:
                inputs.append(x)
            if not (self.training and layer.is_dropped):
                x = layer(x, mask, lens, chunk_size)
            if layer_outputs is not None:
                layer_outputs.append(x)
        if self.has_top and self.norm_first:
            x = self.layer_norm(x)
        if layer_weights is not None:
            x = _weighted_sum(inputs, x, layer_weights)
        return zero_padding(x, lens)

    def streaming_forward(
        self,
        x: Tensor,
        num_new: Tensor,
        done: Tensor,
        history: Tensor,
        cache: Tensor,
        conv: Tensor,
        ssm: Tensor,
        chunk_size: int,
        left_context_chunks: int,
        sinks: int,
        layer_weights: Optional[Tensor] = None,
    ) -> Tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Computes the next chunk or chunks after their state.

        Args:
          x: (N, F, D), zero at padding. num_new: (N,) frames of it that are real.
          done: (N,) frames of the stream before it.
          history: (N, K // 2, D), cache: (N, layers, 2, H, S + P, D / H).
          conv, ssm: (N, layers, ...), of the layers with Mamba-2.

        Returns:
          (N, F, D), history, cache, conv, ssm.
        """
        frames = x.shape[1]
        is_full = num_new == frames
        if self.has_bottom:
            position, history = self.pos_conv_embed.streaming_forward(
                x, history, is_full, chunk_size
            )
            x = x + position
            if not self.norm_first:
                x = self.layer_norm(x)
        mask: Optional[Tensor] = None
        if self.num_attention > 0:
            cached = cache.shape[4]
            mask = cache_mask(
                done, num_new, frames, chunk_size, left_context_chunks, cached, sinks
            )
        caches: List[Tensor] = []
        convs: List[Tensor] = []
        ssms: List[Tensor] = []
        inputs: List[Tensor] = []
        for layer in self.layers.values():
            if layer_weights is not None:
                inputs.append(x)
            if layer.has_attention:
                old = cache[:, len(caches)]
                x, new, _ = layer.streaming_forward(x, old, x, mask, num_new, chunk_size)
                first = fill_sinks(old[:, :, :, :sinks], new, done, num_new)
                caches.append(torch.cat((first, roll(old[:, :, :, sinks:], new, is_full)), dim=3))
            else:
                old, old_ssm = conv[:, len(convs)], ssm[:, len(ssms)]
                x, new, new_ssm = layer.streaming_forward(
                    x, old, old_ssm, mask, num_new, chunk_size
                )
                convs.append(torch.where(is_full.view(-1, 1, 1), new, old))
                ssms.append(torch.where(is_full.view(-1, 1, 1, 1), new_ssm, old_ssm))
        if len(caches) > 0:
            cache = torch.stack(caches, dim=1)
        if len(convs) > 0:
            conv, ssm = torch.stack(convs, dim=1), torch.stack(ssms, dim=1)
        if self.has_top and self.norm_first:
            x = self.layer_norm(x)
        if layer_weights is not None:
            x = _weighted_sum(inputs, x, layer_weights)
        return zero_padding(x, num_new), history, cache, conv, ssm


def _weighted_sum(inputs: List[Tensor], output: Tensor, layer_weights: Tensor) -> Tensor:
    """Returns the sum of the inputs of all layers and the last output, weighted by the softmax of
    (L + 1,) weights."""
    weights = layer_weights.softmax(0)
    total = weights[-1] * output
    for i, x in enumerate(inputs):
        total = total + weights[i] * x
    return total


def zero_padding(x: Tensor, lens: Tensor) -> Tensor:
    """Returns (N, T, D) with zeros beyond each row's length."""
    is_padding = torch.arange(x.shape[1], device=x.device) >= lens.unsqueeze(1)
    return x.masked_fill(is_padding.unsqueeze(2), 0.0)
