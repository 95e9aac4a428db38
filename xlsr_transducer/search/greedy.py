"""Greedy search: the best token of each frame, batched over streams.

As long as a stream emits blanks its decoder output stays the same, so the joiner is evaluated
on a block of frames at once and the search jumps to the first token in it. Few streams take
long blocks, many take short ones: the joiner always has enough rows to be worth a call.

Letters: N streams, A streams not yet at their end, K frames of a block, T, J, V, C as in base.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xlsr_transducer.search.base import Search
from xlsr_transducer.search.history import History

# Joiner rows per step that are nearly as cheap as one.
ROWS_PER_STEP = {"cpu": 32, "cuda": 4096}
MIN_BLOCK = 4
MAX_BLOCK = 16


@dataclass(frozen=True)
class GreedyState:
    """Per stream: its tokens so far, and the decoder side that follows from them."""

    history: History  # N streams, one hypothesis each
    context: Tensor  # (N, C) int64
    decoder_side: Tensor  # (N, J)
    num_frames: Tensor  # (N,) int64, consumed so far
    score: Tensor  # (N,) float64, log-prob of all decisions


class GreedySearch(Search):
    """At most ``max_sym_per_frame`` tokens per frame, each the most probable one."""

    def init_state(self, num_streams: int, device: torch.device | str = "cpu") -> GreedyState:
        """Returns the state of ``num_streams`` streams before their first frame."""
        context = self._first_context(num_streams, device)
        with torch.no_grad():
            decoder_side = self._project_context(context[:1]).repeat(num_streams, 1)
        return GreedyState(
            history=History.empty(num_streams, 1, device),
            context=context,
            decoder_side=decoder_side,
            num_frames=torch.zeros(num_streams, dtype=torch.int64, device=device),
            score=torch.zeros(num_streams, dtype=torch.float64, device=device),
        )

    @torch.no_grad()
    def advance(
        self, encoder_out: Tensor, encoder_out_lens: Tensor, state: GreedyState
    ) -> GreedyState:
        """Consumes the next frames of each stream (see ``Search.advance``)."""
        lens = encoder_out_lens.to(encoder_out.device)
        encoder_side = self._project_encoder(encoder_out, lens)
        context, decoder_side = state.context.clone(), state.decoder_side.clone()
        score = state.score.clone()
        at = torch.zeros_like(lens)  # next frame of each stream
        here = torch.zeros_like(lens)  # tokens already emitted in that frame
        # One place for each token that a frame may hold.
        per_frame = self.options.max_sym_per_frame
        places = (len(lens), encoder_side.shape[1] * per_frame)
        tokens = torch.full(places, self.blank_id, device=lens.device)
        log_probs = torch.zeros(places, device=lens.device)
        while True:
            rows = (at < lens).nonzero()[:, 0]
            if len(rows) == 0:
                break
            start = at[rows]
            token, frame, log_prob, passed = self._next_token(
                encoder_side, lens[rows], rows, start, decoder_side
            )
            score[rows] += passed
            emits = token != self.blank_id
            before = here[rows] * (frame == start)
            place = frame * per_frame + before
            tokens[rows, place], log_probs[rows, place] = token, log_prob
            stays = emits & (before + 1 < per_frame)
            at[rows] = torch.where(stays, frame, frame + 1)
            here[rows] = (before + 1) * stays

            chosen = emits.nonzero()[:, 0]
            if len(chosen):
                grown = rows[chosen]
                longer = torch.cat([context[grown, 1:], token[chosen].unsqueeze(1)], 1)
                context[grown] = longer
                decoder_side[grown] = self._project_context(longer).to(decoder_side.dtype)
        frames = torch.arange(places[1], device=lens.device).div(per_frame, rounding_mode="floor")
        frames = frames + state.num_frames.unsqueeze(1)
        return GreedyState(
            history=state.history.extend_single(tokens, frames, log_probs, self.blank_id),
            context=context,
            decoder_side=decoder_side,
            num_frames=state.num_frames + lens,
            score=score,
        )

    def _next_token(
        self, encoder_side: Tensor, ends: Tensor, rows: Tensor, start: Tensor, decoder_side: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Looks for the next token of the streams ``rows`` within a block of frames.

        Args:
          ends, start: (A,) the first frame past each stream's end, and the next one to look at.

        Returns:
          token (A,), blank if there is none in the block; the frame (A,) of the token, or the
          last one looked at; its log-prob (A,); the log-prob of all decisions made (A,).
        """
        _, num_frames, width = encoder_side.shape
        budget = ROWS_PER_STEP.get(rows.device.type, ROWS_PER_STEP["cpu"])
        size = min(max(budget // len(rows), MIN_BLOCK), MAX_BLOCK, num_frames)
        column = torch.arange(size, device=rows.device)
        ends = ends.unsqueeze(1)
        frames = start.unsqueeze(1) + column
        inside = frames < ends
        frames = torch.minimum(frames, ends - 1)
        index = (rows.unsqueeze(1) * num_frames + frames).flatten()
        block = encoder_side.reshape(-1, width).index_select(0, index).view(-1, size, width)
        log_probs = self._log_probs(block, decoder_side[rows].unsqueeze(1)).float()
        best, tokens = log_probs.max(-1)
        emits = (tokens != self.blank_id) & inside
        # The first token; without any, the last frame (those past the end repeat it).
        first, stop = emits.max(1)
        stop = torch.where(first, stop, size - 1).unsqueeze(1)
        passed = best.masked_fill(~inside | (column > stop), 0).sum(1)
        token, frame, log_prob = (x.gather(1, stop)[:, 0] for x in (tokens, frames, best))
        return token.masked_fill(~first, self.blank_id), frame, log_prob, passed

    def rank(self, state: GreedyState) -> tuple[Tensor, Tensor]:
        """Returns (N, 1) the one hypothesis of each stream and its score."""
        return state.history.rank(state.score.unsqueeze(1), self.context_size)
