"""The transducer: encoder, stateless decoder, joiner, and the losses that train them.

A. Graves, "Sequence transduction with recurrent neural networks", 2012; F. Kuang et al.,
"Pruned RNN-T for fast, memory-efficient ASR training", Interspeech 2022.
Letters: N batch, T encoder frames, U tokens, V vocabulary, R prune range.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Options, option
from xlsr_transducer.loss import get_backend
from xlsr_transducer.loss.backend import BACKENDS
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.decoder import Decoder
from xlsr_transducer.model.encoder import XLSREncoder
from xlsr_transducer.model.joiner import Joiner

FULL_CONTEXT = ChunkSettings()


@dataclasses.dataclass(frozen=True)
class TransducerOptions(Options):
    """Decoder and joiner."""

    decoder_dim: int = option(512, "width of the decoder", at_least=1, at_most=65536)
    joiner_dim: int = option(512, "width of the joiner", at_least=1, at_most=65536)
    context_size: int = option(2, "tokens that the decoder sees", at_least=1, at_most=64)


@dataclasses.dataclass(frozen=True)
class LossOptions(Options):
    """Loss."""

    prune_range: int = option(5, "symbols per frame that the pruned loss looks at", at_least=1)
    lm_scale: float = option(
        0.25, "smoothing of the simple loss with decoder-only scores", at_least=0, at_most=1
    )
    am_scale: float = option(
        0.0, "smoothing of the simple loss with encoder-only scores", at_least=0, at_most=1
    )
    simple_loss_scale: float = option(0.5, "weight of the simple loss after warm-up", at_least=0)
    ctc_loss_scale: float = option(
        0.0, "weight of the CTC head's loss; 0: no such head", at_least=0
    )
    cr_ctc_scale: float = option(
        0.0,
        "weight of agreement of the CTC head on two views (CR-CTC), which doubles a batch",
        at_least=0,
    )
    warm_step: int | None = option(
        None,
        "steps over which the pruned loss takes over from the simple one (default: 15 % of the "
        "training's steps, 2,000 at most)",
        at_least=0,
    )
    rnnt_type: str = option("regular", "topology", ("regular", "modified", "constrained"))
    delay_penalty: float = option(0.0, "reward for emitting early, per frame", at_least=0)
    loss_backend: str = option("auto", "whose losses: k2's where it imports, or ours", BACKENDS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rnnt_type == "regular" and self.prune_range < 2:
            raise UserError(
                f"--prune-range {self.prune_range}: must be at least 2 with --rnnt-type regular"
            )
        if self.lm_scale + self.am_scale > 1:
            raise UserError(
                f"--lm-scale {self.lm_scale} and --am-scale {self.am_scale}: must be 1 at most "
                "together"
            )
        if self.cr_ctc_scale > 0 and self.ctc_loss_scale <= 0:
            raise UserError(
                f"--cr-ctc-scale {self.cr_ctc_scale} needs the CTC head: give --ctc-loss-scale too"
            )

    def scales(self, step: int) -> tuple[float, float]:
        """Weights of simple and pruned loss: from (1, 0.1) to (simple_loss_scale, 1)."""
        done = min(step / self.warm_step, 1.0) if self.warm_step else 1.0
        return 1.0 + done * (self.simple_loss_scale - 1.0), 0.1 + done * 0.9

    def weighted(self, losses: TransducerLosses, step: int) -> Tensor:
        """Returns the loss of each utterance that training lowers: (N,)."""
        simple_scale, pruned_scale = self.scales(step)
        return (
            losses.simple * simple_scale
            + losses.pruned * pruned_scale
            + losses.ctc * self.ctc_loss_scale
            + losses.consistency * self.cr_ctc_scale
        )


class TransducerLosses(NamedTuple):
    """Per utterance, (N,) float32: negative log-probabilities in nats.

    Infinite where no path exists: CTC with fewer frames than tokens (and blanks between equal
    ones), the modified and constrained topologies with fewer frames than tokens.
    """

    simple: Tensor
    pruned: Tensor
    ctc: Tensor  # zeros without a CTC head
    consistency: Tensor  # of the CTC head's two views of an utterance; zeros without them


class Transducer(nn.Module):
    """Encoder, decoder and joiner, with the two projections of the simple loss."""

    def __init__(
        self,
        encoder: XLSREncoder,
        options: TransducerOptions,
        vocab_size: int,
        dropout: float = 0.0,
        has_ctc: bool = False,
    ):
        super().__init__()
        width, dim = encoder.output_dim, options.decoder_dim
        self.encoder = encoder
        self.decoder = Decoder(vocab_size, dim, options.context_size)
        self.joiner = Joiner(width, dim, options.joiner_dim, vocab_size)
        self.decoder_dropout = nn.Dropout(dropout)
        self.simple_am_proj = nn.Linear(width, vocab_size)
        self.simple_lm_proj = nn.Linear(dim, vocab_size)
        self.ctc_output = nn.Linear(width, vocab_size) if has_ctc else None

    def forward(
        self,
        x: Tensor,
        x_lens: Tensor,
        y: Tensor,
        y_lens: Tensor,
        options: LossOptions,
        chunk: ChunkSettings = FULL_CONTEXT,
    ) -> TransducerLosses:
        """Losses of a padded batch.

        In training with ``cr_ctc_scale`` the encoder sees the batch twice, each time with other
        masks and dropout. Other losses are means over these two views.

        Args:
          x: (N, n) samples or (N, T, D) features at the level of the encoder; x_lens: (N,) int64.
          y: (N, U) int64 tokens without blanks, anything beyond y_lens; U >= 1.
          chunk: what each frame may see.
        """
        views = 2 if self.training and options.cr_ctc_scale > 0 else 1
        if views > 1:
            x, x_lens, y, y_lens = (torch.cat([v] * views) for v in (x, x_lens, y, y_lens))
        encoder_out, lens = self.encoder(x, x_lens, *chunk)
        # Autocast off: sums of log-probabilities over hundreds of frames need float32.
        with torch.autocast(x.device.type, enabled=False):
            losses = self.losses(encoder_out.float(), lens, y, y_lens, options)
        return TransducerLosses(*[x.view(views, -1).mean(0) for x in losses])

    def losses(
        self, encoder_out: Tensor, lens: Tensor, y: Tensor, y_lens: Tensor, options: LossOptions
    ) -> TransducerLosses:
        """Returns the losses of encoded utterances.

        Args:
          encoder_out: (N, T, E) float32; lens: (N,) int64.
          y, y_lens: as ``forward`` takes them.
        """
        is_token = torch.arange(y.shape[1], device=y.device) < y_lens.unsqueeze(1)
        y = torch.where(is_token, y, torch.zeros_like(y))
        decoder_out = self.decoder_dropout(self.decoder(F.pad(y, (1, 0))))
        boundary = torch.zeros(y.shape[0], 4, dtype=torch.int64, device=y.device)
        boundary[:, 2], boundary[:, 3] = y_lens, lens
        if (
            missing := y.shape[1] - encoder_out.shape[1]
        ) > 0:  # k2 asserts as many frames as tokens
            encoder_out = F.pad(encoder_out, (0, 0, 0, missing))
        simple, ranges = self._simple_loss(encoder_out, decoder_out, y, boundary, options)
        pruned = self._pruned_loss(encoder_out, decoder_out, y, ranges, boundary, options)
        if self.ctc_output is None:
            return TransducerLosses(simple, pruned, *[encoder_out.new_zeros(len(y))] * 2)
        log_probs = self.ctc_output(encoder_out).log_softmax(-1)
        ctc = F.ctc_loss(
            log_probs.transpose(0, 1),
            y,
            lens,
            y_lens,
            self.decoder.blank_id,
            reduction="none",
            zero_infinity=True,  # or else the gradients of the others would be NaN
        )
        ctc = ctc.masked_fill(frames_of_ctc(y, y_lens) > lens, float("inf"))
        if self.training and options.cr_ctc_scale > 0:
            return TransducerLosses(simple, pruned, ctc, consistency(log_probs, lens))
        return TransducerLosses(simple, pruned, ctc, torch.zeros_like(ctc))

    def _simple_loss(
        self, am: Tensor, lm: Tensor, y: Tensor, boundary: Tensor, options: LossOptions
    ) -> tuple[Tensor, Tensor]:
        k2 = get_backend(options.loss_backend)
        loss, (px_grad, py_grad) = k2.rnnt_loss_smoothed(
            lm=self.simple_lm_proj(lm),
            am=self.simple_am_proj(am),
            symbols=y,
            termination_symbol=self.decoder.blank_id,
            lm_only_scale=options.lm_scale,
            am_only_scale=options.am_scale,
            boundary=boundary,
            rnnt_type=options.rnnt_type,
            delay_penalty=options.delay_penalty,
            reduction="none",
            return_grad=True,
        )
        ranges = k2.get_rnnt_prune_ranges(
            px_grad=px_grad, py_grad=py_grad, boundary=boundary, s_range=options.prune_range
        )
        return loss, ranges

    def _pruned_loss(
        self,
        encoder_out: Tensor,
        decoder_out: Tensor,
        y: Tensor,
        ranges: Tensor,
        boundary: Tensor,
        options: LossOptions,
    ) -> Tensor:
        k2 = get_backend(options.loss_backend)
        am, lm = k2.do_rnnt_pruning(
            am=self.joiner.encoder_proj(encoder_out),
            lm=self.joiner.decoder_proj(decoder_out),
            ranges=ranges,
        )
        return k2.rnnt_loss_pruned(
            logits=self.joiner(am, lm, project_input=False),  # (N, T, R, V)
            symbols=y,
            ranges=ranges,
            termination_symbol=self.decoder.blank_id,
            boundary=boundary,
            rnnt_type=options.rnnt_type,
            delay_penalty=options.delay_penalty,
            reduction="none",
        )


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

    Z. Yao et al., "CR-CTC: Consistency regularization on CTC", ICLR 2025: the divergence of each
    view from the other, which it takes as given, summed over frames.

    Args:
      log_probs: (2 N, T, V), the second view after the first; lens: (2 N,) int64.

    Returns:
      (2 N,): its mean over an utterance's two rows is the utterance's loss.
    """
    other = log_probs.roll(len(log_probs) // 2, dims=0).detach()
    divergence = F.kl_div(log_probs, other, reduction="none", log_target=True).sum(2)
    is_frame = torch.arange(log_probs.shape[1], device=lens.device) < lens.unsqueeze(1)
    return divergence.masked_fill(~is_frame, 0.0).sum(1)
