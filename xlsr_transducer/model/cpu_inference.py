"""Faster kernels for float32 recognition on a CPU, for the few rows of a chunk.

PyTorch hands matrix products to MKL; on some CPUs oneDNN takes two thirds of its time for a
chunk, on others more than MKL (``cpu_choice`` measures it). For the positional convolution
PyTorch uses oneDNN, which rearranges all weights at each call; one matrix product does not.
Results differ by rounding only. The swapped model neither trains nor exports: it is for commands
that recognise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlsr_transducer.core.compat import fast_linear, has_fast_linear
from xlsr_transducer.model.cpu_choice import AUTO, ONEDNN, choose_layers
from xlsr_transducer.model.wav2vec2_layers import PositionalConv

MOST_ROWS = 48  # outputs of all streams, above which the convolution is faster


class FastLinear(nn.Module):
    """``nn.Linear`` by oneDNN; parameters keep their names."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self._linear = fast_linear(linear.weight.detach(), linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., E)."""
        rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
        return self._linear(rows).view(x.shape[:-1] + self.weight.shape[:1])


class FastGroupedConv(nn.Module):
    """A grouped ``nn.Conv1d`` that takes few outputs as one matrix product."""

    def __init__(self, conv: nn.Conv1d):
        super().__init__()
        self.weight = conv.weight
        self.bias = conv.bias
        self.groups = conv.groups

    def forward(self, x: Tensor) -> Tensor:
        """(N, D, T + K - 1) -> (N, D, T)."""
        batch, width, inputs = x.shape
        _, group_width, kernel = self.weight.shape
        frames = inputs - kernel + 1
        if batch * frames > MOST_ROWS:
            return F.conv1d(x, self.weight, self.bias, groups=self.groups)
        windows = x.unfold(2, kernel, 1).reshape(batch, self.groups, group_width, frames, kernel)
        rows = windows.permute(1, 0, 3, 2, 4).reshape(self.groups, batch * frames, -1)
        weight = self.weight.view(self.groups, group_width, -1).transpose(1, 2)
        out = torch.baddbmm(self.bias.view(self.groups, 1, group_width), rows, weight)
        out = out.view(self.groups, batch, frames, group_width).permute(1, 0, 3, 2)
        return out.reshape(batch, width, frames)


def prepare_for_cpu(model: nn.Module, layers: str = AUTO) -> nn.Module:
    """Swaps layers of a float32 model on a CPU in evaluation mode; returns the model.

    Anything else is left as it is.

    Args:
      layers: of ``CPU_LAYERS``: what computes linear layers. ``auto`` chooses for the model's
        width, once per machine.
    """
    if model.training:
        return model
    linears = [m for m in model.modules() if type(m) is nn.Linear and _fits(m)]
    if layers == AUTO:
        # The hidden size: the narrower side of the widest layer.
        layers = choose_layers(max((min(m.weight.shape) for m in linears), default=0))
    for parent in list(model.modules()):
        if isinstance(parent, PositionalConv) and _fits(parent.conv):
            parent.conv = FastGroupedConv(parent.conv).eval()
        for name, child in list(parent.named_children()):
            if (
                layers == ONEDNN
                and type(child) is nn.Linear
                and _fits(child)
                and has_fast_linear()
            ):
                setattr(parent, name, FastLinear(child).eval())
    return model


def _fits(layer: nn.Module) -> bool:
    return layer.weight.dtype == torch.float32 and layer.weight.device.type == "cpu"
