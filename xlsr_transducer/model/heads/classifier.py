"""Classification of whole utterances: language, speaker, intent.

The mean of the valid frames, then a linear layer, as XLS-R was evaluated on VoxLingua107
(A. Babu et al., "XLS-R", Interspeech 2022). Letters: N batch, T frames, E width, V labels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlsr_transducer.model.heads.base import Head, LossOptions


class ClassifierHead(Head):
    """From encoder output to the logits of labels."""

    def __init__(self, width: int, num_labels: int):
        super().__init__()
        self.output = nn.Linear(width, num_labels)

    def forward(self, encoder_out: Tensor, lens: Tensor) -> Tensor:
        """(N, T, E), lengths (N,) int64 -> logits (N, V); of no frame, those of zeros."""
        is_frame = torch.arange(encoder_out.shape[1], device=lens.device) < lens.unsqueeze(1)
        sums = encoder_out.masked_fill(~is_frame.unsqueeze(2), 0.0).sum(1)
        return self.output(sums / lens.clamp(min=1).unsqueeze(1))

    def losses(
        self, encoder_out: Tensor, lens: Tensor, y: Tensor, y_lens: Tensor, options: LossOptions
    ) -> dict[str, Tensor]:
        """Returns ``classifier``, the cross-entropy; ``y`` (N, 1) holds labels (see
        ``Head.losses``)."""
        logits = self(encoder_out, lens)
        return {"classifier": F.cross_entropy(logits, y[:, 0], reduction="none")}

    def describe(self) -> str:
        """Returns ``classifier of 107 labels``."""
        return f"classifier of {self.output.out_features} labels"
