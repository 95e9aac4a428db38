"""The stateless decoder (prediction network): embedding and a convolution over the context.

M. Ghodsi et al., "RNN-transducer with stateless prediction network", ICASSP 2020.
Letters: N batch, U tokens, V vocabulary, D width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Decoder(nn.Module):
    """Sees the last ``context_size`` tokens and nothing else, so it carries no state."""

    def __init__(self, vocab_size: int, dim: int, context_size: int = 2, blank_id: int = 0):
        super().__init__()
        if context_size < 1:
            raise ValueError(f"context size must be at least 1, got {context_size}")
        self.embedding = nn.Embedding(vocab_size, dim)
        self.context_size = context_size
        self.blank_id = blank_id
        self.vocab_size = vocab_size
        groups = dim // 4 if dim % 4 == 0 else 1
        self.conv = (
            nn.Conv1d(dim, dim, context_size, groups=groups, bias=False)
            if context_size > 1
            else nn.Identity()
        )

    def forward(self, y: Tensor, need_pad: bool = True) -> Tensor:
        """Decoder output for every position of ``y``.

        Args:
          y: (N, U) int64 tokens; a negative id is "no token" and embeds to zeros.
          need_pad: True in training: ``context_size - 1`` empty positions go in front, so
            that U outputs come back. False in search: ``y`` is (N, context_size) and one
            output comes back.

        Returns:
          (N, U, D) with ``need_pad``, else (N, U - context_size + 1, D).
        """
        embedded = self.embedding(y.clamp(min=0)) * (y >= 0).unsqueeze(-1)
        x = embedded.transpose(1, 2)
        if need_pad:
            x = F.pad(x, (self.context_size - 1, 0))
        return F.relu(self.conv(x).transpose(1, 2))
