"""From pieces of audio of any size to the chunks that a streaming encoder takes.

A stream starts with ``overlap`` samples that its first frame has in view before the first
chunk (they go to ``state.xlsr.tail``); then come chunks of a fixed number of samples; the
last one is short. Audio after the last whole frame gives nothing and is dropped.
"""

from __future__ import annotations

from typing import List, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from xlsr_transducer.core.geometry import HOP, OVERLAP, SAMPLING_RATE
from xlsr_transducer.data.audio_file import Resampler


class AudioBuffer:
    """The samples of one stream that have arrived and not yet been encoded.

    >>> buffer = AudioBuffer(chunk_samples=32 * 320)
    >>> buffer.add(piece)             # as they arrive; buffer.finish() after the last
    >>> overlap = buffer.pop_overlap()      # once, None until it is there
    >>> chunk = buffer.pop_chunk()    # None until the next one is there
    """

    def __init__(
        self, chunk_samples: int, hop: int = HOP, overlap: int = OVERLAP, rate: int = SAMPLING_RATE
    ):
        """
        Args:
          rate: that of the audio that arrives, in Hz; it is resampled to 16 kHz.
        """
        if chunk_samples < hop or chunk_samples % hop:
            raise ValueError(f"a chunk of {chunk_samples} samples is no multiple of {hop}")
        self.chunk_samples = chunk_samples
        self.hop = hop
        self.overlap = overlap
        self.is_finished = False
        self.num_samples = 0  # at 16 kHz that arrived so far, consumed ones included
        self._has_overlap = False
        self._resampler = None if rate == SAMPLING_RATE else Resampler(rate)
        self._pieces: List[Tensor] = []
        self._current = torch.zeros(0)
        self._position = 0  # of the first sample of ``_current`` that is not consumed
        self._consumed = 0

    def add(self, piece: Tensor) -> None:
        """Takes the next (n,) samples, n from 0 up."""
        if piece.dim() != 1:
            raise ValueError(f"a piece of audio must be (n,), not {list(piece.shape)}")
        if self.is_finished:
            raise ValueError("the stream is finished; a new one needs a new buffer")
        if self._resampler is None:
            self._append(piece.clone())  # the caller may use its memory again
        else:
            self._append(torch.from_numpy(self._resampler(piece.numpy())))

    def _append(self, piece: Tensor) -> None:
        if piece.numel():
            self._pieces.append(piece)
            self.num_samples += piece.numel()

    def finish(self) -> None:
        """No more audio will come: what is left may be taken as a short chunk."""
        if self._resampler is not None and not self.is_finished:
            self._append(torch.from_numpy(self._resampler(np.zeros(0, np.float32), is_last=True)))
        self.is_finished = True

    @property
    def num_waiting(self) -> int:
        """Samples arrived and not consumed."""
        return self.num_samples - self._consumed

    def pop_overlap(self) -> Optional[Tensor]:
        """Returns the first ``overlap`` samples, once; None before they are there or after they
        went.

        A finished stream that is shorter gives None: it has no frame.
        """
        if self._has_overlap or self.num_waiting < self.overlap:
            return None
        self._has_overlap = True
        return self._take(self.overlap)

    def has_chunk(self) -> bool:
        """Returns whether ``pop_chunk`` gives something, after a due ``pop_overlap``."""
        needed = self.hop if self.is_finished else self.chunk_samples
        return self.num_waiting >= needed + (0 if self._has_overlap else self.overlap)

    def pop_chunk(self) -> Optional[Tuple[Tensor, int]]:
        """Returns the next chunk: (chunk_samples,), zero beyond its valid samples, and their
        number.

        None while a live stream has no full chunk, and once a finished one has no frame left.
        """
        if not self._has_overlap or not self.has_chunk():
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
