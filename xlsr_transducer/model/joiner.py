"""The joiner: logits over the vocabulary from encoder and decoder output.

Letters: V vocabulary, J joiner width, * any shape that broadcasts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Joiner(nn.Module):
    """``output(tanh(encoder_proj(enc) + decoder_proj(dec)))``."""

    def __init__(self, encoder_dim: int, decoder_dim: int, joiner_dim: int, vocab_size: int):
        super().__init__()
        self.encoder_proj = nn.Linear(encoder_dim, joiner_dim)
        self.decoder_proj = nn.Linear(decoder_dim, joiner_dim)
        self.output_linear = nn.Linear(joiner_dim, vocab_size)

    def forward(
        self, encoder_out: Tensor, decoder_out: Tensor, project_input: bool = True
    ) -> Tensor:
        """Logits, (*, V), before any softmax.

        Args:
          encoder_out: (*, encoder_dim), or (*, J) when already projected.
          decoder_out: (*, decoder_dim), or (*, J) when already projected.
          project_input: whether to apply ``encoder_proj`` and ``decoder_proj`` here.
        """
        if project_input:
            encoder_out = self.encoder_proj(encoder_out)
            decoder_out = self.decoder_proj(decoder_out)
        return self.output_linear(torch.tanh(encoder_out + decoder_out))
