"""The front end of XLSR (wav2vec 2.0): convolutions over samples, and the projection above them.

Parameter names are those of Hugging Face's ``Wav2Vec2Model``. Letters: N batch, n samples, T
frames of 20 ms, D width.
"""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor, nn

from xlsr_transducer.core.compat import gelu
from xlsr_transducer.model.xlsr_config import XlsrConfig


class ConvLayer(nn.Module):
    """One convolution of the front end, with the norm that its place asks for."""

    __constants__ = ["has_layer_norm", "has_group_norm"]  # TorchScript compiles the norm there is

    def __init__(self, config: XlsrConfig, index: int):
        super().__init__()
        width_in = config.conv_dim[index - 1] if index else 1
        width = config.conv_dim[index]
        self.conv = nn.Conv1d(
            width_in,
            width,
            config.conv_kernel[index],
            stride=config.conv_stride[index],
            bias=config.conv_bias,
        )
        self.has_layer_norm = config.feat_extract_norm == "layer"
        self.has_group_norm = config.feat_extract_norm == "group" and index == 0
        if self.has_layer_norm:
            self.layer_norm = nn.LayerNorm(width, eps=1e-5)
        elif self.has_group_norm:
            self.layer_norm = nn.GroupNorm(width, width)
        else:
            self.layer_norm = nn.Identity()

    def forward(self, x: Tensor, lens: Tensor) -> Tuple[Tensor, Tensor]:
        """(N, width_in, n), lengths -> (N, width, n'), lengths."""
        x = self.conv(x)
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        lens = (torch.div(lens - kernel, stride, rounding_mode="floor") + 1).clamp(min=0)
        if self.has_layer_norm:
            x = self.layer_norm(x.transpose(1, 2)).transpose(1, 2)
        elif self.has_group_norm:
            x = _masked_group_norm(x, lens, self.layer_norm.weight, self.layer_norm.bias)
        return gelu(x), lens


def _masked_group_norm(x: Tensor, lens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GroupNorm with a group per channel, over the valid part of each row of (N, D, T)."""
    valid = (torch.arange(x.shape[2], device=x.device) < lens.unsqueeze(1)).unsqueeze(1)
    count = lens.clamp(min=1).to(x.dtype).view(-1, 1, 1)
    mean = x.masked_fill(~valid, 0.0).sum(2, keepdim=True) / count
    centred = (x - mean).masked_fill(~valid, 0.0)
    variance = centred.square().sum(2, keepdim=True) / count
    return centred * (variance + 1e-5).rsqrt() * weight.unsqueeze(1) + bias.unsqueeze(1)


class FeatureEncoder(nn.Module):
    """The convolutional front end: 400 samples in view, one frame every 320."""

    def __init__(self, config: XlsrConfig):
        super().__init__()
        self.conv_layers = nn.ModuleList(
            [ConvLayer(config, i) for i in range(len(config.conv_dim))]
        )

    def forward(self, x: Tensor, lens: Tensor) -> Tuple[Tensor, Tensor]:
        """(N, n) samples -> (N, T, D) with T = floor((n - 400) / 320) + 1, and lengths."""
        # Audio is normalised and kept in float32 even where the network has fewer bits.
        x = x.unsqueeze(1).to(self.conv_layers[0].conv.weight.dtype)
        for layer in self.conv_layers:
            x, lens = layer(x, lens)
        return x.transpose(1, 2), lens


class FeatureProjection(nn.Module):
    """Norm and projection of front-end features to the width of the transformer."""

    def __init__(self, config: XlsrConfig):
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.layer_norm_eps)
        self.projection = nn.Linear(config.conv_dim[-1], config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(self.layer_norm(x))
