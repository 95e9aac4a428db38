"""The two sweeps over a transducer lattice as GPU kernels: one launch instead of one per diagonal.

The reference is the PyTorch code in ``sweeps.py``, which also describes the arrays. Import
fails where triton is not installed. Letters: B utterances, K symbol positions, D diagonals.

One program handles one utterance. A diagonal needs its predecessor shifted by one position, which
goes through memory: what one thread stored, its neighbour loads after the barrier.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

WARPS = 4


@triton.jit(do_not_specialize=["D", "B", "K"])
def _forward_kernel(alpha, stay, move, D, B, K, BLOCK: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    inside = k < K
    here = tl.load(alpha + b * (K + 1) + 1 + k, mask=inside, other=float("-inf"))
    for d in range(D):
        row = d * B + b
        left = tl.load(alpha + row * (K + 1) + k, mask=inside, other=float("-inf"))
        x = here + tl.load(stay + row * K + k, mask=inside, other=float("-inf"))
        y = left + tl.load(move + row * K + k, mask=inside, other=float("-inf"))
        # log(exp(x) + exp(y)): both may be -inf, whose difference is NaN; a NaN must stay one.
        apart = tl.where(x == y, 0.0, tl.abs(x - y))
        here = tl.where(x > y, x, y) + tl.log(1.0 + tl.exp(-apart))
        tl.store(alpha + (row + B) * (K + 1) + 1 + k, here, mask=inside)
        tl.debug_barrier()


@triton.jit(do_not_specialize=["D", "B", "K"])
def _backward_kernel(node, stay, move, D, B, K, BLOCK: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    inside = k < K
    here = tl.load(node + b * K + k, mask=inside, other=0.0)
    for i in range(D):
        row = (D - 1 - i) * B + b
        blank = tl.load(stay + row * K + k, mask=inside, other=0.0) * here
        symbol = tl.load(move + row * K + k, mask=inside, other=0.0) * here
        tl.debug_barrier()  # small blocks are held twice: all load before any stores
        tl.store(stay + row * K + k, blank, mask=inside)
        tl.store(move + row * K + k, symbol, mask=inside)
        tl.debug_barrier()
        here = blank + tl.load(move + row * K + k + 1, mask=k + 1 < K, other=0.0)


def sweep_forward(alpha: Tensor, stay: Tensor, move: Tensor) -> None:
    """Fills ``alpha`` (D + 1, B, 1 + K) from its first diagonal on; all contiguous float64."""
    D, B, K = stay.shape
    block = triton.next_power_of_2(K)
    _forward_kernel[(B,)](alpha, stay, move, D, B, K, BLOCK=block, num_warps=WARPS)


def sweep_backward(node: Tensor, stay: Tensor, move: Tensor) -> None:
    """Turns shares into occupations in place, from ``node`` (B, K) on the last diagonal."""
    D, B, K = stay.shape
    block = triton.next_power_of_2(K)
    _backward_kernel[(B,)](node, stay, move, D, B, K, BLOCK=block, num_warps=WARPS)
