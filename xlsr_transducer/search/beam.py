"""Beam search with any number of tokens per frame.

A. Graves, "Sequence transduction with recurrent neural networks", 2012, in the form that
icefall gives it. For each frame of a stream there are two pools: A holds hypotheses that still
have to deal with the frame, B those that have left it by a blank. Again and again the best of A
is taken out; its blank goes to B, its best tokens go back to A; until B holds ``beam_size``
hypotheses that are better than all of A. Those are A of the next frame. Equal token sequences
in a pool are merged by log-addition.

All streams take one hypothesis per step, each at its own frame.

Letters: N streams, n of them not yet at their end, B hypotheses per stream, P places in a pool,
T, J, V, C as in base.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from xlsr_transducer.search.base import Search
from xlsr_transducer.search.history import NEVER, History, hash_with

# A frame ends after this many expansions per hypothesis kept, so that a network which hardly
# knows blank (an untrained one) cannot hold the search for ever. Others need a few.
MAX_EXPANSIONS = 16


@dataclass(frozen=True)
class PoolState:
    """Per stream: the hypotheses between two frames. A score of -inf marks an empty place."""

    history: History  # N streams, B hypotheses each
    context: Tensor  # (N, B, C) int64
    score: Tensor  # (N, B) float32, relative to `offset`
    offset: Tensor  # (N,) float64
    hashes: Tensor  # (N, B) int64
    num_frames: Tensor  # (N,) int64, consumed so far


@dataclass
class Pool:
    """Hypotheses of each stream at its present frame."""

    score: Tensor  # (N, P) float32, -inf marks a free place
    hashes: Tensor  # (N, P) int64
    node: Tensor  # (N, P) int64, where in the tree of `Nodes` its tokens end
    context: Tensor  # (N, P, C) int64

    def tensors(self) -> tuple[Tensor, ...]:
        """Returns all fields, in order."""
        return self.score, self.hashes, self.node, self.context

    def rows(self, indexes: Tensor) -> Pool:
        """Returns a copy of the streams ``indexes`` (n,)."""
        return Pool(*(x[indexes] for x in self.tensors()))

    def with_rows(self, indexes: Tensor, part: Pool) -> Pool:
        """This pool with the streams ``indexes`` (n,) replaced by ``part``."""
        places = max(self.score.shape[1], part.score.shape[1])
        mine, part = self.widened(places), part.widened(places)
        return Pool(*(x.index_copy(0, indexes, y) for x, y in zip(mine.tensors(), part.tensors())))

    def widened(self, places: int) -> Pool:
        """Returns at least ``places`` places, the new ones free."""
        extra = places - self.score.shape[1]
        if extra <= 0:
            return self
        score, hashes, node = (
            F.pad(x, (0, extra), value=fill)
            for x, fill in ((self.score, NEVER), (self.hashes, 0), (self.node, 0))
        )
        return Pool(score, hashes, node, F.pad(self.context, (0, 0, 0, extra)))

    def taken(self, place: Tensor) -> Pool:
        """Returns the entries at ``place`` (n, k), as a pool of k places."""
        flat = (x.gather(1, place) for x in (self.score, self.hashes, self.node))
        where = place.unsqueeze(2).expand(-1, -1, self.context.shape[2])
        return Pool(*flat, self.context.gather(1, where))

    def added(self, new: Pool) -> Pool:
        """With the entries of ``new``, which differ among each other; equal ones merged."""
        wanted = new.score > NEVER
        same = new.hashes.unsqueeze(2) == self.hashes.unsqueeze(1)
        same &= wanted.unsqueeze(2) & (self.score > NEVER).unsqueeze(1)
        extra = new.score.unsqueeze(2).masked_fill(~same, NEVER).amax(1)
        merged = Pool(torch.logaddexp(self.score, extra), self.hashes, self.node, self.context)

        count = new.score.shape[1]
        used = int((merged.score > NEVER).sum(1).max()) if len(wanted) else 0
        merged = merged.widened(used + count)
        # An entry that was merged takes a free place too, and leaves it free.
        place = (merged.score > NEVER).to(torch.uint8).sort(dim=1, stable=True).indices[:, :count]
        score = new.score.masked_fill(same.any(2), NEVER)
        where = place.unsqueeze(2).expand(-1, -1, self.context.shape[2])
        return Pool(
            merged.score.scatter(1, place, score),
            merged.hashes.scatter(1, place, new.hashes),
            merged.node.scatter(1, place, new.node),
            merged.context.scatter(1, where, new.context),
        )


class Nodes:
    """The tree of tokens that grows while a piece is searched.

    Nodes 0 to B - 1 are the hypotheses before the piece; each step adds k nodes per stream.
    """

    def __init__(self, num_streams: int, num_roots: int, blank_id: int):
        self.num_streams, self.num_roots, self.blank_id = num_streams, num_roots, blank_id
        self.steps: list[tuple[Tensor, ...]] = []
        self.size = num_roots

    def grow(self, rows: Tensor, at: Tensor, parent: Tensor, token: Tensor, lp: Tensor) -> Tensor:
        """Adds k nodes for the streams ``rows`` (n,) at frames ``at`` (n,); returns their ids.

        ``parent`` (n, 1), ``token`` and its log-prob ``lp`` (n, k).
        """
        n, k = token.shape
        values = (parent.expand(n, k), token, at.unsqueeze(1).expand(n, k), lp)
        empty = (x.new_zeros(self.num_streams, k) for x in values)
        self.steps.append(tuple(e.index_copy(0, rows, x) for e, x in zip(empty, values)))
        ids = torch.arange(self.size, self.size + k, device=token.device)
        self.size += k
        return ids.expand(n, k)

    def read(self, node: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Origin (N, B), tokens, frames and log-probs (N, B, K) of the paths to ``node``."""
        parent, token, frame, lp = (torch.cat(x, 1) for x in zip(*self.steps))
        found = []
        while True:
            inside = node >= self.num_roots
            if not inside.any():
                break
            index = (node - self.num_roots).clamp(min=0)
            tokens = token.gather(1, index).masked_fill(~inside, self.blank_id)
            found.append((tokens, frame.gather(1, index), lp.gather(1, index)))
            node = torch.where(inside, parent.gather(1, index), node)
        if not found:
            nothing = torch.full_like(node, self.blank_id)
            found.append((nothing, nothing, nothing.float()))
        tokens, frames, log_probs = (torch.stack(x[::-1], 2) for x in zip(*found))
        return node, tokens, frames, log_probs


class BeamSearch(Search):
    """Winner and n-best by log-prob / (tokens + context size), as icefall has it."""

    def init_state(self, num_streams: int, device: torch.device | str = "cpu") -> PoolState:
        """Returns the state of ``num_streams`` streams before their first frame."""
        shape = (num_streams, self.options.beam_size)
        score = torch.full(shape, NEVER, device=device)
        score[:, 0] = 0
        return PoolState(
            history=History.empty(*shape, device),
            context=self._first_context(1, device).repeat(*shape, 1),
            score=score,
            offset=torch.zeros(num_streams, dtype=torch.float64, device=device),
            hashes=torch.zeros(shape, dtype=torch.int64, device=device),
            num_frames=torch.zeros(num_streams, dtype=torch.int64, device=device),
        )

    @torch.no_grad()
    def advance(
        self, encoder_out: Tensor, encoder_out_lens: Tensor, state: PoolState
    ) -> PoolState:
        """Consumes the next frames of each stream (see ``Search.advance``)."""
        lens = encoder_out_lens.to(encoder_out.device)
        encoder_side = self._project_encoder(encoder_out, lens)
        if encoder_side.shape[1] == 0:
            return state
        nodes = Nodes(*state.score.shape, self.blank_id)
        roots = torch.arange(state.score.shape[1], device=lens.device).expand_as(state.hashes)
        waiting = Pool(state.score, state.hashes, roots, state.context)
        leaving = Pool(torch.full_like(state.score, NEVER), *waiting.tensors()[1:])
        offset, at = state.offset.clone(), torch.zeros_like(lens)
        expansions = torch.zeros_like(lens)  # of each stream in its present frame
        while True:
            rows = (at < lens).nonzero()[:, 0]
            if len(rows) == 0:
                break
            a, b = self._expanded(
                waiting.rows(rows), leaving.rows(rows), encoder_side, rows, at[rows], nodes
            )
            done = (b.score > a.score.amax(1, keepdim=True)).sum(1) >= self.options.beam_size
            expansions[rows] += 1
            done |= expansions[rows] >= MAX_EXPANSIONS * self.options.beam_size
            ready = done.nonzero()[:, 0]
            if len(ready):
                kept = b.rows(ready)
                kept = kept.taken(kept.score.topk(self.options.beam_size).indices)
                best = kept.score[:, :1]
                offset[rows[ready]] += best[:, 0]
                at[rows[ready]] += 1
                expansions[rows[ready]] = 0
                kept.score = kept.score - best
                a = a.with_rows(ready, kept)
                b.score = b.score.index_fill(0, ready, NEVER)
            waiting = waiting.with_rows(rows, a)
            leaving = leaving.with_rows(rows, b)

        score, hashes, node, context = (x[:, : self.options.beam_size] for x in waiting.tensors())
        origin, tokens, frames, log_probs = nodes.read(node)
        frames = frames + state.num_frames[:, None, None]
        history = state.history.extend(origin, tokens, frames, log_probs, self.blank_id)
        return PoolState(
            history.settle(score > NEVER),
            context,
            score,
            offset,
            hashes,
            state.num_frames + lens,
        )

    def _expanded(
        self, a: Pool, b: Pool, encoder_side: Tensor, rows: Tensor, at: Tensor, nodes: Nodes
    ) -> tuple[Pool, Pool]:
        """Takes the best hypothesis out of ``a``: its blank goes to ``b``, its tokens to ``a``.

        Args:
          a, b: the pools of the streams ``rows`` (n,), at their frames ``at`` (n,).
        """
        place = a.score.argmax(1, keepdim=True)
        best = a.taken(place)
        log_probs = self._log_probs(
            encoder_side[rows, at], self._project_context(best.context[:, 0])
        ).float()
        blank = best.score + log_probs[:, self.blank_id].unsqueeze(1)
        b = b.added(Pool(blank, *best.tensors()[1:]))

        # beam_size + 1 candidates, blank among them or not, as icefall has it.
        count = min(self.options.beam_size + 1, log_probs.shape[1])
        values, tokens = log_probs.topk(count)
        context = best.context.expand(-1, count, -1)
        new = Pool(
            score=(best.score + values).masked_fill(tokens == self.blank_id, NEVER),
            hashes=hash_with(best.hashes, tokens),
            node=nodes.grow(rows, at, best.node, tokens, values),
            context=torch.cat([context[:, :, 1:], tokens.unsqueeze(2)], 2),
        )
        rest = Pool(a.score.scatter(1, place, NEVER), *a.tensors()[1:])
        return rest.added(new), b

    def rank(self, state: PoolState) -> tuple[Tensor, Tensor]:
        """Orders different token sequences by length-normalised score (see ``Search.rank``)."""
        score = state.score + state.offset.unsqueeze(1)
        return state.history.rank(score, self.context_size)
