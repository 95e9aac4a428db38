"""LoRA: attention projections that stay as pretrained, plus a trained product of small matrices.

E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. To everything
that reads or averages weights, these layers are ordinary ones: their state dict holds the sum
under the ordinary name. A checkpoint keeps the matrices beside it, to resume from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.wav2vec2_layers import EncoderLayer

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")
PARTS = ("weight", "lora_a", "lora_b")


class LoraLinear(nn.Module):
    """y = W x + bias + alpha / rank B A x, with W and bias of ``base``; B begins as zero."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.lora_a = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_b = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.alpha, self.scale = alpha, alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        low = F.linear(F.linear(x, self.lora_a), self.lora_b)
        return F.linear(x, self.weight, self.bias) + low * self.scale

    def merged(self) -> Tensor:
        """The weight of an ordinary linear layer that computes the same."""
        return (self.weight + self.scale * self.lora_b @ self.lora_a).detach()

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.merged()
        destination[prefix + "bias"] = self.bias if keep_vars else self.bias.detach()

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Takes an ordinary layer's weight, as ``_save_to_state_dict`` gives it, to start from."""
        local_metadata, strict, missing, *others = args
        own: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, own, *others)
        missing += [name for name in own if "lora_" not in name]
        with torch.no_grad():
            self.lora_b.zero_()


def add_lora(layers: Iterable[EncoderLayer], rank: int, alpha: float) -> None:
    """Puts a ``LoraLinear`` in the place of each attention projection of ``layers``."""
    for layer in layers:
        for name in PROJECTIONS:
            base = getattr(layer.attention, name)
            setattr(layer.attention, name, LoraLinear(base, rank, alpha))


def _lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}


def lora_state(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Returns what a checkpoint holds beside the merged weights, to resume exactly."""
    return {
        name: {"alpha": m.alpha, **{part: getattr(m, part).detach().cpu() for part in PARTS}}
        for name, m in _lora_layers(model).items()
    }


def load_lora_state(model: nn.Module, state: dict[str, dict[str, Any]]) -> None:
    """Restores what ``lora_state`` gave.

    Raises:
      UserError: that training had LoRA in other layers, or of another size.
    """

    def describe(layers: dict[str, dict[str, Any]]) -> str:
        sizes = {f"rank {len(x['lora_a'])}, alpha {x['alpha']:g}" for x in layers.values()}
        return f"LoRA in {len(layers)} projections, {', '.join(sizes)}" if layers else "no LoRA"

    layers = _lora_layers(model)
    now, then = describe(lora_state(model)), describe(state)
    if layers.keys() != state.keys() or now != then:
        raise UserError(f"the checkpoint was trained with {then}, but the options ask for {now}")
    with torch.no_grad():
        for name, layer in layers.items():
            for part in PARTS:
                getattr(layer, part).copy_(state[name][part])
