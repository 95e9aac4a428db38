"""Fast beam search: a beam over decoder contexts, with k2's rules on its trivial graph.

Hypotheses with the same context have the same future, so only the best of them is kept
(Viterbi), and the search keeps up to ``max_contexts`` contexts per stream. Every context c
stands for two states of k2's decoder: (c, 0), and (c, 1) after the graph's final arc, which
lies where a blank from c leads. (c, 1) is never better than (c, 0) and never leads anywhere
better; it matters as it takes up room in ``max_states``, and as k2's last frame asks for it.
So its score is always that of c's blank, and no state needs to be kept for it.

All targets of one step lie in a grid of cells (group, token): the contexts that agree in all
but their oldest token form a group, named by its first member, as the same token leads them to
the same context. A context that a blank keeps lies in the cell which a token would reach it
by, if there is such a group, else in the blank's cell of its own row.

Letters: N streams, n of them at work in a step, C contexts per stream, K = C targets kept,
V tokens, J joiner width, H context size.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from xlsr_transducer.search.base import Search
from xlsr_transducer.search.frames import search_frames
from xlsr_transducer.search.history import NEVER, History

# PyTorch 1.13 has scatter_reduce as it stayed, but warns of it.
warnings.filterwarnings("ignore", message=r"scatter_reduce\(\) is in beta")


@dataclass(frozen=True)
class FastBeamState:
    """Per stream: its contexts. A score of -inf marks an empty place.

    For the flavours 'strict' and 'partial' the history has one place more than there are
    contexts: what is returned if the stream ends here.
    """

    history: History  # N streams, C (or C + 1) hypotheses each
    context: Tensor  # (N, C, H) int64
    decoder_side: Tensor  # (N, C, J)
    score: Tensor  # (N, C) float32, relative to `offset`, best 0
    offset: Tensor  # (N,) float64
    end_score: Tensor  # (N,) float64, of the place at the end of the history
    num_frames: Tensor  # (N,) int64, consumed so far

    def fields(self) -> tuple[Tensor, ...]:
        """Returns the tensors that a step of the search changes."""
        return self.context, self.decoder_side, self.score, self.offset, self.end_score


@dataclass(frozen=True)
class Targets:
    """The targets of a frame: the best K cells of each stream, best first."""

    score: Tensor  # (n, K)
    parent: Tensor  # (n, K) context before the frame
    token: Tensor  # (n, K) added on the best way there, blank if the context stays
    last: Tensor  # (n, K) last token of the target; not valid for one that only stays
    is_stay: Tensor  # (n, K, C) whether context c, kept by blank, is this target
    arrival: Tensor  # (n, K, C) score of reaching it from c by a token, -inf if that is no arc
    top: Tensor  # best scores of all cells, best first: (n, max_states), (n, K) for 'whole'


class FastBeamSearch(Search):
    """The best path over contexts; ``fast_beam_flavour`` decides about its end."""

    def _num_hyps(self) -> int:
        return self.options.max_contexts + (self.options.fast_beam_flavour != "whole")

    def init_state(self, num_streams: int, device: torch.device | str = "cpu") -> FastBeamState:
        """Returns the state of ``num_streams`` streams before their first frame."""
        shape = (num_streams, self.options.max_contexts)
        context = torch.full((1, self.context_size), self.blank_id, device=device)
        with torch.no_grad():
            decoder_side = self._project_context(context)
        score = torch.full(shape, NEVER, device=device)
        score[:, 0] = 0
        return FastBeamState(
            history=History.empty(num_streams, self._num_hyps(), device),
            context=context.repeat(*shape, 1),
            decoder_side=decoder_side.repeat(*shape, 1),
            score=score,
            offset=torch.zeros(num_streams, dtype=torch.float64, device=device),
            end_score=torch.zeros(num_streams, dtype=torch.float64, device=device),
            num_frames=torch.zeros(num_streams, dtype=torch.int64, device=device),
        )

    @torch.no_grad()
    def advance(
        self, encoder_out: Tensor, encoder_out_lens: Tensor, state: FastBeamState
    ) -> FastBeamState:
        """Consumes the next frames of each stream (see ``Search.advance``)."""
        lens = encoder_out_lens.to(encoder_out.device)
        encoder_side = self._project_encoder(encoder_out, lens)
        if encoder_side.shape[1] == 0:
            return state
        fields, added = search_frames(
            self._step, encoder_side, lens, state.fields(), self._num_hyps(), self.blank_id
        )
        history = state.history.extend(*added.after(state.num_frames), self.blank_id)
        _, _, score, _, end_score = fields
        history = history.settle(self._live(score, end_score))
        return FastBeamState(history, *fields, state.num_frames + lens)

    def _live(self, score: Tensor, end_score: Tensor) -> Tensor:
        """Returns (N, B) bool, the hypotheses that exist."""
        score = torch.cat([score, end_score.unsqueeze(1)], 1)
        return score[:, : self._num_hyps()] > NEVER

    def num_stable(self, state: FastBeamState) -> Tensor:
        """See ``Search.num_stable``; 'strict' has no tokens at an end that no path reaches."""
        if self.options.fast_beam_flavour == "strict":
            return torch.zeros_like(state.num_frames)
        return state.history.num_shared(self._live(state.score, state.end_score))

    def _step(
        self, encoder_side: Tensor, fields: tuple[Tensor, ...], num_ending: int
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor, Tensor]]:
        """Computes one frame of n streams (see ``frames.Step``)."""
        context, decoder_side, score, offset, end_score = fields
        n, width = score.shape
        log_probs = self._log_probs(encoder_side.unsqueeze(1), decoder_side).float()
        targets = self._targets(log_probs, context, score)
        # Ranks count (c, 1) too: after the better ones and after its equal, (c, 0).
        final = score + log_probs[:, :, self.blank_id]
        rank = torch.arange(width, device=score.device) + (
            final.unsqueeze(1) > targets.score.unsqueeze(2)
        ).sum(2)
        kept = (targets.score >= targets.score[:, :1] - self.options.beam) & (
            rank < self.options.max_states
        )
        cell = targets.parent * log_probs.shape[2] + targets.token
        added = (targets.parent, targets.token, log_probs.view(n, -1).gather(1, cell))
        if self.options.fast_beam_flavour != "whole":
            ends = torch.arange(n, device=score.device) >= n - num_ending
            end, relative = self._end(targets, kept, final, score, log_probs)
            end_score = torch.where(ends, offset + relative, end_score)
            stays = (torch.full_like(end[0], width), torch.full_like(end[1], self.blank_id))
            end = (*(torch.where(ends, a, b) for a, b in zip(end, stays)), end[2] * ends)
            added = tuple(torch.cat([a, b.unsqueeze(1)], 1) for a, b in zip(added, end))

        parent = targets.parent
        rows = torch.arange(n, device=parent.device).unsqueeze(1) * width
        old = context.gather(1, parent.unsqueeze(2).expand(-1, -1, context.shape[2]))
        longer = torch.cat([old[:, :, 1:], targets.token.unsqueeze(2)], 2)
        context = torch.where((targets.token != self.blank_id).unsqueeze(2), longer, old)
        known = targets.is_stay.any(2)
        source = torch.where(known, targets.is_stay.to(torch.uint8).argmax(2), parent)
        decoder_side = self._renewed(
            decoder_side.reshape(n * width, -1)[(rows + source).flatten()],
            context.reshape(n * width, -1),
            (kept & ~known).flatten(),
        ).view(n, width, -1)
        best = targets.score[:, :1]
        score = (targets.score - best).masked_fill(~kept, NEVER)
        return (context, decoder_side, score, offset + best[:, 0], end_score), added

    def _targets(self, log_probs: Tensor, context: Tensor, score: Tensor) -> Targets:
        """Returns all that the contexts of a frame lead to, merged where it is the same.

        Args:
          log_probs: (n, C, V).
          context: (n, C, H).
          score: (n, C), the best of each stream 0.
        """
        n, width, vocab_size = log_probs.shape
        live = score > NEVER
        total = log_probs + score.unsqueeze(2)
        stay = total[:, :, self.blank_id].clone()
        total[:, :, self.blank_id] = NEVER
        total.masked_fill_(total < -self.options.beam, NEVER)

        power = vocab_size ** torch.arange(self.context_size, device=score.device).flip(0)
        code = (context * power).sum(2)
        ending = code % power[0]  # all but the oldest token: the group
        same = (ending.unsqueeze(2) == ending.unsqueeze(1)) & live.unsqueeze(1)
        leader = same.to(torch.uint8).argmax(2)
        index = leader.unsqueeze(2).expand_as(total)
        cells = torch.full_like(total, NEVER).scatter_reduce(1, index, total, "amax")

        # The cell of each context that stays: (group leading to it, its last token).
        leads = (code // vocab_size).unsqueeze(2) == ending.unsqueeze(1)
        leads &= live.unsqueeze(1)
        own = torch.arange(width, device=score.device) * vocab_size + self.blank_id
        reached = leads.to(torch.uint8).argmax(2) * vocab_size + context[:, :, -1]
        place = torch.where(leads.any(2), reached, own)
        cells = cells.view(n, -1).scatter_reduce(1, place, stay, "amax")

        wants_rank = self.options.fast_beam_flavour != "whole"
        size = min(self.options.max_states if wants_rank else width, cells.shape[1])
        top, cell = cells.topk(size)
        best, cell = top[:, :width], cell[:, :width]
        group = cell.div(vocab_size, rounding_mode="floor")
        token = cell - group * vocab_size
        is_stay = (place.unsqueeze(1) == cell.unsqueeze(2)) & live.unsqueeze(1)
        member = leader.unsqueeze(1) == group.unsqueeze(2)
        arrival = total.gather(2, token.unsqueeze(1).expand(-1, width, -1)).transpose(1, 2)
        arrival = arrival.masked_fill(~member, NEVER)
        options = torch.cat([stay.unsqueeze(1).masked_fill(~is_stay, NEVER), arrival], 2)
        choice = options.argmax(2)
        added = token.masked_fill(choice < width, self.blank_id)
        return Targets(best, choice % width, added, token, is_stay, arrival, top)

    def _end(
        self, targets: Targets, kept: Tensor, final: Tensor, score: Tensor, log_probs: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """Returns what k2 returns if this frame is the last: its arcs count 0, if they are final.

        Args:
          kept: (n, K) targets that survive.
          final: (n, C) scores of the states after the final arc.
          score: (n, C) before this frame.
          log_probs: (n, C, V).

        Returns:
          the context before the frame, the token added (blank but for 'partial' without a
          final arc) and its log-prob; and the relative score, -inf if nothing ends here. (n,).
        """
        before = (targets.top.unsqueeze(1) >= final.unsqueeze(2)).sum(2)
        before += (final.unsqueeze(1) > final.unsqueeze(2)).sum(2)
        stays = targets.is_stay & kept.unsqueeze(2)
        ends = (before < self.options.max_states) & stays.any(1)
        ends &= final >= targets.score[:, :1] - self.options.beam
        ended = score.masked_fill(~ends, NEVER)
        best, parent = ended.max(1)
        blank = torch.full_like(parent, self.blank_id)
        if self.options.fast_beam_flavour == "strict":
            return (parent, blank, torch.zeros_like(best)), best

        # No arc is final: all count, and the likeliest that leaves the best context is taken.
        arcs = torch.cat(
            [
                targets.arrival.masked_fill(~kept.unsqueeze(2), NEVER),
                final.unsqueeze(1).masked_fill(~stays, NEVER),
            ],
            1,
        )
        other_best, other = score.masked_fill((arcs == NEVER).all(1), NEVER).max(1)
        column = other[:, None, None].expand(-1, arcs.shape[1], 1)
        arc = arcs.gather(2, column)[:, :, 0].argmax(1, keepdim=True)
        token = torch.cat([targets.last, blank.unsqueeze(1).expand_as(kept)], 1).gather(1, arc)
        any_ends = ends.any(1)
        parent = torch.where(any_ends, parent, other)
        token = torch.where(any_ends, blank, token[:, 0])
        row = torch.arange(len(parent), device=parent.device)
        log_prob = log_probs[row, parent, token]
        return (parent, token, log_prob), torch.where(any_ends, best, other_best)

    def rank(self, state: FastBeamState) -> tuple[Tensor, Tensor]:
        """Orders the best paths into each context by score (see ``Search.rank``).

        The flavours 'strict' and 'partial' have one result: the path into the end. With
        'strict' that is empty, of score -inf, where no path ends.
        """
        if self.options.fast_beam_flavour == "whole":
            score = state.score + state.offset.unsqueeze(1)
            score, which = score.sort(dim=1, descending=True, stable=True)
            return which, score
        which = torch.full_like(state.history.lengths[:, :1], self.options.max_contexts)
        return which, state.end_score.unsqueeze(1)
