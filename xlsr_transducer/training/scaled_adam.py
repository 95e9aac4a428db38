"""ScaledAdam: Adam whose steps are proportional to the size of each tensor.

Z. Yao et al., "Zipformer: a faster and better encoder for automatic speech recognition",
ICLR 2024, section 3.5. Letters: theta a tensor, g its gradient, r its rms, h = sum(g theta)
the derivative of the loss by log r, alpha the rate, m, v and n, w Adam's moments of g and h.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable

import torch
from torch import Tensor

RECENT = 100  # gradient norms, over which the median is taken
SCALE_SPEED = 0.1  # rate of a tensor's size, and of single numbers, relative to alpha
SMALLEST_RMS = 1e-5  # so that tensors of zeros can leave zero


class ScaledAdam(torch.optim.Optimizer):
    """Adam with relative steps, a learned size of each tensor, and clipping by the median.

    With bias = sqrt(1 - beta2^t) / (1 - beta1^t), a step adds to theta::

        - alpha r bias m / (sqrt(v) + eps) - 0.1 alpha bias n / (sqrt(w) + eps) theta

    A rate thus is a relative change: 0.01 changes a tensor by at most about 1 % a step. A
    tensor of a single number has no size to go by and takes Adam's step at 0.1 alpha.

    Beforehand all gradients are scaled down so that their norm, each gradient weighted by r, is
    at most ``clipping_scale`` times the median of the last 100 norms, this one included.

    What is per tensor is computed on the host in float64, from four numbers per tensor that come
    over at once; what is per element by a few kernels for all tensors of a group. The state
    consists of tensors, numbers and lists of them.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 0.045,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        clipping_scale: float = 2.0,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "clipping_scale": clipping_scale}
        super().__init__(params, defaults)
        # In a group, so that it is saved with the optimizer's state.
        self.param_groups[0]["recent_norms"] = []

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step of all parameters that have a gradient; the others keep their state."""
        groups = [
            [p for p in group["params"] if p.grad is not None] for group in self.param_groups
        ]
        trained = [p for group in groups for p in group]
        if not trained:
            return
        rms, norms, sums = _statistics(trained)
        clip = self._clip_factor(rms, norms)
        for group, params in zip(self.param_groups, groups):
            if params:
                count = len(params)
                self._step_group(group, params, rms[:count], sums[:count], clip)
                rms, sums = rms[count:], sums[count:]

    def _clip_factor(self, rms: list[float], norms: list[float]) -> float:
        """Returns the factor of all gradients."""
        recent = self.param_groups[0]["recent_norms"]
        norm = sum((r * g) ** 2 for r, g in zip(rms, norms)) ** 0.5
        recent.append(norm)
        del recent[:-RECENT]
        longest = self.param_groups[0]["clipping_scale"] * statistics.median(recent)
        return min(1.0, longest / norm) if norm > 0 else 1.0

    def _step_group(
        self, group: dict, params: list[Tensor], rms: list[float], sums: list[float], clip: float
    ) -> None:
        (beta1, beta2), eps = group["betas"], group["eps"]
        states = [self._state_of(p) for p in params]
        grads = [p.grad for p in params]
        first, second = [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]
        torch._foreach_mul_(first, beta1)
        torch._foreach_add_(first, grads, alpha=(1 - beta1) * clip)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, grads, grads, (1 - beta2) * clip**2)
        steps, growths = [], []
        for param, state, r, h in zip(params, states, rms, sums):
            state["step"] += 1
            bias = (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
            rate = group["lr"] * bias
            is_number = param.numel() == 1
            steps.append(-rate * (SCALE_SPEED if is_number else max(r, SMALLEST_RMS)))
            growth = _scale_moments(state, h * clip, beta1, beta2, eps)
            growths.append(1.0 if is_number else 1.0 - rate * growth)
        divisors = torch._foreach_sqrt(second)
        torch._foreach_add_(divisors, eps)
        torch._foreach_mul_(params, growths)
        torch._foreach_addcdiv_(params, first, divisors, steps)

    def _state_of(self, param: Tensor) -> dict:
        state = self.state[param]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
            state["scale_exp_avg"] = 0.0
            state["scale_exp_avg_sq"] = 0.0
        return state


def _scale_moments(state: dict, h: float, beta1: float, beta2: float, eps: float) -> float:
    """Takes in the derivative by the log of the size; returns Adam's direction for it."""
    state["scale_exp_avg"] = beta1 * state["scale_exp_avg"] + (1 - beta1) * h
    state["scale_exp_avg_sq"] = beta2 * state["scale_exp_avg_sq"] + (1 - beta2) * h * h
    return SCALE_SPEED * state["scale_exp_avg"] / (state["scale_exp_avg_sq"] ** 0.5 + eps)


def _statistics(params: list[Tensor]) -> tuple[list[float], list[float], list[float]]:
    """Of each tensor its rms, its gradient's norm, and the sum of their products.

    Of tensors divided among processes, each adds up its own piece.
    """
    values, grads = [_piece(p) for p in params], [_piece(p.grad) for p in params]
    products = torch._foreach_mul(values, grads)
    # There is no sum of many tensors at once; but sum(x) is sum(|x| + x) - sum(|x|).
    magnitudes = torch._foreach_abs(products)
    torch._foreach_add_(products, magnitudes)
    rows = [
        torch._foreach_norm(values, 2),
        torch._foreach_norm(grads, 2),
        torch._foreach_norm(products, 1),
        torch._foreach_norm(magnitudes, 1),
    ]
    table = torch.stack([torch.stack(list(row)).double() for row in rows])
    table[:2] **= 2
    if hasattr(params[0], "device_mesh"):
        torch.distributed.all_reduce(table, group=params[0].device_mesh.get_group())
    squares, squares_of_grads, doubled, absolute = table.tolist()
    rms = [(square / p.numel()) ** 0.5 for square, p in zip(squares, params)]
    norms = [square**0.5 for square in squares_of_grads]
    return rms, norms, [d - a for d, a in zip(doubled, absolute)]


def _piece(x: Tensor) -> Tensor:
    """This process's part of a tensor that ``--sharding`` divides; any other as it is."""
    return x.to_local() if hasattr(x, "to_local") else x
