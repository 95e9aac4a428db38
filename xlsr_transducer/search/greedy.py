"""Greedy search: the best token of each frame, batched over streams.

As long as a stream emits blanks its decoder output stays the same, so the joiner is evaluated
on a block of frames at once and the search jumps to the first token in it. Few streams take
long blocks, many take short ones: the joiner always has enough rows to be worth a call.

Letters: N streams, A streams not yet at their end, K frames of a block, T, J, V, C as in base.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from xlsr_transducer.search.base import Search
from xlsr_transducer.search.history import History
from xlsr_transducer.search.hypothesis import Hypothesis

# Joiner rows per step that are nearly as cheap as one.
ROWS_PER_STEP = {"cpu": 32, "cuda": 4096}
MIN_BLOCK = 4
MAX_BLOCK = 16


@dataclass(frozen=True)
class GreedyState:
    """Per stream: what it has said, and the decoder side that follows from it."""

    history: History  # N streams, one hypothesis each
    context: Tensor  # (N, C) int64
    decoder_side: Tensor  # (N, J)
    num_frames: Tensor  # (N,) int64, consumed so far
    score: Tensor  # (N,) float64, log-prob of all decisions


class GreedySearch(Search):
    """At most ``max_sym_per_frame`` tokens per frame, each the most probable one."""

    def init_state(self, num_streams: int, device: torch.device | str = "cpu") -> GreedyState:
        """The state of ``num_streams`` streams before their first frame."""
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
        steps: list[tuple[Tensor, Tensor, Tensor]] = []
        while True:
            rows = (at < lens).nonzero()[:, 0]
            if len(rows) == 0:
                break
            token, frame, log_prob, passed = self._next_token(
                encoder_side, lens, rows, at, decoder_side
            )
            score[rows] += passed
            emits = token != self.blank_id
            here[rows] = torch.where(emits, here[rows] * (frame == at[rows]) + 1, 0)
            full = here[rows] >= self.options.max_sym_per_frame
            at[rows] = torch.where(emits & ~full, frame, frame + 1)
            here[rows] = here[rows].masked_fill(full, 0)

            spoke = rows[emits]
            if len(spoke):
                said = token[emits]
                context[spoke] = torch.cat([context[spoke][:, 1:], said.unsqueeze(1)], 1)
                decoder_side[spoke] = self._project_context(context[spoke])
            steps.append(_scattered(rows, token, frame, log_prob, len(lens), self.blank_id))
        return replace(
            state,
            history=self._extended(state, steps),
            context=context,
            decoder_side=decoder_side,
            num_frames=state.num_frames + lens,
            score=score,
        )

    def _next_token(
        self, encoder_side: Tensor, lens: Tensor, rows: Tensor, at: Tensor, decoder_side: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Looks for the next token of the streams ``rows`` within a block of frames.

        Returns:
          token (A,), blank if there is none in the block; the frame (A,) of the token, or the
          last one looked at; its log-prob (A,); the log-prob of all decisions made (A,).
        """
        budget = ROWS_PER_STEP.get(rows.device.type, ROWS_PER_STEP["cpu"])
        block = min(max(budget // len(rows), MIN_BLOCK), MAX_BLOCK, encoder_side.shape[1])
        frames = at[rows].unsqueeze(1) + torch.arange(block, device=rows.device)
        ends = lens[rows].unsqueeze(1)
        inside = frames < ends
        frames = torch.minimum(frames, ends - 1)
        log_probs = self._log_probs(
            encoder_side[rows.unsqueeze(1), frames], decoder_side[rows].unsqueeze(1)
        )
        best, tokens = log_probs.max(-1)
        emits = (tokens != self.blank_id) & inside
        emits_any = emits.any(1)
        # The first token, else the last frame (frames past the end repeat it).
        stop = torch.where(emits_any, emits.to(torch.int64).argmax(1), block - 1).unsqueeze(1)
        until = torch.arange(block, device=rows.device) <= stop
        passed = (best.to(torch.float64) * (until & inside)).sum(1)
        token, frame, log_prob = (x.gather(1, stop)[:, 0] for x in (tokens, frames, best))
        return token.masked_fill(~emits_any, self.blank_id), frame, log_prob, passed

    def _extended(self, state: GreedyState, steps: list[tuple[Tensor, Tensor, Tensor]]) -> History:
        if not steps:
            return state.history
        tokens, frames, log_probs = (torch.stack(x, 1).unsqueeze(1) for x in zip(*steps))
        frames = frames + state.num_frames[:, None, None]
        origin = torch.zeros_like(state.history.lengths)
        history = state.history.extend(origin, tokens, frames, log_probs, self.blank_id)
        return history.settle(torch.ones_like(origin, dtype=torch.bool))

    def nbest(self, state: GreedyState, n: int) -> list[list[Hypothesis]]:
        """The one hypothesis of each stream, whatever ``n``."""
        return state.history.hypotheses(
            torch.zeros_like(state.history.lengths), state.score.unsqueeze(1), self.context_size
        )


def _scattered(
    rows: Tensor, token: Tensor, frame: Tensor, log_prob: Tensor, num_streams: int, blank_id: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Values of the streams ``rows`` as values of all streams (N,), blank elsewhere."""
    tokens = torch.full((num_streams,), blank_id, dtype=torch.int64, device=rows.device)
    frames = torch.zeros_like(tokens)
    log_probs = torch.zeros(num_streams, device=rows.device)
    tokens[rows], frames[rows], log_probs[rows] = token, frame, log_prob.float()
    return tokens, frames, log_probs
