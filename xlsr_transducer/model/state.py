"""The state of a stream between two chunks, as tensors with the batch first.

No ``from __future__ import annotations`` here: TorchScript must see the field types.
Letters: N batch, D width of XLSR, H heads, S attention sinks, P frames of left context,
E width of the encoder, K kernel of the adapter.
"""

from typing import List, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Wav2Vec2State(NamedTuple):
    """The part of the state that belongs to XLSR."""

    done: Tensor  # (N,) int64: frames so far
    stats: Tensor  # (N, 2) float64: sum and sum of squares of the samples so far
    tail: Tensor  # (N, 80): the last samples as normalised; at the start, the first ones, raw
    history: Tensor  # (N, 64, D): the last inputs of the positional convolution
    cache: Tensor  # (N, layers, 2, H, S + P, D / H): keys and values


class EncoderState(NamedTuple):
    """The whole state of an encoder."""

    xlsr: Wav2Vec2State
    adapter: Tensor  # (N, K - 1, E): the last inputs of the adapter's convolution


def with_cache(state: Wav2Vec2State, cache: Tensor) -> Wav2Vec2State:
    """Returns the same state with another cache."""
    return Wav2Vec2State(state.done, state.stats, state.tail, state.history, cache)


def cat_states(states: List[EncoderState]) -> EncoderState:
    """Returns one batch from several; caches of unlimited left context are made equally long."""
    longest = max([s.xlsr.cache.shape[4] for s in states])
    caches = [F.pad(s.xlsr.cache, (0, 0, longest - s.xlsr.cache.shape[4], 0)) for s in states]
    fields = [
        torch.cat([s.xlsr.done for s in states]),
        torch.cat([s.xlsr.stats for s in states]),
        torch.cat([s.xlsr.tail for s in states]),
        torch.cat([s.xlsr.history for s in states]),
        torch.cat(caches),
    ]
    return EncoderState(Wav2Vec2State(*fields), torch.cat([s.adapter for s in states]))


def select_states(state: EncoderState, rows: Tensor) -> EncoderState:
    """Returns the streams ``rows`` (K,) int64 of a batch."""
    return EncoderState(Wav2Vec2State(*[f[rows] for f in state.xlsr]), state.adapter[rows])


def state_bytes(state: EncoderState) -> int:
    """Returns how many bytes one stream of the batch takes."""
    fields = [*state.xlsr, state.adapter]
    return sum(f[:1].numel() * f.element_size() for f in fields)
