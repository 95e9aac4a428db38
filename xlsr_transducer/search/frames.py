"""The loop over frames that all frame-synchronous beam searches share.

Each step stores which hypothesis every survivor came from and the token it added; after the
last frame of a piece these back-pointers are followed once, for all streams together.

Letters: N streams, n of them still with frames at a step, S hypotheses per stream, T frames,
J joiner width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Fields = tuple[Tensor, ...]
# step(encoder_side (n, J), fields (n, ...), num_ending) -> fields after the frame, and (n, S)
# each: the hypothesis before the frame, the token added (or blank), its log-prob. The last
# `num_ending` of the n streams have no further frame in this piece.
Step = Callable[[Tensor, Fields, int], tuple[Fields, tuple[Tensor, Tensor, Tensor]]]


@dataclass(frozen=True)
class Added:
    """The tokens that a piece of input added to the hypotheses alive at its end."""

    origin: Tensor  # (N, S) the hypothesis before the piece that each one grew from
    tokens: Tensor  # (N, S, T) blank where a frame added nothing
    log_probs: Tensor  # (N, S, T)

    def after(self, num_frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Origin, tokens, frames, log-probs; (N,) ``num_frames`` came before the piece."""
        column = torch.arange(self.tokens.shape[2], device=num_frames.device)
        frames = (column + num_frames[:, None, None]).expand_as(self.tokens)
        return self.origin, self.tokens, frames, self.log_probs


def search_frames(
    step: Step, encoder_side: Tensor, lens: Tensor, fields: Fields, num_hyps: int, blank_id: int
) -> tuple[Fields, Added]:
    """Runs ``step`` over the frames of ragged streams.

    Args:
      encoder_side: (N, T, J), T at least 1.
      lens: (N,) frames that count.
      fields: tensors with N rows that the steps change; left as they were.
    """
    num_frames = encoder_side.shape[1]
    # Longest first: the streams with frames left are always the first n rows.
    order = lens.sort(descending=True, stable=True).indices
    encoder_side = encoder_side[order]
    now = tuple(x[order] for x in fields)
    column = torch.arange(num_frames + 1, device=lens.device)
    counts = (lens.unsqueeze(1) > column).sum(0).tolist()

    shape = (num_frames, len(lens), num_hyps)
    back = torch.arange(num_hyps, device=lens.device).expand(shape).clone()
    tokens = torch.full(shape, blank_id, device=lens.device)
    log_probs = torch.zeros(shape, device=lens.device)
    for t in range(num_frames):
        n = counts[t]
        new, added = step(encoder_side[:n, t], tuple(x[:n] for x in now), n - counts[t + 1])
        if n == len(lens):
            now = new
        else:
            now = tuple(torch.cat([a, b[n:]]) for a, b in zip(new, now))
        back[t, :n], tokens[t, :n], log_probs[t, :n] = added

    inverse = order.argsort()
    found = Added(*(x[inverse] for x in trace_back(back, tokens, log_probs)))
    return tuple(x[inverse] for x in now), found


def trace_back(back: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """Follows back-pointers from the last step to the first.

    Args:
      back: (T, N, S) int64; ``back[t, n, s]`` is the hypothesis before step t which became
        hypothesis s of stream n.
      values: (T, N, S) each, something that step t added to hypothesis s.

    Returns:
      origin (N, S), the hypothesis before step 0 that each last one came from; and each of
      ``values`` along the path, (N, S, T).
    """
    index = torch.arange(back.shape[2], device=back.device).expand(back.shape[1], -1)
    visited = torch.empty_like(back)
    for t in range(back.shape[0] - 1, -1, -1):
        visited[t] = index
        index = back[t].gather(1, index)
    return (index, *(v.gather(2, visited).permute(1, 2, 0) for v in values))
