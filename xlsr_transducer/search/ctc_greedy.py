"""Greedy search by the CTC head: the best label of each frame, repeats and blanks taken out.

A. Graves et al., "Connectionist temporal classification", ICML 2006. Decoder and joiner are not
used.

Letters: N streams, T frames, V tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xlsr_transducer.search.base import CtcSearch
from xlsr_transducer.search.history import History

BLOCK = 4096  # frames whose log-probs are computed at once


@dataclass(frozen=True)
class CtcState:
    """Per stream: its tokens so far, and the label of its last frame, not emitted again."""

    history: History  # N streams, one hypothesis each
    label: Tensor  # (N,) int64
    num_frames: Tensor  # (N,) int64, consumed so far
    score: Tensor  # (N,) float64, log-prob of the best label of every frame


class CtcGreedySearch(CtcSearch):
    """A token's frame and log-prob are those of the first frame that has its label."""

    def init_state(self, num_streams: int, device: torch.device | str = "cpu") -> CtcState:
        """Returns the state of ``num_streams`` streams before their first frame."""
        return CtcState(
            history=History.empty(num_streams, 1, device),
            label=torch.full((num_streams,), self.blank_id, device=device),
            num_frames=torch.zeros(num_streams, dtype=torch.int64, device=device),
            score=torch.zeros(num_streams, dtype=torch.float64, device=device),
        )

    @torch.no_grad()
    def advance(self, encoder_out: Tensor, encoder_out_lens: Tensor, state: CtcState) -> CtcState:
        """Consumes the next frames of each stream (see ``Search.advance``)."""
        lens = encoder_out_lens.to(encoder_out.device)
        frames = self._frames(encoder_out, lens)
        # Of hours of audio, the log-probs of all tokens would take gigabytes.
        best = [self._log_probs_of(x).max(-1) for x in frames.split(BLOCK, dim=1)]
        log_probs, labels = (torch.cat(x, dim=1) for x in zip(*best))
        column = torch.arange(labels.shape[1], device=lens.device)
        inside = column < lens.unsqueeze(1)
        labels = torch.cat([state.label.unsqueeze(1), labels], 1)
        repeats = labels[:, 1:] == labels[:, :-1]
        tokens = labels[:, 1:].masked_fill(repeats | ~inside, self.blank_id)
        at = column + state.num_frames.unsqueeze(1)
        return CtcState(
            history=state.history.extend_single(tokens, at, log_probs, self.blank_id),
            label=labels.gather(1, lens.unsqueeze(1))[:, 0],
            num_frames=state.num_frames + lens,
            score=state.score + log_probs.masked_fill(~inside, 0).double().sum(1),
        )

    def rank(self, state: CtcState) -> tuple[Tensor, Tensor]:
        """Returns (N, 1) the one hypothesis of each stream and its score."""
        return state.history.rank(state.score.unsqueeze(1), self.context_size)
