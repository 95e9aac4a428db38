"""Modified beam search: at most one token per frame, equal token sequences merged.

All hypotheses of all streams advance together, one frame per step. Token sequences are never
compared: each hypothesis carries a 64-bit rolling hash, and equal hashes are merged by
log-addition. The best score of a stream is kept apart in float64 and the others relative to
it in float32, so hour-long streams lose no precision.

With a ``Bias`` every hypothesis also walks along graphs of tokens and has a state of a neural
language model, whose weights are added to the log-probs before the best are chosen: a hotword that
the model puts low is still seen.

Letters: N streams, n streams that still have frames at a step, B hypotheses per stream,
G graphs per hypothesis and F numbers of the language model's state (0 without a bias), T, J, V, C
as in base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xlsr_transducer.search.base import Search
from xlsr_transducer.search.bias import Bias, Walk, first_states
from xlsr_transducer.search.frames import search_frames
from xlsr_transducer.search.history import History, hash_with
from xlsr_transducer.search.options import SearchOptions
from xlsr_transducer.search.token_graph import TokenGraph


@dataclass(frozen=True)
class BeamState:
    """Per stream: its live hypotheses. A score of -inf marks an empty place."""

    history: History  # N streams, B hypotheses each
    context: Tensor  # (N, B, C) int64
    decoder_side: Tensor  # (N, B, J)
    score: Tensor  # (N, B) float32, relative to `offset`
    offset: Tensor  # (N,) float64
    hashes: Tensor  # (N, B) int64
    num_frames: Tensor  # (N,) int64, consumed so far
    hotwords: tuple[TokenGraph, ...]  # N with a bias, else 0
    graph_state: Tensor  # (N, B, G) int64, counted from the start of the stream's graphs
    lm_state: Tensor  # (N, B, F)
    bias: Tensor  # (N, B, V) float32 what all of these add to each token; V is 0 without


class ModifiedBeamSearch(Search):
    """The winner has the largest log-prob / (tokens + context size), as icefall has it."""

    def __init__(
        self,
        options: SearchOptions,
        decoder: nn.Module,
        joiner: nn.Module,
        bias: Bias | None = None,
    ):
        """With ``bias``, streams walk along its graphs and its language model."""
        super().__init__(options, decoder, joiner)
        self.bias = bias

    def init_state(
        self,
        num_streams: int,
        device: torch.device | str = "cpu",
        hotwords: Sequence[TokenGraph | None] | None = None,
    ) -> BeamState:
        """Returns the state of ``num_streams`` streams before their first frame.

        Args:
          hotwords: the graph of each stream; None is that of the bias.
        """
        shape = (num_streams, self.options.beam_size)
        context = self._first_context(1, device)
        with torch.no_grad():
            decoder_side = self._project_context(context)
        score = torch.full(shape, -float("inf"), device=device)
        score[:, 0] = 0
        graphs, *biased = first_states(self.bias, shape, device, hotwords)
        return BeamState(
            history=History.empty(*shape, device),
            context=context.repeat(*shape, 1),
            decoder_side=decoder_side.repeat(*shape, 1),
            score=score,
            offset=torch.zeros(num_streams, dtype=torch.float64, device=device),
            hashes=torch.zeros(shape, dtype=torch.int64, device=device),
            num_frames=torch.zeros(num_streams, dtype=torch.int64, device=device),
            hotwords=graphs,
            graph_state=biased[0],
            lm_state=biased[1],
            bias=biased[2],
        )

    @torch.no_grad()
    def advance(
        self, encoder_out: Tensor, encoder_out_lens: Tensor, state: BeamState
    ) -> BeamState:
        """Consumes the next frames of each stream (see ``Search.advance``)."""
        lens = encoder_out_lens.to(encoder_out.device)
        encoder_side = self._project_encoder(encoder_out, lens)
        if encoder_side.shape[1] == 0:
            return state
        walk = self.bias.walk(state.hotwords, lens.device) if self.bias else None
        graph_state = walk.entered(state.graph_state) if walk else state.graph_state

        def step(encoder_side: Tensor, fields: tuple[Tensor, ...], num_ending: int):
            return self._step(encoder_side, fields, walk)

        fields = (state.context, state.decoder_side, state.score, state.offset, state.hashes)
        fields, added = search_frames(
            step,
            encoder_side,
            lens,
            (*fields, graph_state, state.lm_state, state.bias),
            self.options.beam_size,
            self.blank_id,
        )
        history = state.history.extend(*added.after(state.num_frames), self.blank_id)
        *fields, graph_state, lm_state, bias = fields
        live = fields[2] > -float("inf")
        return BeamState(
            history.settle(live),
            *fields,
            num_frames=state.num_frames + lens,
            hotwords=state.hotwords,
            graph_state=walk.left(graph_state) if walk else graph_state,
            lm_state=lm_state,
            bias=bias,
        )

    def _step(
        self, encoder_side: Tensor, fields: tuple[Tensor, ...], walk: Walk | None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor, Tensor]]:
        """Computes one frame of n streams (see ``frames.Step``)."""
        context, decoder_side, score, offset, hashes, *biased = fields
        n, beam = score.shape
        log_probs = self._log_probs(encoder_side.unsqueeze(1), decoder_side)
        vocab_size = log_probs.shape[2]
        total = log_probs.float() + score.unsqueeze(2)
        if walk:
            total = total + biased[-1]
        score, index = total.view(n, -1).topk(beam)
        parent = index.div(vocab_size, rounding_mode="floor")
        token = index - parent * vocab_size
        log_prob = log_probs.view(n, -1).gather(1, index)

        emits = token != self.blank_id
        hashes = hashes.gather(1, parent)
        hashes = torch.where(emits, hash_with(hashes, token), hashes)
        context = context.gather(1, parent.unsqueeze(2).expand(-1, -1, context.shape[2]))
        longer = torch.cat([context[:, :, 1:], token.unsqueeze(2)], 2)
        context = torch.where(emits.unsqueeze(2), longer, context)
        score, source = _merge(score, hashes, emits)

        # Only a context that no hypothesis of the last frame had needs the decoder.
        first = torch.arange(n, device=parent.device).unsqueeze(1) * beam
        row = (first + parent.gather(1, source)).flatten()
        fresh = emits.gather(1, source) & (score > -float("inf"))
        decoder_side = self._renewed(
            decoder_side.reshape(n * beam, -1)[row],
            context.view(n * beam, -1),
            fresh.flatten(),
        ).view(n, beam, -1)
        if walk:
            biased = walk.followed(biased, row, token.flatten(), fresh.flatten())
        best = score.max(1).values
        score = score - best.unsqueeze(1)
        fields = (context, decoder_side, score, offset + best, hashes, *biased)
        return fields, (parent, token, log_prob)

    def rank(self, state: BeamState) -> tuple[Tensor, Tensor]:
        """Orders different token sequences by length-normalised score (see ``Search.rank``)."""
        score = state.score + state.offset.unsqueeze(1)
        if self.bias:
            walk = self.bias.walk(state.hotwords, score.device)
            score = score + walk.final(walk.entered(state.graph_state))
        return state.history.rank(score, self.context_size)


def _merge(score: Tensor, hashes: Tensor, emits: Tensor) -> tuple[Tensor, Tensor]:
    """Merges hypotheses with equal tokens into the first, which has the highest score.

    Args:
      score, hashes: (n, B), scores in descending order; -inf marks an empty place.
      emits: (n, B) whether the hypothesis came by a token (else by blank).

    Returns:
      the scores (n, B), -inf for those merged into another; and for each place the member of
      its group whose decoder output is known already, itself if there is none.
    """
    live = score > -float("inf")
    same = (hashes.unsqueeze(2) == hashes.unsqueeze(1)) & live.unsqueeze(2) & live.unsqueeze(1)
    place = torch.arange(score.shape[1], device=score.device)
    is_first = same.to(torch.uint8).argmax(2) == place
    group = score.unsqueeze(1).masked_fill(~same, -float("inf"))
    merged = group.logsumexp(2).masked_fill(~(is_first & live), -float("inf"))
    stayed = same & ~emits.unsqueeze(1)
    source = torch.where(stayed.any(2), stayed.to(torch.uint8).argmax(2), place)
    return merged, source
