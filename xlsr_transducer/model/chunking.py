"""Chunk geometry: which frame sees which, in one place.

The attention mask of training, the windows of the positional convolution, the cache
layout of streaming and its validity all derive from the functions here. Frames are XLSR
frames (20 ms). Letters: N batch, T frames, C chunk size, L left-context chunks,
S attention sinks, P frames of left context in the cache, F new frames of a streaming step.

Frame q, of chunk q // C, sees frame k when k lies in its own chunk, in one of the L
chunks before it (all of them for L = -1), or among the first S frames of the utterance
and not in a later chunk.
"""

from __future__ import annotations

import dataclasses
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import SUBSAMPLING

BLOCK = 512  # keys that PyTorch's attention takes at a time on a CPU


@dataclasses.dataclass(frozen=True)
class ChunkSettings:
    """How much a frame sees: the default is the whole utterance."""

    chunk_size: int = -1  # XLSR frames computed together; -1: the whole utterance
    left_context_chunks: int = -1  # earlier chunks seen; -1: all
    attention_sink_size: int = 0  # first frames of the utterance, always seen

    def __post_init__(self) -> None:
        if self.chunk_size != -1 and (self.chunk_size < 1 or self.chunk_size % SUBSAMPLING):
            raise UserError(
                f"--chunk-size {self.chunk_size}: must be a positive multiple of the "
                f"subsampling factor {SUBSAMPLING}, or -1 for the whole utterance"
            )
        if self.left_context_chunks < -1:
            raise UserError(
                f"--left-context-chunks {self.left_context_chunks}: must be 0 or more, "
                "or -1 for all"
            )
        if self.attention_sink_size < 0:
            raise UserError(f"--attention-sink-size {self.attention_sink_size}: must be 0 or more")

    @property
    def is_full_context(self) -> bool:
        return self.chunk_size == -1

    def require_consistent(self) -> ChunkSettings:
        """Refuses settings of which one makes another meaningless; returns itself."""
        if self.attention_sink_size and self.is_full_context:
            raise UserError(
                f"--attention-sink-size {self.attention_sink_size} contradicts --chunk-size -1: "
                "with the whole utterance in view there is nothing for sinks to add"
            )
        if self.attention_sink_size and self.left_context_chunks == -1:
            raise UserError(
                f"--attention-sink-size {self.attention_sink_size} contradicts "
                "--left-context-chunks -1: all earlier frames are seen already; "
                "limit the left context, or use 0 sinks"
            )
        return self

    def require_streaming(self) -> ChunkSettings:
        """Refuses what cannot stream; returns itself."""
        if self.is_full_context:
            raise UserError(
                "--chunk-size -1 cannot stream, as every frame waits for the end of the "
                "utterance; give a chunk size such as 32 (in decoding: --decode-chunk-len 32)"
            )
        return self.require_consistent()

    def simplified(self) -> ChunkSettings:
        """The same view without settings that have no effect (for independent draws)."""
        if self.is_full_context:
            return ChunkSettings()
        if self.left_context_chunks == -1:
            return dataclasses.replace(self, attention_sink_size=0)
        return self

    def describe(self) -> str:
        """For file names: ``chunk-32-left-2-sink-4``, or ``full``."""
        if self.is_full_context:
            return "full"
        return (
            f"chunk-{self.chunk_size}-left-{self.left_context_chunks}"
            f"-sink-{self.attention_sink_size}"
        )


def attention_mask(
    lens: Tensor, num_frames: int, chunk_size: int, left_context_chunks: int, sink_size: int
) -> Optional[Tensor]:
    """Who sees whom in a padded batch of whole utterances.

    Args:
      lens: (N,) int64, frames of each row.
      num_frames: T.

    Returns:
      bool, True where the query (dim 2) sees the key (dim 3): (N, 1, 1, T) for the whole
      utterance, (N, 1, T, T) for chunks, or None when everything is seen. Every query sees
      at least one key, so that no softmax is empty; outputs at padding mean nothing.
    """
    frames = torch.arange(num_frames, device=lens.device)
    is_key = frames < lens.clamp(min=1).unsqueeze(1)
    if chunk_size < 0:
        if bool((lens >= num_frames).all()):
            return None
        return is_key.unsqueeze(1).unsqueeze(1)
    seen = chunk_mask(num_frames, chunk_size, left_context_chunks, sink_size, lens.device)
    itself = frames.unsqueeze(1) == frames
    return ((seen & is_key.unsqueeze(1)) | itself).unsqueeze(1)


def chunk_mask(
    num_frames: int,
    chunk_size: int,
    left_context_chunks: int,
    sink_size: int,
    device: torch.device,
) -> Tensor:
    """(T, T) bool: True where frame ``row`` sees frame ``column``."""
    frames = torch.arange(num_frames, device=device)
    return _sees(frames, frames, chunk_size, left_context_chunks, sink_size)


def _sees(
    queries: Tensor, keys: Tensor, chunk_size: int, left_context_chunks: int, sink_size: int
) -> Tensor:
    """(..., Q, K) bool for frame numbers (..., Q) and (..., K): the rule of this module."""
    chunk = torch.div(queries, chunk_size, rounding_mode="floor").unsqueeze(-1)
    keys = keys.unsqueeze(-2)
    seen = keys < (chunk + 1) * chunk_size
    if left_context_chunks >= 0:
        recent = keys >= (chunk - left_context_chunks) * chunk_size
        seen = seen & (recent | (keys < sink_size))
    return seen


def cache_mask(
    done: Tensor,
    num_new: Tensor,
    num_frames: int,
    chunk_size: int,
    left_context_chunks: int,
    cached: int,
    sinks: int,
) -> Tensor:
    """Which keys the frames of one step see: cache and new frames side by side.

    The cache holds the sinks first, in their own slots, then the latest P frames, the last
    of them in the last slot. A frame that is both counts once, as a sink.

    Args:
      done: (N,) int64, frames processed before this step.
      num_new: (N,) int64, frames of this step, at most F.
      num_frames: F: one chunk, or several.
      cached: S + P, slots of the cache.
      sinks: S.

    Returns:
      bool, (N, 1, 1, S + P + F) for one chunk, as all of it sees the same; (N, 1, F, S + P + F)
      for several. The first frame of a chunk is always seen by it: no softmax is empty.
    """
    sink = torch.arange(sinks, device=done.device).expand(done.shape[0], -1)
    slots = torch.arange(cached - sinks, device=done.device)
    left = done.unsqueeze(1) - (cached - sinks) + slots
    frames = torch.arange(num_frames, device=done.device)
    is_new = (frames < num_new.unsqueeze(1)) | (frames % chunk_size == 0)
    mask = torch.cat((sink < done.unsqueeze(1), left >= sinks, is_new), dim=1).unsqueeze(1)
    if num_frames > chunk_size:
        # Only a stream that has ended, and whose frames mean nothing, stands within a chunk.
        new = (done - done % chunk_size).unsqueeze(1) + frames
        keys = torch.cat((sink, left, new), dim=1)
        mask = mask & _sees(new, keys, chunk_size, left_context_chunks, sinks)
    return mask.unsqueeze(1)


def roll(old: Tensor, new: Tensor, is_full: Tensor) -> Tensor:
    """The latest frames after a step: ``old`` followed by ``new``, cut to its size.

    A row without a full chunk keeps ``old``: it was idle, or its stream has ended.

    Args:
      old: (N, ..., P, D) the latest P frames so far.
      new: (N, ..., C, D) the frames of this step.
      is_full: (N,) bool.

    Returns:
      Like ``old``.
    """
    kept = old.shape[-2]
    if kept == 0:
        return old
    rolled = torch.cat((old, new), dim=-2).narrow(-2, new.shape[-2], kept)
    return torch.where(is_full.view([-1] + [1] * (old.dim() - 1)), rolled, old)


def fill_sinks(sinks: Tensor, new: Tensor, done: Tensor, num_new: Tensor) -> Tensor:
    """Puts those new frames into the sink slots that are among the first S of the stream.

    Args:
      sinks: (N, 2, H, S, D), new: (N, 2, H, C, D), done and num_new: (N,) int64.

    Returns:
      Like ``sinks``.
    """
    size = sinks.shape[3]
    if size == 0:
        return sinks
    index = torch.arange(size, device=done.device) - done.unsqueeze(1)
    is_new = (index >= 0) & (index < num_new.unsqueeze(1))
    index = index.clamp(0, new.shape[3] - 1)[:, None, None, :, None]
    index = index.expand(-1, new.shape[1], new.shape[2], -1, new.shape[4])
    return torch.where(is_new[:, None, None, :, None], new.gather(3, index), sinks)


def grow(cache: Tensor, chunk_size: int, block: int = BLOCK) -> Tensor:
    """Room in front for the next chunk of unlimited left context: (..., P, D) -> (..., P', D).

    The keys of a step, P' + C, come to a multiple of ``block``: streams of different ages then
    differ by whole blocks of masked keys, which change no bit of an attention computed block
    by block, and a stream in a batch gives what it gives alone.
    """
    keys = cache.shape[-2] + 2 * chunk_size
    keys = (keys + block - 1) // block * block
    return F.pad(cache, (0, 0, keys - chunk_size - cache.shape[-2], 0))


def shrink(cache: Tensor, done: Tensor) -> Tensor:
    """Takes the slots of unlimited left context off that no stream of the batch fills."""
    return cache.narrow(-2, cache.shape[-2] - int(done.max()), int(done.max()))
