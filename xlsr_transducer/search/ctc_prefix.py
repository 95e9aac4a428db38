"""Prefix beam search over a CTC head: the most probable token sequences, whatever their frames.

A. Graves, N. Jaitly, "Towards end-to-end speech recognition with recurrent neural networks", ICML
2014; A. Hannun et al., "First-pass large vocabulary continuous speech recognition using
bi-directional recurrent DNNs", 2014. A prefix is a token sequence. Its log-prob is the logarithm
of the sum over all alignments that the beam has seen, kept in two parts: those whose last label
is blank, and those whose last label is the last token, which the same label continues without
emitting it again.

Beside both sums goes the best single alignment of each kind, which tells the frames of the
tokens. So there are two rows in the history for each prefix. They have the same tokens.

Sums are float64 and never made relative to each other: hours of audio lose no precision.

Letters: N streams, n streams that still have frames at a step, B prefixes per stream, G graphs
per prefix and F numbers of the language model's state (0 without a bias), T, D, V as in base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from xlsr_transducer.search.base import CtcSearch
from xlsr_transducer.search.bias import Bias, Walk, first_states
from xlsr_transducer.search.frames import search_frames
from xlsr_transducer.search.history import NEVER, History, hash_with
from xlsr_transducer.search.options import SearchOptions
from xlsr_transducer.search.token_graph import TokenGraph

BLOCK = 512  # frames whose log-probs are computed at once


class Alignments(NamedTuple):
    """Alignments of each prefix, all of a kind; -inf where there is none. All are (n, *)."""

    sum: Tensor  # float64, over their probabilities
    best: Tensor  # float64, that of the best one
    row: Tensor  # int64, where the history before the frame has the best one
    adds: Tensor  # bool, whether the frame adds a token to it

    def at(self, index: Tensor) -> Alignments:
        """Returns those of the prefixes ``index`` (n, *)."""
        return Alignments(*(x.gather(1, index) for x in self))

    def after(self, log_prob: Tensor) -> Alignments:
        """Returns them with one more label of ``log_prob`` (n, *)."""
        log_prob = log_prob.double()
        return self._replace(sum=self.sum + log_prob, best=self.best + log_prob)

    def emitting(self, log_prob: Tensor) -> Alignments:
        """Returns them with one more label, which emits a token."""
        return self.after(log_prob)._replace(adds=torch.ones_like(self.adds))

    def joined(self, other: Alignments) -> Alignments:
        """Returns those of ``self`` and of ``other`` together."""
        joined = self.replaced(other.best > self.best, other)
        return joined._replace(sum=torch.logaddexp(self.sum, other.sum))

    def replaced(self, where: Tensor, other: Alignments) -> Alignments:
        """Returns those of ``other`` where (n, *), and of ``self`` elsewhere."""
        return Alignments(*(torch.where(where, b, a) for a, b in zip(self, other)))

    def beside(self, other: Alignments) -> Alignments:
        """Returns those of the prefixes of ``self``, and after them of ``other``."""
        return Alignments(*(torch.cat(x, 1) for x in zip(self, other)))

    def only(self, where: Tensor) -> Alignments:
        """Returns them with none elsewhere."""
        sum_, best = (x.masked_fill(~where, NEVER) for x in self[:2])
        return self._replace(sum=sum_, best=best)


@dataclass(frozen=True)
class PrefixState:
    """Per stream: its prefixes. One whose sums are both -inf marks an empty place."""

    history: History  # N streams, 2 B rows each: best alignments that end in blank, in a token
    last: Tensor  # (N, B) int64, the last token; blank where there is none
    hashes: Tensor  # (N, B) int64
    sums: Tensor  # (N, 2, B) float64, over alignments that end in blank, in a token
    best: Tensor  # (N, 2, B) float64, the best of these
    num_frames: Tensor  # (N,) int64, consumed so far
    hotwords: tuple[TokenGraph, ...]  # N with a bias, else 0
    graph_state: Tensor  # (N, B, G) int64, counted from the start of the stream's graphs
    lm_state: Tensor  # (N, B, F)
    bias: Tensor  # (N, B, V) float32 what all of these add to each token; V is 0 without


class CtcPrefixBeamSearch(CtcSearch):
    """The winner has the largest log-prob, over all alignments together.

    Its tokens have the frames of its best alignment: a token's frame and log-prob are those of
    the first frame that has its label.
    """

    def __init__(self, options: SearchOptions, ctc_output: nn.Module, bias: Bias | None = None):
        """With ``bias``, prefixes walk along its graphs and its language model."""
        super().__init__(options, ctc_output)
        self.bias = bias

    def init_state(
        self,
        num_streams: int,
        device: torch.device | str = "cpu",
        hotwords: Sequence[TokenGraph | None] | None = None,
    ) -> PrefixState:
        """Returns the state of ``num_streams`` streams before their first frame.

        Args:
          hotwords: the graph of each stream; None is that of the bias.
        """
        beam = self.options.beam_size
        sums = torch.full((num_streams, 2, beam), NEVER, dtype=torch.float64, device=device)
        sums[:, 0, 0] = 0
        zeros = torch.zeros((num_streams, beam), dtype=torch.int64, device=device)
        graphs, *biased = first_states(self.bias, (num_streams, beam), device, hotwords)
        return PrefixState(
            history=History.empty(num_streams, 2 * beam, device),
            last=zeros + self.blank_id,
            hashes=zeros,
            sums=sums,
            best=sums.clone(),
            num_frames=torch.zeros(num_streams, dtype=torch.int64, device=device),
            hotwords=graphs,
            graph_state=biased[0],
            lm_state=biased[1],
            bias=biased[2],
        )

    @torch.no_grad()
    def advance(
        self, encoder_out: Tensor, encoder_out_lens: Tensor, state: PrefixState
    ) -> PrefixState:
        """Consumes the next frames of each stream (see ``Search.advance``)."""
        lens = encoder_out_lens.to(encoder_out.device)
        frames = self._frames(encoder_out, lens)
        for start in range(0, frames.shape[1], BLOCK):
            block = frames[:, start : start + BLOCK]
            state = self._advance(block, (lens - start).clamp(0, block.shape[1]), state)
        return state

    def _advance(self, frames: Tensor, lens: Tensor, state: PrefixState) -> PrefixState:
        """Consumes (N, T, D) frames, of which ``lens`` (N,) count."""
        walk = self.bias.walk(state.hotwords, lens.device) if self.bias else None
        graph_state = walk.entered(state.graph_state) if walk else state.graph_state

        def step(log_probs: Tensor, fields: tuple[Tensor, ...], num_ending: int):
            return self._step(log_probs, fields, walk)

        fields, added = search_frames(
            step,
            self._log_probs_of(frames),
            lens,
            (state.last, state.hashes, state.sums, state.best)
            + (graph_state, state.lm_state, state.bias),
            2 * self.options.beam_size,
            self.blank_id,
        )
        history = state.history.extend(*added.after(state.num_frames), self.blank_id)
        last, hashes, sums, best, graph_state, lm_state, bias = fields
        return PrefixState(
            history.settle(_live(sums)),
            last,
            hashes,
            sums,
            best,
            num_frames=state.num_frames + lens,
            hotwords=state.hotwords,
            graph_state=walk.left(graph_state) if walk else graph_state,
            lm_state=lm_state,
            bias=bias,
        )

    def _step(
        self, log_probs: Tensor, fields: tuple[Tensor, ...], walk: Walk | None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor, Tensor]]:
        """Computes one frame (n, V) of n streams (see ``frames.Step``)."""
        last, hashes, sums, best, *biased = fields
        n, beam = last.shape
        vocab_size = log_probs.shape[1]
        in_blank, in_token = _present(sums, best)
        either = in_blank.joined(in_token)
        leaving = either.beside(in_blank)  # the last token is emitted again after blank alone

        # A prefix stays as its labels go on, or as the one before it emits its last token.
        has_parent, parent = _parents(last, hashes, either.sum > NEVER, self.blank_id)
        cell = torch.where(has_parent, parent * vocab_size + last, self.blank_id)
        repeat = log_probs.gather(1, last)
        emitted = repeat + _at(biased[-1], cell) if walk else repeat
        place = parent + beam * (last.gather(1, parent) == last)
        arrived = leaving.at(place).emitting(emitted.masked_fill(~has_parent, NEVER))
        kept_blank = either.after(log_probs[:, self.blank_id, None])
        kept_token = in_token.after(repeat).joined(arrived)

        # New ones: cells (prefix, token), but for those that are at hand already.
        top = either.sum.amax(1, keepdim=True)
        relative = (leaving.sum - top).to(log_probs.dtype).unsqueeze(2)
        again = repeat.unsqueeze(2) + relative[:, beam:]
        grown = log_probs.unsqueeze(1) + relative[:, :beam]
        grown = grown.scatter(2, last.unsqueeze(2), again)
        if walk:
            grown = grown + biased[-1]
        grown[:, :, self.blank_id] = NEVER
        grown = grown.view(n, -1).scatter(1, cell, NEVER)
        stays = (torch.logaddexp(kept_blank.sum, kept_token.sum) - top).to(grown.dtype)
        score, index = torch.cat([stays, grown], 1).topk(beam)

        is_new, cell = index >= beam, (index - beam).clamp(min=0)
        source = torch.where(is_new, cell.div(vocab_size, rounding_mode="floor"), index)
        stayed = last.gather(1, source)
        token = torch.where(is_new, cell % vocab_size, stayed)
        log_prob = log_probs.gather(1, token)
        emitted = log_prob + _at(biased[-1], cell) if walk else log_prob
        born = leaving.at(source + beam * (token == stayed)).emitting(emitted)
        live = score > NEVER
        in_token = kept_token.at(source).replaced(is_new, born).only(live)
        in_blank = kept_blank.at(source).only(live & ~is_new)

        old = hashes.gather(1, source)
        hashes = torch.where(is_new, hash_with(old, token), old)
        if walk:
            row = torch.arange(n, device=source.device).unsqueeze(1) * beam + source
            fresh = is_new & live
            biased = walk.followed(biased, row.flatten(), token.flatten(), fresh.flatten())
        sums, best = (torch.stack(x, 1) for x in zip(in_blank[:2], in_token[:2]))
        added = _added(in_blank, in_token, token, log_prob, self.blank_id)
        return (token, hashes, sums, best, *biased), added

    def rank(self, state: PrefixState) -> tuple[Tensor, Tensor]:
        """Orders the prefixes by score (see ``Search.rank``)."""
        score = state.sums.logsumexp(1)
        if self.bias:
            walk = self.bias.walk(state.hotwords, score.device)
            score = score + walk.final(walk.entered(state.graph_state))
        score, which = score.sort(dim=1, descending=True, stable=True)
        in_token = (state.best[:, 1] > state.best[:, 0]).gather(1, which)
        return which + in_token * self.options.beam_size, score

    def num_stable(self, state: PrefixState) -> Tensor:
        """See ``Search.num_stable``."""
        return state.history.num_shared(_live(state.sums))


def _live(sums: Tensor) -> Tensor:
    """Returns (N, 2 B) bool, the rows of the history that belong to a prefix; ``sums`` (N, 2,
    B)."""
    return (sums > NEVER).any(1).repeat(1, 2)


def _present(sums: Tensor, best: Tensor) -> tuple[Alignments, Alignments]:
    """Returns the alignments (n, B) that end in blank, and those that end in a token; ``sums`` and
    ``best`` are (n, 2, B)."""
    row = torch.arange(2 * sums.shape[2], device=sums.device).view(2, -1).expand(sums.shape)
    adds = torch.zeros_like(row, dtype=torch.bool)
    blank, token = zip(*(x.unbind(1) for x in (sums, best, row, adds)))
    return Alignments(*blank), Alignments(*token)


def _parents(last: Tensor, hashes: Tensor, live: Tensor, blank_id: int) -> tuple[Tensor, Tensor]:
    """Finds the prefix that each one becomes without its last token. All are (n, B).

    Returns:
      whether that is at hand, and where.
    """
    grown = hash_with(hashes.unsqueeze(1), last.unsqueeze(2))
    is_parent = (grown == hashes.unsqueeze(2)) & live.unsqueeze(1)
    is_parent &= (live & (last != blank_id)).unsqueeze(2)
    return is_parent.max(2)


def _at(bias: Tensor, cell: Tensor) -> Tensor:
    """Returns (n, B) what ``bias`` (n, B, V) adds in the cells (n, B), prefix * V + token."""
    return bias.flatten(1).gather(1, cell)


def _added(
    in_blank: Alignments, in_token: Alignments, token: Tensor, log_prob: Tensor, blank_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (n, 2 B) what a frame adds to the rows of the history (see ``frames.Step``).

    A prefix that has alignments of one kind only has them in both of its rows, so that both
    always have its tokens.
    """
    blank = in_blank.replaced(in_blank.best == NEVER, in_token)
    both = blank.beside(in_token.replaced(in_token.best == NEVER, in_blank))
    token, log_prob = (x.repeat(1, 2) for x in (token, log_prob))
    return both.row, token.masked_fill(~both.adds, blank_id), log_prob
