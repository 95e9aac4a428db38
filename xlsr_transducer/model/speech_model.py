"""A model: an encoder and the heads that read it.

Letters: N batch, n samples, T frames, D width of the features, E width of the encoder, U tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.decoder import Decoder
from xlsr_transducer.model.distillation import layer_distance
from xlsr_transducer.model.encoder import XLSREncoder
from xlsr_transducer.model.heads.base import Guide, Head, Lesson, Losses, LossOptions, Teach
from xlsr_transducer.model.heads.classifier import ClassifierHead
from xlsr_transducer.model.joiner import Joiner

FULL_CONTEXT = ChunkSettings()


class SpeechModel(nn.Module):
    """Encoder and heads; what a head is made of is None in a model without it."""

    def __init__(self, encoder: XLSREncoder, heads: dict[str, Head]):
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict(heads)

    @property
    def decoder(self) -> Decoder | None:
        """The transducer's decoder."""
        return self.heads["transducer"].decoder if "transducer" in self.heads else None

    @property
    def joiner(self) -> Joiner | None:
        """The transducer's joiner."""
        return self.heads["transducer"].joiner if "transducer" in self.heads else None

    @property
    def ctc_output(self) -> nn.Linear | None:
        """The CTC head's linear layer."""
        return self.heads["ctc"].output if "ctc" in self.heads else None

    @property
    def classifier(self) -> ClassifierHead | None:
        """The classifier."""
        return self.heads["classifier"] if "classifier" in self.heads else None

    def describe(self) -> str:
        """Returns the heads in words, for the log."""
        return ", ".join(head.describe() for head in self.heads.values())

    def forward(
        self,
        x: Tensor,
        x_lens: Tensor,
        y: Tensor,
        y_lens: Tensor,
        options: LossOptions,
        chunk: ChunkSettings = FULL_CONTEXT,
        teach: Teach | None = None,
    ) -> Losses:
        """Losses of a padded batch.

        In training with ``cr_ctc_scale`` the encoder sees the batch twice, each time with other
        masks and dropout. Other losses are means over these two views.

        Args:
          x: (N, n) samples or (N, T, D) features at the level of the encoder; x_lens: (N,) int64.
          y: (N, U) int64 tokens without blanks, anything beyond y_lens; U >= 1.
          chunk: what each frame may see.
          teach: gives a teacher's outputs for the same input, under the same masks.
        """
        views = 2 if self.training and options.cr_ctc_scale > 0 else 1
        if views > 1:
            x, x_lens, y, y_lens = (torch.cat([v] * views) for v in (x, x_lens, y, y_lens))
        lesson: Lesson | None = None
        layers: list[Tensor] = []
        shared: tuple = ()  # what the encoder has in common with the teacher's
        if teach is not None:
            masks = self.encoder.draw_masks(x)
            lesson = teach(x, x_lens, masks)
            shared = (*masks, layers if lesson.layers else None)
        encoder_out, lens = self.encoder(x, x_lens, *chunk, *shared)
        # Autocast off: sums of log-probabilities over hundreds of frames need float32.
        with torch.autocast(x.device.type, enabled=False):
            losses = self.losses(encoder_out.float(), lens, y, y_lens, options, lesson)
            if layers:
                frames = self.encoder.xlsr_frames(x_lens)
                distance = layer_distance(layers, lesson.layers, frames)
                losses = losses._replace(layers=distance * y_lens)
        return Losses(*[x.view(views, -1).mean(0) for x in losses])

    def losses(
        self,
        encoder_out: Tensor,
        lens: Tensor,
        y: Tensor,
        y_lens: Tensor,
        options: LossOptions,
        lesson: Lesson | None = None,
    ) -> Losses:
        """Returns the losses of encoded utterances, without that of ``layers``.

        Args:
          encoder_out: (N, T, E) float32; lens: (N,) int64.
          y, y_lens: as ``forward`` takes them.
          lesson: a teacher's outputs for the same utterances.
        """
        is_token = torch.arange(y.shape[1], device=y.device) < y_lens.unsqueeze(1)
        y = torch.where(is_token, y, torch.zeros_like(y))
        # k2 asserts as many frames as tokens.
        padding = (0, 0, 0, max(y.shape[1] - encoder_out.shape[1], 0))
        encoder_out = F.pad(encoder_out, padding)
        taught = F.pad(lesson.encoder_out, padding) if lesson else None
        zeros = encoder_out.new_zeros(len(y))
        found: dict[str, Tensor] = {}
        distance = zeros
        for name, head in self.heads.items():
            guide = Guide(lesson.heads[name], taught) if lesson and name in lesson.heads else None
            found.update(head.losses(encoder_out, lens, y, y_lens, options, guide))
            distance = distance + found.pop("logits", zeros)
        found["logits"] = distance * y_lens
        return Losses(*[found.get(name, zeros) for name in Losses._fields])
