"""Pruning: the symbol positions that matter on each frame, and their am and lm rows.

Letters: B utterances, T frames, S symbols, R prune range, D width of what is pruned.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def get_rnnt_prune_ranges(
    px_grad: Tensor, py_grad: Tensor, boundary: Tensor, s_range: int
) -> Tensor:
    """Returns the R neighbouring symbol positions to keep on each frame, (B, T, R) int64.

    The window with the largest occupation, of what it holds less what enters it from below;
    then changed as little as a connected lattice asks for: starts at 0, never goes back, and
    moves by at most R - 1 positions a frame (regular) or 1 (modified, constrained).

    Args:
      px_grad: (B, S, T + 1) regular, else (B, S, T): occupation of symbols, as
        ``rnnt_loss_smoothed(..., return_grad=True)`` gives it.
      py_grad: (B, S + 1, T): occupation of blanks.
      boundary: (B, 4) int64 [s_begin, t_begin, s_end, t_end].
      s_range: R, at least 2 for regular; R = min(s_range, S + 1) in the result.

    Raises:
      ValueError: shapes do not fit, or ``s_range`` is too small.
    """
    B, S, T1 = px_grad.shape
    T = py_grad.shape[2]
    if T1 not in (T, T + 1) or py_grad.shape[:2] != (B, S + 1) or boundary.shape != (B, 4):
        raise ValueError(
            f"shapes do not fit: px_grad {tuple(px_grad.shape)}, py_grad {tuple(py_grad.shape)}, "
            f"boundary {tuple(boundary.shape)}"
        )
    least = 2 if T1 == T + 1 else 1
    if s_range < least:
        raise ValueError(f"s_range is {s_range}, must be at least {least} for this rnnt_type")
    R = min(s_range, S + 1)
    windows = S + 2 - R
    score = py_grad.unfold(1, R, 1).sum(3)
    score[:, 1:] -= px_grad[:, : windows - 1, :T]
    start = _first_argmax(score)

    t = torch.arange(T, device=start.device)
    at_end = (boundary[:, 2:3] - R + 1).clamp(min=0)
    start = torch.where(t < boundary[:, 3:4] - 1, start, at_end)
    start = _connect(start, R - 1 if T1 == T + 1 else 1)
    return start.unsqueeze(2) + torch.arange(R, device=start.device)


def _first_argmax(score: Tensor) -> Tensor:
    """Returns the argmax over dim 1; ties (unreachable cells are exactly 0) go to the smallest
    index.

    torch.argmax promises no order among ties on a GPU.
    """
    n = score.shape[1]
    index = torch.arange(n, device=score.device).reshape(1, n, 1)
    best = score.amax(1, keepdim=True)
    # NaN equals nothing: the clamp keeps the result a legal start for such utterances.
    return torch.where(score == best, index, n).amin(1).clamp(max=n - 1)


def _connect(start: Tensor, max_step: int) -> Tensor:
    """Returns the largest sequence below ``start`` (B, T) that never falls, then raised to
    ``max_step``.

    First the running minimum from the right makes it non-decreasing. Then each frame is raised
    to at least ``start[t + 1] - max_step``, by the same running minimum of ``max_step * t -
    start``; clamped at 0, so that the first frame starts at or below 0 * max_step = 0.
    """
    ramp = max_step * torch.arange(start.shape[1], device=start.device)
    start = _running_min_from_right(start)
    slack = _running_min_from_right(ramp - start).clamp(min=0)
    return ramp - slack


def _running_min_from_right(x: Tensor) -> Tensor:
    return x.flip(1).cummin(1).values.flip(1)


def do_rnnt_pruning(am: Tensor, lm: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the rows of ``am`` and ``lm`` for the pruned joiner.

    Args:
      am: (B, T, D).
      lm: (B, S + 1, D).
      ranges: (B, T, R) int64, of ``get_rnnt_prune_ranges``.

    Returns:
      am_pruned (B, T, R, D), a view of ``am``; lm_pruned (B, T, R, D).
    """
    B, T, R = ranges.shape
    if am.shape[:2] != (B, T) or lm.shape[0] != B or am.shape[2] != lm.shape[2]:
        raise ValueError(
            f"shapes do not fit: am {tuple(am.shape)}, lm {tuple(lm.shape)}, "
            f"ranges {tuple(ranges.shape)}"
        )
    K, D = lm.shape[1:]
    # An embedding lookup, because its gradient adds rows: gather's would need (B, T, K, D).
    rows = ranges + K * torch.arange(B, device=ranges.device).reshape(B, 1, 1)
    return am.unsqueeze(2).expand(B, T, R, D), F.embedding(rows, lm.reshape(B * K, D))
