"""From pieces of audio of any size to the chunks that a streaming encoder takes.

A stream starts with ``head`` samples that its first frame has in view before the first
chunk (they go to ``state.xlsr.tail``); then come chunks of a fixed number of samples; the
last one is short. Audio after the last whole frame gives nothing and is dropped.
"""

from __future__ import annotations

from typing import List, Optional, Tuple

import torch
from torch import Tensor


class AudioBuffer:
    """The samples of one stream that have arrived and not yet been encoded.

    >>> buffer = AudioBuffer(chunk_samples=32 * 320)
    >>> buffer.add(piece)             # as they arrive; buffer.finish() after the last
    >>> head = buffer.pop_head()      # once, None until it is there
    >>> chunk = buffer.pop_chunk()    # None until the next one is there
    """

    def __init__(self, chunk_samples: int, hop: int = 320, head: int = 80):
        if chunk_samples < hop or chunk_samples % hop:
            raise ValueError(f"a chunk of {chunk_samples} samples is no multiple of {hop}")
        self.chunk_samples = chunk_samples
        self.hop = hop
        self.head = head
        self.is_finished = False
        self.num_samples = 0  # arrived so far, consumed ones included
        self._has_head = False
        self._pieces: List[Tensor] = []
        self._current = torch.zeros(0)
        self._position = 0  # of the first sample of ``_current`` that is not consumed
        self._consumed = 0

    def add(self, piece: Tensor) -> None:
        """Takes (n,) samples at 16 kHz, n from 0 up."""
        if piece.dim() != 1:
            raise ValueError(f"a piece of audio must be (n,), not {list(piece.shape)}")
        if self.is_finished:
            raise ValueError("the stream is finished; a new one needs a new buffer")
        if piece.numel():
            self._pieces.append(piece.clone())  # the caller may use its memory again
            self.num_samples += piece.numel()

    def finish(self) -> None:
        """No more audio will come: what is left may be taken as a short chunk."""
        self.is_finished = True

    @property
    def num_waiting(self) -> int:
        """Samples arrived and not consumed."""
        return self.num_samples - self._consumed

    def pop_head(self) -> Optional[Tensor]:
        """The first ``head`` samples, once; None before they are there or after they went.

        A finished stream that is shorter gives None: it has no frame.
        """
        if self._has_head or self.num_waiting < self.head:
            return None
        self._has_head = True
        return self._take(self.head)

    def has_chunk(self) -> bool:
        """Whether ``pop_chunk`` has something to give, after ``pop_head`` where that is due."""
        needed = self.hop if self.is_finished else self.chunk_samples
        return self.num_waiting >= needed + (0 if self._has_head else self.head)

    def pop_chunk(self) -> Optional[Tuple[Tensor, int]]:
        """The next chunk: (chunk_samples,), zero beyond its valid samples, and their number.

        None while a live stream has no full chunk, and once a finished one has no frame left.
        """
        if not self._has_head or not self.has_chunk():
            return None
        valid = min(self.num_waiting, self.chunk_samples)
        samples = self._take(valid)
        if valid == self.chunk_samples:
            return samples, valid
        chunk = samples.new_zeros(self.chunk_samples)
        chunk[:valid] = samples
        return chunk, valid

    @property
    def is_exhausted(self) -> bool:
        """Whether the stream is finished and has no frame left."""
        return self.is_finished and not self.has_chunk()

    def _take(self, count: int) -> Tensor:
        if self._current.numel() - self._position < count:
            rest = self._current[self._position :]
            self._current = torch.cat([rest.to(self._pieces[0].dtype), *self._pieces])
            self._pieces = []
            self._position = 0
        taken = self._current[self._position : self._position + count]
        self._position += count
        self._consumed += count
        return taken
