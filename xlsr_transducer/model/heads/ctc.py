"""CTC: a linear layer, the loss over all alignments, and the agreement of two views.

A. Graves et al., "Connectionist temporal classification", ICML 2006; Z. Yao et al., "CR-CTC:
Consistency regularization on CTC", ICLR 2025. Letters: N batch, T frames, U tokens, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlsr_transducer.model.distillation import divergence, mean_over
from xlsr_transducer.model.heads.base import Guide, Head, LossOptions

BLANK_ID = 0


class CtcHead(Head):
    """From encoder output (*, E) to logits (*, V); token 0 is the blank."""

    def __init__(self, width: int, vocab_size: int):
        super().__init__()
        self.output = nn.Linear(width, vocab_size)

    def losses(
        self,
        encoder_out: Tensor,
        lens: Tensor,
        y: Tensor,
        y_lens: Tensor,
        options: LossOptions,
        guide: Guide | None = None,
    ) -> dict[str, Tensor]:
        """Returns ``ctc``, and in training with ``cr_ctc_scale`` also ``consistency`` (see
        ``Head.losses``)."""
        logits = self.output(encoder_out)
        log_probs = logits.log_softmax(-1)
        ctc = F.ctc_loss(
            log_probs.transpose(0, 1),
            y,
            lens,
            y_lens,
            BLANK_ID,
            reduction="none",
            zero_infinity=True,  # or else the gradients of the others would be NaN
        )
        found = {"ctc": ctc.masked_fill(frames_of_ctc(y, y_lens) > lens, float("inf"))}
        if self.training and options.cr_ctc_scale > 0:
            found["consistency"] = consistency(log_probs, lens)
        if guide is not None:
            distance = divergence(logits, guide.head.output(guide.encoder_out))
            is_frame = torch.arange(logits.shape[1], device=lens.device) < lens.unsqueeze(1)
            found["logits"] = mean_over(distance, is_frame)
        return found

    def describe(self) -> str:
        """Returns ``CTC over 500 tokens``."""
        return f"CTC over {self.output.out_features} tokens"


def frames_of_ctc(y: Tensor, y_lens: Tensor) -> Tensor:
    """Returns the least frames in which CTC can emit the tokens, with a blank between equal ones:
    (N,).

    Args:
      y: (N, U) int64, anything beyond y_lens; y_lens: (N,) int64.
    """
    is_repeated = y[:, 1:] == y[:, :-1]
    is_token = torch.arange(1, y.shape[1], device=y.device) < y_lens.unsqueeze(1)
    return y_lens + (is_repeated & is_token).sum(1)


def consistency(log_probs: Tensor, lens: Tensor) -> Tensor:
    """Returns how far two views of the same utterances disagree, as each sees the other.

    The divergence of each view from the other, which it takes as given, summed over frames.

    Args:
      log_probs: (2 N, T, V), the second view after the first; lens: (2 N,) int64.

    Returns:
      (2 N,): its mean over an utterance's two rows is the utterance's loss.
    """
    other = log_probs.roll(len(log_probs) // 2, dims=0).detach()
    distance = F.kl_div(log_probs, other, reduction="none", log_target=True).sum(2)
    is_frame = torch.arange(log_probs.shape[1], device=lens.device) < lens.unsqueeze(1)
    return distance.masked_fill(~is_frame, 0.0).sum(1)
