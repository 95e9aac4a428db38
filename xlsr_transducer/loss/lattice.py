"""Sum over all alignments of a transducer lattice, with the occupation of every arc.

Letters: B utterances, T frames, S symbols, K = S + 1 symbol positions, D diagonals.

A node (s, t) means "s symbols emitted, t frames consumed". Two arcs leave it:

* ``py[b, s, t]``, blank: to (s, t + 1);
* ``px[b, s, t]``, symbol s: to (s, t + 1 - skew): a symbol stays on its frame in the regular
  topology (skew 1) and ends it in the modified and constrained ones (skew 0).

Nodes are visited in diagonals d = t + skew * s, because every arc leads from one diagonal to
the next: a diagonal is one vector operation over all utterances and symbol positions, and all
three topologies are one recursion. Arrays over the lattice are therefore kept as (D, B, K).

The recursion runs in float64 whatever the input: path scores of long utterances reach
thousands of nats, of which float32 keeps too few digits, and its cost is far below that of
anything with a vocabulary dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xlsr_transducer.loss.sweeps import INF, get_sweeps


def total_scores(
    px: Tensor, py: Tensor, boundary: Tensor | None, skew: int, return_occupation: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns the log-sum of the scores of all paths from the begin to the end of each utterance.

    Differentiable in ``px`` and ``py`` (once): the gradient is the arc occupation.

    Args:
      px: (B, S, T) log-probability of emitting symbol s on frame t.
      py: (B, S + 1, T) log-probability of blank.
      boundary: (B, 4) int64 [s_begin, t_begin, s_end, t_end], or None for [0, 0, S, T].
      skew: 1 if a symbol stays on its frame, 0 if it ends it.
      return_occupation: also return the occupations.

    Returns:
      scores (B,), -inf without any path; then d scores.sum() / d px (B, S, T) and
      d scores.sum() / d py (B, S + 1, T), without gradient, or None twice.
    """
    return _TotalScores.apply(px, py, boundary, skew, return_occupation)


class _TotalScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, px, py, boundary, skew, return_occupation):
        stay, move = _to_diagonals(px, py, boundary, skew)
        begin, end = (None, None) if boundary is None else (boundary[:, 0], boundary[:, 2])
        alpha = _forward(stay, move, begin)
        last = alpha[-1, :, 1:]
        scores = last[:, -1] if end is None else last.gather(1, end.unsqueeze(1)).squeeze(1)
        scores = scores.to(px.dtype, copy=True)
        if not (return_occupation or ctx.needs_input_grad[0] or ctx.needs_input_grad[1]):
            return scores, None, None
        _backward(alpha, stay, move, end)
        px_occ, py_occ = _from_diagonals(stay, move, px, py, boundary, skew)
        ctx.save_for_backward(px_occ, py_occ)
        if not return_occupation:
            return scores, None, None
        ctx.mark_non_differentiable(px_occ, py_occ)
        return scores, px_occ, py_occ

    @staticmethod
    @once_differentiable
    def backward(ctx, scores_grad, _px_occ_grad, _py_occ_grad):
        px_occ, py_occ = ctx.saved_tensors
        g = scores_grad.reshape(-1, 1, 1)
        return px_occ * g, py_occ * g, None, None, None


def _diagonal_view(lattice: Tensor, first: int, shape: tuple[int, int, int], skew: int) -> Tensor:
    """Returns the part of (D, B, K) storage that belongs to positions (b, first + s, t), as (B,
    S, T)."""
    D, B, K = lattice.shape
    return lattice.as_strided(shape, (K, 1 + skew * B * K, B * K), first)


def _to_diagonals(px, py, boundary, skew):
    """Arc scores by diagonal: ``stay`` and ``move``, (D, B, K) float64.

    ``stay[d, b, s]`` leaves position s; ``move[d, b, s]`` *enters* s, coming from s - 1. Arcs
    outside the utterance are -inf, but for a free ride along ``s_begin`` up to the begin and
    along ``s_end`` from the end on: so every utterance starts on the first diagonal and ends on
    the last, and the recursion needs no special case.
    """
    B, S, T = px.shape
    K, D = S + 1, T + skew * S
    stay = px.new_full((D, B, K), -INF, dtype=torch.float64)
    move = torch.full_like(stay, -INF)
    if boundary is not None:
        s_mask, t_mask = _inside(boundary, S, T)
        px = px.masked_fill(~(s_mask[:, :-1, None] & s_mask[:, 1:, None] & t_mask), -INF)
        py = py.masked_fill(~(s_mask[:, :, None] & t_mask), -INF)
    _diagonal_view(stay, 0, (B, K, T), skew).copy_(py)
    _diagonal_view(move, 1, (B, S, T), skew).copy_(px)
    if boundary is not None:
        d = torch.arange(D, device=px.device).reshape(D, 1)
        s_begin, t_begin, s_end, t_end = boundary.unbind(1)
        _free_ride(stay, s_begin, d < t_begin + skew * s_begin)
        _free_ride(stay, s_end, d >= t_end + skew * s_end)
    return stay, move


def _inside(boundary: Tensor, S: int, T: int) -> tuple[Tensor, Tensor]:
    """Returns which positions (B, S + 1) and frames (B, 1, T) belong to each utterance."""
    s = torch.arange(S + 1, device=boundary.device)
    t = torch.arange(T, device=boundary.device).reshape(1, 1, T)
    s_begin, t_begin, s_end, t_end = boundary.unsqueeze(2).unbind(1)
    in_t = (t >= t_begin.unsqueeze(1)) & (t < t_end.unsqueeze(1))
    return (s >= s_begin) & (s <= s_end), in_t


def _free_ride(stay: Tensor, position: Tensor, where: Tensor) -> None:
    """Sets ``stay[d, b, position[b]]`` to 0 wherever ``where`` (D, B) is true."""
    index = position.reshape(1, -1, 1).expand(stay.shape[0], -1, 1)
    column = stay.gather(2, index).masked_fill(where.unsqueeze(2), 0.0)
    stay.scatter_(2, index, column)


def _forward(stay: Tensor, move: Tensor, begin: Tensor | None) -> Tensor:
    """Returns the log-sum of all paths into each node, (D + 1, B, 1 + K); position -1 (first) is
    -inf."""
    D, B, K = stay.shape
    alpha = stay.new_full((D + 1, B, K + 1), -INF)
    if begin is None:
        alpha[0, :, 1] = 0.0
    else:
        alpha[0].scatter_(1, begin.unsqueeze(1) + 1, 0.0)
    get_sweeps(stay.device).forward(alpha, stay, move)
    return alpha


def _backward(alpha: Tensor, stay: Tensor, move: Tensor, end: Tensor | None) -> None:
    """Overwrites arc scores by arc occupations (posterior probabilities).

    An arc's occupation is that of the node it enters times the arc's share of what flows into
    that node. The shares are known from ``alpha``, so this pass needs no logarithm, and products
    of shares cannot overflow. What cannot be reached gets 0, infeasible utterances altogether.
    """
    D, B, K = stay.shape
    entered = alpha[1:, :, 1:].masked_fill(alpha[1:, :, 1:] == -INF, INF)
    stay.add_(alpha[:-1, :, 1:]).sub_(entered).exp_()
    move.add_(alpha[:-1, :, :-1]).sub_(entered).exp_()
    del entered
    node = stay.new_zeros(B, K)
    if end is None:
        node[:, -1] = 1.0
    else:
        node.scatter_(1, end.unsqueeze(1), 1.0)
    get_sweeps(stay.device).backward(node, stay, move)


def _from_diagonals(stay, move, px, py, boundary, skew):
    """Arc occupations back as (B, S, T) and (B, S + 1, T), in the dtype of the input."""
    px_occ = _diagonal_view(move, 1, tuple(px.shape), skew).to(px.dtype)
    py_occ = _diagonal_view(stay, 0, tuple(py.shape), skew)
    if boundary is not None:  # the free ride is no frame of the utterance
        s_mask, t_mask = _inside(boundary, px.shape[1], px.shape[2])
        py_occ = py_occ * (s_mask[:, :, None] & t_mask)
    return px_occ.contiguous(), py_occ.to(py.dtype).contiguous()
