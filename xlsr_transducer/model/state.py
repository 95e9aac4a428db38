"""The state of a stream between two chunks, as tensors with the batch first.

No ``from __future__ import annotations`` here: TorchScript must see the field types.
Letters: N batch, D width of XLSR, H heads, S attention sinks, P frames of left context,
E width of the encoder, K kernel of the adapter.
"""

from typing import Dict, List, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xlsr_transducer.model.chunking import shrink


class Wav2Vec2State(NamedTuple):
    """The part of the state that belongs to XLSR."""

    done: Tensor  # (N,) int64: frames so far
    stats: Tensor  # (N, 2) float64: sum and sum of squares of the samples so far
    tail: Tensor  # (N, 80): the last samples as normalised; at the start, the first ones, raw
    history: Tensor  # (N, 64, D): the last inputs of the positional convolution
    cache: Tensor  # (N, layers, 2, H, S + P, D / H): keys and values of layers with attention
    conv: Tensor  # (N, layers, 3, W): last inputs of the convolutions of layers with Mamba-2
    ssm: Tensor  # (N, layers, heads, width, state): states of their recurrences


class EncoderState(NamedTuple):
    """The whole state of an encoder."""

    xlsr: Wav2Vec2State
    adapter: Tensor  # (N, K - 1, E): the last inputs of the adapter's convolution


NAMES = (*Wav2Vec2State._fields, "adapter")  # of the fields of an ``EncoderState``


@torch.jit.unused
def fields_of(state: EncoderState) -> Dict[str, Tensor]:
    """Returns the tensors of a state by name, without those of a kind of layer that is not
    there."""
    fields = dict(zip(NAMES, (*state.xlsr, state.adapter)))
    by_layer = ("cache", "conv", "ssm")
    return {n: x for n, x in fields.items() if n not in by_layer or x.shape[1] > 0}


@torch.jit.unused
def state_of(fields: Dict[str, Tensor]) -> EncoderState:
    """Returns the state that has the tensors of ``fields_of``."""
    history, batch = fields["history"], fields["done"].shape[0]
    dims = {"cache": 6, "conv": 4, "ssm": 5}
    missing = {name: history.new_zeros([batch] + [0] * (n - 1)) for name, n in dims.items()}
    given = {**missing, **fields}
    return EncoderState(
        Wav2Vec2State(*[given[name] for name in Wav2Vec2State._fields]), given["adapter"]
    )


def with_cache(state: Wav2Vec2State, cache: Tensor) -> Wav2Vec2State:
    """Returns the same state with another cache."""
    return Wav2Vec2State(
        state.done, state.stats, state.tail, state.history, cache, state.conv, state.ssm
    )


def with_tail(state: Wav2Vec2State, tail: Tensor) -> Wav2Vec2State:
    """Returns the same state with another tail."""
    return Wav2Vec2State(
        state.done, state.stats, tail, state.history, state.cache, state.conv, state.ssm
    )


def cat_states(states: List[EncoderState]) -> EncoderState:
    """Returns one batch from several; caches of unlimited left context are made equally long."""
    longest = max([s.xlsr.cache.shape[4] for s in states])
    states = [_with_room(s, longest - s.xlsr.cache.shape[4]) for s in states]
    fields = [
        torch.cat([s.xlsr.done for s in states]),
        torch.cat([s.xlsr.stats for s in states]),
        torch.cat([s.xlsr.tail for s in states]),
        torch.cat([s.xlsr.history for s in states]),
        torch.cat([s.xlsr.cache for s in states]),
        torch.cat([s.xlsr.conv for s in states]),
        torch.cat([s.xlsr.ssm for s in states]),
    ]
    return EncoderState(Wav2Vec2State(*fields), torch.cat([s.adapter for s in states]))


def select_states(state: EncoderState, rows: Tensor, grows: bool = False) -> EncoderState:
    """Returns the streams ``rows`` (K,) int64 of a batch.

    Args:
      grows: left context is unlimited; slots of the cache that none of them fills are left out.
    """
    xlsr = state.xlsr
    if grows and len(rows):
        xlsr = with_cache(xlsr, shrink(xlsr.cache, xlsr.done[rows]))
    return EncoderState(Wav2Vec2State(*[f[rows] for f in xlsr]), state.adapter[rows])


def put_states(state: EncoderState, rows: Tensor, part: EncoderState) -> EncoderState:
    """Writes the streams of ``part`` (K,) into ``rows`` (K,) int64 of a batch.

    The tensors of ``state`` change in place, but for a cache of unlimited left context that gets
    too short: one of twice the size takes its place. So ``state`` must be the caller's own, and
    is replaced by what is returned.
    """
    missing = part.xlsr.cache.shape[4] - state.xlsr.cache.shape[4]
    if missing > 0:
        state = _with_room(state, max(missing, state.xlsr.cache.shape[4]))
    missing = state.xlsr.cache.shape[4] - part.xlsr.cache.shape[4]
    if missing > 0:
        part = _with_room(part, missing)
    for old, new in zip((*state.xlsr, state.adapter), (*part.xlsr, part.adapter)):
        old.index_copy_(0, rows, new)
    return state


def _with_room(state: EncoderState, slots: int) -> EncoderState:
    """Returns the same state with ``slots`` more slots in the cache, before the others."""
    cache = F.pad(state.xlsr.cache, (0, 0, slots, 0))
    return EncoderState(with_cache(state.xlsr, cache), state.adapter)


def state_bytes(state: EncoderState) -> int:
    """Returns how many bytes one stream of the batch takes."""
    fields = [*state.xlsr, state.adapter]
    return sum(f[:1].numel() * f.element_size() for f in fields)
