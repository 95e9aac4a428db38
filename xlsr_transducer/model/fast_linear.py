"""Linear layers through oneDNN, for float32 inference on x86 CPUs.

PyTorch hands matrix products to MKL. For the few rows of a chunk oneDNN takes about two
thirds of its time on AMD CPUs, at the same memory. The swap is for commands that recognise
on a CPU: the result differs by rounding only, but it neither trains nor exports.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FastLinear(nn.Module):
    """``nn.Linear`` for inference; parameters keep their names."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., E)."""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def is_available() -> bool:
    """Whether this PyTorch has oneDNN and lets us call it."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def use_fast_linear(model: nn.Module) -> nn.Module:
    """Swaps the linear layers of a float32 model on a CPU in evaluation mode; returns the model.

    Anything else is left as it is.
    """
    if model.training or not is_available():
        return model
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and _fits(child.weight):
                setattr(parent, name, FastLinear(child).eval())
    return model


def _fits(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu"
