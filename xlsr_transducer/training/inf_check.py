"""``--inf-check``: names the first module whose output or gradient is not finite, and stops.

Every module's output is looked at when it is computed, and the gradients with respect to
outputs and parameters when backward reaches them. Every look waits for the device, so that a
training with it is several times slower.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from xlsr_transducer.core.errors import UserError


class InfCheck:
    """Watches the modules of a model until ``remove``.

    Raises (out of the model's forward, or out of backward):
      UserError: names the first module, in order of computation, whose output or gradient is
        not finite, and whether its input and its parameters were.
    """

    def __init__(self, model: nn.Module, gradients: bool = True):
        """
        Args:
          gradients: look at gradients too. Not with float16, where the loss scale is found by
            letting some of them overflow.
        """
        self.gradients = gradients
        self.last = "the input of the model"
        self.handles = []
        for name, module in model.named_modules():
            check = functools.partial(self._check_output, name or "the whole model")
            self.handles.append(module.register_forward_hook(check))
        if gradients:
            for name, parameter in model.named_parameters():
                self._watch_parameter(name, parameter)

    def remove(self) -> None:
        """Watches no more."""
        for handle in self.handles:
            handle.remove()

    def _watch_parameter(self, name: str, parameter: nn.Parameter) -> None:
        # A frozen parameter takes no hook, but may be thawed later.
        was_trained = parameter.requires_grad
        parameter.requires_grad_(True)
        check = functools.partial(_check_gradient, f"the gradient of the parameter {name}")
        self.handles.append(parameter.register_hook(check))
        parameter.requires_grad_(was_trained)

    def _check_output(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        for value in _tensors(output):
            if not bool(torch.isfinite(value).all()):
                cause = self._cause(module, inputs)
                raise UserError(f"--inf-check: the output of {name} is {_bad(value)}; {cause}")
            if self.gradients and value.requires_grad:
                what = f"the gradient with respect to the output of {name}"
                value.register_hook(functools.partial(_check_gradient, what))
        self.last = name

    def _cause(self, module: nn.Module, inputs: Any) -> str:
        """Where to look: what went in, what the module itself holds."""
        for name, value in module.named_parameters():
            if not bool(torch.isfinite(value).all()):
                return f"its parameter {name} is {_bad(value.detach())}"
        for value in _tensors(inputs):
            if not bool(torch.isfinite(value).all()):
                return f"its input is {_bad(value)} already: look after {self.last}"
        sizes = [float(v.detach().abs().max()) for v in _tensors(inputs) if v.numel()]
        largest = max(sizes, default=0.0)
        return f"its parameters and its input (largest value {largest:.3g}) are finite"


def _check_gradient(what: str, gradient: Tensor) -> None:
    if not bool(torch.isfinite(gradient).all()):
        raise UserError(f"--inf-check: {what} is {_bad(gradient)}; those before it were finite")


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in nested tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _bad(value: Tensor) -> str:
    """``not finite (3 NaN and 0 inf of 1024 values, the first at [0, 2])``."""
    first = (~torch.isfinite(value)).nonzero()[0].tolist()
    nan, inf = int(value.isnan().sum()), int(value.isinf().sum())
    return f"not finite ({nan} NaN and {inf} inf of {value.numel()} values, the first at {first})"
