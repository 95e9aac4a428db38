"""Weighted graphs over tokens that a beam search walks along: hotwords, n-gram models.

A state has arcs for some tokens. For all others it has a backoff, another state with a weight,
which is asked in its stead, and so on to the root, which backs off to itself: a token that the
root does not know leads to the root and weighs nothing. Blank is no token: it weighs nothing and
leads nowhere. Aho-Corasick automata and back-off
language models both have this form.

All states of all hypotheses are looked up at once, by tensors.

Letters: S states, A arcs, M states looked up together, V tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xlsr_transducer.data.tokenizer import Tokenizer


@dataclass(frozen=True, eq=False)
class TokenGraph:
    """See above. The arcs of a state lie together, by increasing token."""

    vocab_size: int
    start: int
    first_arc: Tensor  # (S + 1,) int64, arcs of state s are first_arc[s] to first_arc[s + 1] - 1
    arc_key: Tensor  # (A,) int64, state * V + token, increasing
    arc_next: Tensor  # (A,) int64
    arc_weight: Tensor  # (A,) float32
    backoff: Tensor  # (S,) int64, a root's is itself
    backoff_weight: Tensor  # (S,) float32
    final_weight: Tensor  # (S,) float32, what ending here adds

    @staticmethod
    def build(
        vocab_size: int,
        arcs: Sequence[dict[int, tuple[int, float]]],
        backoff: Sequence[tuple[int, float]],
        final: Sequence[float],
        start: int = 0,
    ) -> TokenGraph:
        """From one entry per state; state 0 is the root.

        Args:
          arcs: token -> (next state, weight).
          backoff: (state, weight); the root's is not read.
          final: weight.
        """
        table = [
            (state * vocab_size + token, *arcs[state][token])
            for state in range(len(arcs))
            for token in sorted(arcs[state])
        ]
        # The lookup by bisection needs one arc at least: blank, which never changes anything.
        keys, targets, weights = zip(*table) if table else ((0,), (0,), (0.0,))
        counts = [len(a) for a in arcs] if table else [1] + [0] * (len(arcs) - 1)
        up, down = zip(*[(0, 0.0), *backoff[1:]])
        return TokenGraph(
            vocab_size=vocab_size,
            start=start,
            first_arc=torch.tensor([0, *counts]).cumsum(0),
            arc_key=torch.tensor(keys),
            arc_next=torch.tensor(targets),
            arc_weight=torch.tensor(weights, dtype=torch.float32),
            backoff=torch.tensor(up),
            backoff_weight=torch.tensor(down, dtype=torch.float32),
            final_weight=torch.tensor(final, dtype=torch.float32),
        )

    @staticmethod
    def nothing(vocab_size: int) -> TokenGraph:
        """Returns the graph in which nothing weighs anything."""
        return TokenGraph.build(vocab_size, [{}], [(0, 0.0)], [0.0])

    @staticmethod
    def union(graphs: Sequence[TokenGraph]) -> tuple[TokenGraph, list[int]]:
        """Returns all ``graphs`` side by side, and the number of the first state of each."""
        if len(graphs) == 1:
            return graphs[0], [0]
        states, arcs = [0], [0]
        for g in graphs:
            states.append(states[-1] + len(g.backoff))
            arcs.append(arcs[-1] + len(g.arc_key))
        vocab_size = graphs[0].vocab_size
        parts = list(zip(graphs, states, arcs))
        first_arc = [g.first_arc[:-1] + a for g, _, a in parts]
        joined = TokenGraph(
            vocab_size=vocab_size,
            start=graphs[0].start,
            first_arc=torch.cat([*first_arc, first_arc[0].new_tensor(arcs[-1:])]),
            arc_key=torch.cat([g.arc_key + s * vocab_size for g, s, _ in parts]),
            arc_next=torch.cat([g.arc_next + s for g, s, _ in parts]),
            arc_weight=torch.cat([g.arc_weight for g in graphs]),
            backoff=torch.cat([g.backoff + s for g, s, _ in parts]),
            backoff_weight=torch.cat([g.backoff_weight for g in graphs]),
            final_weight=torch.cat([g.final_weight for g in graphs]),
        )
        return joined, states[:-1]

    def to(self, device: torch.device | str) -> TokenGraph:
        """Returns the same graph on ``device``."""
        tensors = {
            f.name: value.to(device)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **tensors)

    def scaled(self, scale: float) -> TokenGraph:
        """Returns all weights times ``scale``."""
        names = ("arc_weight", "backoff_weight", "final_weight")
        return dataclasses.replace(self, **{n: getattr(self, n) * scale for n in names})

    def weights(self, state: Tensor) -> Tensor:
        """Returns (M, V) weight of every token in the states (M,)."""
        levels = [(state, torch.zeros_like(state, dtype=torch.float32), state >= 0)]
        while True:
            here, weight, _ = levels[-1]
            up = self.backoff[here]
            rises = up != here
            if not rises.any():
                break
            levels.append((up, weight + self.backoff_weight[here], rises))
        out = levels[-1][1].unsqueeze(1).repeat(1, self.vocab_size)
        for here, weight, counts in reversed(levels):
            first = self.first_arc[here]
            count = (self.first_arc[here + 1] - first) * counts
            row = torch.repeat_interleave(count)
            # Arcs of all rows, one after the other: the number within the row, from its first.
            before = count.cumsum(0) - count
            arc = torch.arange(len(row), device=row.device) + (first - before)[row]
            token = self.arc_key[arc] - here[row] * self.vocab_size
            out[row, token] = self.arc_weight[arc] + weight[row]
        out[:, Tokenizer.blank_id] = 0
        return out

    def step(self, state: Tensor, token: Tensor) -> Tensor:
        """Returns (M,) the states that ``token`` (M,) leads to from ``state`` (M,)."""
        while True:
            key = state * self.vocab_size + token
            arc = torch.searchsorted(self.arc_key, key).clamp(max=len(self.arc_key) - 1)
            found = self.arc_key[arc] == key
            up = self.backoff[state]
            if (found | (up == state)).all():
                return torch.where(found, self.arc_next[arc], state)
            state = torch.where(found, state, up)
