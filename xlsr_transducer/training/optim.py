"""What is trained, how fast, and when: freezing, parameter groups, schedule."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from xlsr_transducer.errors import UserError
from xlsr_transducer.model.transducer import Transducer
from xlsr_transducer.options import option

FINAL_RATE = 0.05  # of the base rate, at the end


@dataclasses.dataclass(frozen=True)
class OptimOptions:
    """Optimization."""

    base_lr: float = option(0.001, "peak learning rate of adapter, decoder and joiner")
    encoder_lr_scale: float = option(0.1, "rate of XLSR's layers relative to --base-lr")
    weight_decay: float = option(0.01, "AdamW's decay of matrices")
    warmup_fraction: float = option(0.1, "share of the training in which the rate rises")
    hold_fraction: float = option(0.4, "share of the training at the peak rate, after that")
    clip_grad: float = option(2.0, "longest gradient of the loss per token")
    freeze_encoder_steps: int = option(0, "steps before XLSR's layers are trained too")
    trainable_layers: int = option(-1, "top layers of XLSR that are trained; -1: all, 0: none")

    def __post_init__(self) -> None:
        if self.warmup_fraction + self.hold_fraction > 1 or self.warmup_fraction < 0:
            raise UserError(
                f"--warmup-fraction {self.warmup_fraction} and --hold-fraction "
                f"{self.hold_fraction} must be shares of one training"
            )


def tri_stage(progress: float, options: OptimOptions) -> float:
    """Factor of the learning rate: rise, hold, decay (the recipe of XLS-R).

    Linear from 1 % to 1, then 1, then exponential to 5 %.

    Args:
      progress: share of the training's data that has been seen, 0 to 1.
    """
    progress = min(progress, 1.0)
    if progress < options.warmup_fraction:
        return 0.01 + 0.99 * progress / options.warmup_fraction
    decay = 1.0 - options.warmup_fraction - options.hold_fraction
    into_decay = progress - options.warmup_fraction - options.hold_fraction
    if into_decay <= 0 or decay <= 0:
        return 1.0
    return FINAL_RATE ** (into_decay / decay)


def xlsr_parameters(model: Transducer) -> list[nn.Parameter]:
    """The parameters of the model's part of XLSR."""
    return list(model.encoder.xlsr.parameters())


def set_trainable(model: Transducer, options: OptimOptions, step: int) -> None:
    """Freezes and thaws XLSR's layers for ``step``; the front end is frozen always.

    A frozen part runs without dropout, as it did when it was pretrained.
    """
    xlsr = model.encoder.xlsr
    frozen_now = step < options.freeze_encoder_steps or options.trainable_layers == 0
    for name, parameter in xlsr.named_parameters():
        parameter.requires_grad_(not frozen_now and _is_trained(name, xlsr, options))
    model.train()
    if not any(p.requires_grad for p in xlsr.parameters()):
        xlsr.eval()


def _is_trained(name: str, xlsr: nn.Module, options: OptimOptions) -> bool:
    if name.startswith("feature_extractor."):
        return False
    if options.trainable_layers < 0:
        return True
    if name.startswith("encoder.layers."):
        numbers = sorted(int(n) for n in xlsr.encoder.layers)
        return int(name.split(".")[2]) in numbers[-options.trainable_layers :]
    return name.startswith("encoder.layer_norm.")


def make_optimizer(model: Transducer, options: OptimOptions) -> torch.optim.AdamW:
    """AdamW with four groups: XLSR and the rest, with and without weight decay."""
    of_xlsr = {id(p) for p in xlsr_parameters(model)}
    groups = []
    for is_xlsr in (True, False):
        scale = options.encoder_lr_scale if is_xlsr else 1.0
        for is_matrix in (True, False):
            chosen = [
                p
                for p in model.parameters()
                if (id(p) in of_xlsr) == is_xlsr and (p.dim() > 1) == is_matrix
            ]
            decay = options.weight_decay if is_matrix else 0.0
            groups.append({"params": chosen, "lr_scale": scale, "weight_decay": decay})
    return torch.optim.AdamW(groups, lr=options.base_lr, betas=(0.9, 0.98))


def set_learning_rate(
    optimizer: torch.optim.Optimizer, options: OptimOptions, progress: float
) -> float:
    """Sets the rate of every group for this point of the training; returns the base rate."""
    rate = options.base_lr * tri_stage(progress, options)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    return rate
