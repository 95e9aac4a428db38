"""Means of weights over steps or files, in float64, one set of weights in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from xlsr_transducer.core.errors import UserError

Weights = dict[str, Tensor]


def mean_of(several: Iterable[Weights]) -> Weights:
    """Returns the mean of several sets of weights, as float32."""
    total: Weights = {}
    count = 0
    for weights in several:
        count += 1
        for name, value in weights.items():
            wide = value.double()
            total[name] = total[name].add_(wide) if name in total else wide
    return {name: (value / count).float() for name, value in total.items()}


def mean_between(first: Weights, first_step: int, last: Weights, last_step: int) -> Weights:
    """Returns the mean over steps first_step + 1 .. last_step, from the means over 1 .. each.

    With m_k the mean over k steps: (last_step m_last - first_step m_first) / their difference.
    """
    if not 0 <= first_step < last_step:
        raise UserError(f"cannot average from step {first_step} to step {last_step}")
    whole, part = last_step / (last_step - first_step), first_step / (last_step - first_step)
    return {k: last[k].double() * whole - first[k].double() * part for k in last}


def covered_steps(content: dict[str, Any]) -> int:
    """Returns the steps that a checkpoint's running mean covers."""
    return content["progress"].get("averaged", content["step"])


def take_into_mean(mean: Weights, current: Weights, covered: int, step: int) -> None:
    """Takes the weights after ``step`` into the running mean, in place.

    They stand for all steps since the mean was last updated.

    Args:
      mean: float64, the mean over ``covered`` steps.
    """
    if step > covered:
        weight = (step - covered) / step
        for name, value in mean.items():
            value.mul_(1.0 - weight).add_(current[name].double(), alpha=weight)
