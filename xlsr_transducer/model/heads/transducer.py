"""The transducer: stateless decoder, joiner, and the losses that train them.

A. Graves, "Sequence transduction with recurrent neural networks", 2012; F. Kuang et al.,
"Pruned RNN-T for fast, memory-efficient ASR training", Interspeech 2022.
Letters: N batch, T encoder frames, U tokens, V vocabulary, R prune range.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlsr_transducer.core.options import Options, option
from xlsr_transducer.loss import get_backend
from xlsr_transducer.model.decoder import Decoder
from xlsr_transducer.model.distillation import divergence, mean_over
from xlsr_transducer.model.heads.base import Guide, Head, LossOptions
from xlsr_transducer.model.joiner import Joiner


@dataclasses.dataclass(frozen=True)
class TransducerOptions(Options):
    """Decoder and joiner."""

    decoder_dim: int = option(512, "width of the decoder", at_least=1, at_most=65536)
    joiner_dim: int = option(512, "width of the joiner", at_least=1, at_most=65536)
    context_size: int = option(2, "tokens that the decoder sees", at_least=1, at_most=64)


class TransducerHead(Head):
    """Decoder and joiner, with the two projections of the simple loss."""

    def __init__(self, width: int, options: TransducerOptions, vocab_size: int, dropout: float):
        super().__init__()
        dim = options.decoder_dim
        self.decoder = Decoder(vocab_size, dim, options.context_size)
        self.joiner = Joiner(width, dim, options.joiner_dim, vocab_size)
        self.decoder_dropout = nn.Dropout(dropout)
        self.simple_am_proj = nn.Linear(width, vocab_size)
        self.simple_lm_proj = nn.Linear(dim, vocab_size)

    def losses(
        self,
        encoder_out: Tensor,
        lens: Tensor,
        y: Tensor,
        y_lens: Tensor,
        options: LossOptions,
        guide: Guide | None = None,
    ) -> dict[str, Tensor]:
        """Returns ``simple`` and ``pruned`` (see ``Head.losses``)."""
        decoder_out = self.decoder_dropout(self.decoder(F.pad(y, (1, 0))))
        boundary = torch.zeros(y.shape[0], 4, dtype=torch.int64, device=y.device)
        boundary[:, 2], boundary[:, 3] = y_lens, lens
        simple, ranges = self._simple_loss(encoder_out, decoder_out, y, boundary, options)
        logits = self._pruned_logits(encoder_out, decoder_out, ranges, options)
        pruned = self._pruned_loss(logits, y, ranges, boundary, options)
        found = {"simple": simple, "pruned": pruned}
        if guide is not None:
            decoded = guide.head.decoder(F.pad(y, (1, 0)))
            theirs = guide.head._pruned_logits(guide.encoder_out, decoded, ranges, options)
            frames = torch.arange(ranges.shape[1], device=ranges.device).view(1, -1, 1)
            is_cell = (frames < lens.view(-1, 1, 1)) & (ranges <= y_lens.view(-1, 1, 1))
            found["logits"] = mean_over(divergence(logits, theirs), is_cell)
        return found

    def describe(self) -> str:
        """Returns ``transducer over 500 tokens``."""
        return f"transducer over {self.decoder.vocab_size} tokens"

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

    def _pruned_logits(
        self, encoder_out: Tensor, decoder_out: Tensor, ranges: Tensor, options: LossOptions
    ) -> Tensor:
        """Returns the joiner's output at the cells of the lattice in ``ranges`` (N, T, R):
        (N, T, R, V)."""
        k2 = get_backend(options.loss_backend)
        am, lm = k2.do_rnnt_pruning(
            am=self.joiner.encoder_proj(encoder_out),
            lm=self.joiner.decoder_proj(decoder_out),
            ranges=ranges,
        )
        return self.joiner(am, lm, project_input=False)

    def _pruned_loss(
        self, logits: Tensor, y: Tensor, ranges: Tensor, boundary: Tensor, options: LossOptions
    ) -> Tensor:
        k2 = get_backend(options.loss_backend)
        return k2.rnnt_loss_pruned(
            logits=logits,
            symbols=y,
            ranges=ranges,
            termination_symbol=self.decoder.blank_id,
            boundary=boundary,
            rnnt_type=options.rnnt_type,
            delay_penalty=options.delay_penalty,
            reduction="none",
        )
