"""Classification of whole utterances: language, speaker, intent.

The mean of the valid frames, then a linear layer, as XLS-R was evaluated on VoxLingua107
(A. Babu et al., "XLS-R", Interspeech 2022), or two, as fairseq and Hugging Face have them. A
stream keeps the sum of its frames. Letters: N batch, T frames, E width, V labels.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlsr_transducer.core.options import Options, option
from xlsr_transducer.model.distillation import divergence
from xlsr_transducer.model.heads.base import Guide, Head, LossOptions


@dataclasses.dataclass(frozen=True)
class ClassifierOptions(Options):
    """Classifier."""

    classifier_dim: int = option(
        0,
        "width of a further linear layer before the labels, such as Hugging Face's 256; 0: none",
        at_least=0,
        at_most=65536,
    )


class RunningMean(NamedTuple):
    """The frames of utterances or streams so far."""

    sums: Tensor  # (N, E) float64
    count: Tensor  # (N,) int64


class ClassifierHead(Head):
    """From encoder output to the logits of labels."""

    def __init__(
        self,
        width: int,
        num_labels: int,
        options: ClassifierOptions = ClassifierOptions(),  # noqa: B008  frozen
    ):
        super().__init__()
        dim = options.classifier_dim
        self.width = width
        self.projection = nn.Linear(width, dim) if dim else None
        self.output = nn.Linear(dim or width, num_labels)

    def init_state(self, batch_size: int, device: torch.device) -> RunningMean:
        """Returns the state of utterances before their first frame."""
        sums = torch.zeros(batch_size, self.width, dtype=torch.float64, device=device)
        return RunningMean(sums, torch.zeros(batch_size, dtype=torch.int64, device=device))

    def advance(self, encoder_out: Tensor, lens: Tensor, state: RunningMean) -> RunningMean:
        """Takes in the next frames (N, T, E) of which ``lens`` (N,) int64 are valid."""
        is_frame = torch.arange(encoder_out.shape[1], device=lens.device) < lens.unsqueeze(1)
        frames = encoder_out.masked_fill(~is_frame.unsqueeze(2), 0.0)
        return RunningMean(state.sums + frames.sum(1, dtype=torch.float64), state.count + lens)

    def logits(self, state: RunningMean) -> Tensor:
        """Returns the logits (N, V) of the frames so far; without any, those of zeros."""
        mean = state.sums / state.count.clamp(min=1).unsqueeze(1)
        mean = mean.to(self.output.weight.dtype)
        # Linear layers may come after the mean: it is one too.
        return self.output(mean if self.projection is None else self.projection(mean))

    def forward(self, encoder_out: Tensor, lens: Tensor) -> Tensor:
        """(N, T, E), lengths (N,) int64 -> logits (N, V)."""
        start = self.init_state(len(lens), lens.device)
        return self.logits(self.advance(encoder_out, lens, start))

    def losses(
        self,
        encoder_out: Tensor,
        lens: Tensor,
        y: Tensor,
        y_lens: Tensor,
        options: LossOptions,
        guide: Guide | None = None,
    ) -> dict[str, Tensor]:
        """Returns ``classifier``, the cross-entropy; ``y`` (N, 1) holds labels (see
        ``Head.losses``). It is infinite of a label that the model does not have, an empty ``y``.
        """
        logits = self(encoder_out, lens)
        losses = F.cross_entropy(logits, y[:, 0], reduction="none")
        found = {"classifier": losses.masked_fill(y_lens == 0, float("inf"))}
        if guide is not None:
            found["logits"] = divergence(logits, guide.head(guide.encoder_out, lens))
        return found

    def describe(self) -> str:
        """Returns ``classifier of 107 labels``."""
        return f"classifier of {self.output.out_features} labels"
