"""The two passes over a transducer lattice, diagonal by diagonal: PyTorch loops or GPU kernels.

Letters: B utterances, K symbol positions, D diagonals. ``lattice.py`` describes the arrays:

* ``alpha`` (D + 1, B, 1 + K): log-sum of the paths into each node, position -1 first;
* ``stay``, ``move`` (D, B, K): arcs that keep a position, and arcs that enter it from the left:
  their scores going forward, their shares of what enters a node going backward;
* ``node`` (B, K): occupation of the nodes of a diagonal.

All are contiguous float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

INF = float("inf")


class Sweeps(NamedTuple):
    """``forward`` fills alpha from its first diagonal; ``backward`` makes shares occupations."""

    forward: Callable[[Tensor, Tensor, Tensor], None]
    backward: Callable[[Tensor, Tensor, Tensor], None]


def _sweep_forward(alpha: Tensor, stay: Tensor, move: Tensor) -> None:
    here, left = alpha[:, :, 1:].unbind(0), alpha[:, :, :-1].unbind(0)
    by_blank, by_symbol = torch.empty_like(stay[0]), torch.empty_like(stay[0])
    for d, (blank, symbol) in enumerate(zip(stay.unbind(0), move.unbind(0), strict=True)):
        torch.add(here[d], blank, out=by_blank)
        torch.add(left[d], symbol, out=by_symbol)
        torch.logaddexp(by_blank, by_symbol, out=here[d + 1])


def _sweep_backward(node: Tensor, stay: Tensor, move: Tensor) -> None:
    to_left = node[:, :-1]
    for blank, symbol in zip(reversed(stay.unbind(0)), reversed(move.unbind(0)), strict=True):
        blank.mul_(node)
        symbol.mul_(node)
        node.copy_(blank)
        to_left.add_(symbol[:, 1:])


TORCH_SWEEPS = Sweeps(_sweep_forward, _sweep_backward)


@cache
def get_sweeps(device: torch.device) -> Sweeps:
    """Returns the kernels on a GPU where triton works, else the PyTorch loops.

    A loop launches some seven GPU kernels per diagonal and would mostly wait for launches.
    """
    if device.type != "cuda":
        return TORCH_SWEEPS
    try:
        from xlsr_transducer.loss import triton_kernel
    except ImportError:  # no triton, as beside torch 1.13
        return TORCH_SWEEPS
    kernels = Sweeps(triton_kernel.sweep_forward, triton_kernel.sweep_backward)
    try:
        wrong = sweeps_differ(kernels, device)
    except Exception as e:  # triton needs a C compiler, a GPU it knows, ...
        wrong = f"{type(e).__name__}: {e}"
    if wrong:
        warnings.warn(f"triton does not work on {device} ({wrong}): slower loss", stacklevel=2)
        return TORCH_SWEEPS
    return kernels


def sweeps_differ(sweeps: Sweeps, device: torch.device, shape=(70, 2, 130), seed=0) -> str:
    """Compares ``sweeps`` with the PyTorch loops on random arcs (D, B, K); "" if they agree."""
    g = torch.Generator().manual_seed(seed)
    arcs = 5 * torch.randn(2, *shape, generator=g, dtype=torch.float64)
    arcs[torch.rand(arcs.shape, generator=g) < 0.1] = -INF
    arcs[1, :, :, 0] = -INF
    results = []
    for s in (TORCH_SWEEPS, sweeps):
        stay, move = arcs.to(device, copy=True).unbind(0)
        alpha = stay.new_full((shape[0] + 1, shape[1], shape[2] + 1), -INF)
        alpha[0, :, 1] = 0.0
        s.forward(alpha, stay, move)
        shares = arcs.sigmoid().to(device, copy=True)
        s.backward(stay.new_ones(shape[1:]), *shares.unbind(0))
        results.append((alpha, shares))
    for name, expected, actual in zip(("forward", "backward"), *results, strict=True):
        if not torch.allclose(actual, expected, rtol=1e-10, atol=1e-12):
            return f"its {name} sweep is wrong"
    return ""
