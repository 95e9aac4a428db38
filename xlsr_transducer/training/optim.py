"""Freezing, parameter groups, optimizer, schedule, clipping."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from xlsr_transducer.core.compat import fused_adamw
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Options, flag_of, option
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.training.lora import add_lora
from xlsr_transducer.training.scaled_adam import ScaledAdam
from xlsr_transducer.training.schedules import eden, tri_stage

ADAMW, SCALED_ADAM = "adamw", "scaled_adam"
# What an option that is not given means to each optimizer; one that is missing does not apply.
DEFAULTS: dict[str, dict[str, float]] = {
    ADAMW: {
        "base_lr": 0.001,
        "weight_decay": 0.01,
        "clip_grad": 2.0,
        "warmup_fraction": 0.1,
        "hold_fraction": 0.4,
    },
    SCALED_ADAM: {
        "base_lr": 0.045,
        "clipping_scale": 2.0,
        "warmup_fraction": 0.01,
        "lr_batches_fraction": 0.1,
        "lr_epochs_fraction": 0.12,
    },
}


def _own(name: str, help: str, **bounds: float) -> Any:
    """An option whose default depends on the optimizer."""
    values = [f"{o}: {DEFAULTS[o][name]}" for o in DEFAULTS if name in DEFAULTS[o]]
    return option(None, f"{help} ({', '.join(values)})", **bounds)


@dataclasses.dataclass(frozen=True)
class OptimOptions(Options):
    """Optimization. The schedule is the optimizer's: tri-stage, or Eden with scaled_adam."""

    optimizer: str = option(ADAMW, "how steps are taken", (ADAMW, SCALED_ADAM))
    base_lr: float | None = _own(
        "base_lr",
        "peak rate of adapter, decoder and joiner; of scaled_adam a relative change",
        above=0,
    )
    encoder_lr_scale: float = option(
        0.1, "rate of XLSR's layers relative to --base-lr", at_least=0
    )
    layer_lr_decay: float = option(
        1.0, "rate of each layer of XLSR relative to the layer above it", above=0, at_most=1
    )
    weight_decay: float | None = _own("weight_decay", "decay of matrices", at_least=0)
    warmup_fraction: float | None = _own(
        "warmup_fraction",
        "share of the training in which the rate rises",
        at_least=0,
        at_most=1,
    )
    hold_fraction: float | None = _own(
        "hold_fraction", "share at the peak rate, after that", at_least=0, at_most=1
    )
    lr_batches_fraction: float | None = _own(
        "lr_batches_fraction", "Eden's lr_batches as a share of all batches", above=0, at_most=10
    )
    lr_epochs_fraction: float | None = _own(
        "lr_epochs_fraction", "Eden's lr_epochs as a share of all epochs", above=0, at_most=10
    )
    clip_grad: float | None = _own(
        "clip_grad", "largest gradient norm, of the loss per token; 0: any", at_least=0
    )
    clipping_scale: float | None = _own(
        "clipping_scale", "largest gradient norm, in medians of the last 100", above=0
    )
    freeze_encoder_steps: int = option(0, "steps before XLSR's layers are trained too", at_least=0)
    trainable_layers: int = option(
        -1, "top layers of XLSR that are trained; -1: all, 0: none", at_least=0, also=-1
    )
    lora_rank: int = option(
        0,
        "train only products of two matrices of this rank in XLSR's attention; 0: all weights",
        at_least=0,
    )
    lora_alpha: float | None = option(
        None, "LoRA's scale times its rank (twice the rank)", above=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in {name for defaults in DEFAULTS.values() for name in defaults}:
            default = DEFAULTS[self.optimizer].get(name)
            given = getattr(self, name)
            if given is None:
                object.__setattr__(self, name, default)
            elif default is None:
                raise UserError(
                    f"{flag_of(name)} {given} does not apply to --optimizer {self.optimizer}"
                )
        hold = self.hold_fraction or 0.0
        if self.warmup_fraction + hold > 1:
            raise UserError(
                f"--warmup-fraction {self.warmup_fraction} and --hold-fraction {hold} must be "
                "shares of one training"
            )
        self._check_lora()

    def _check_lora(self) -> None:
        if self.lora_rank == 0 and self.lora_alpha is not None:
            raise UserError(f"--lora-alpha {self.lora_alpha} needs --lora-rank")
        if self.lora_rank > 0 and self.trainable_layers == 0:
            raise UserError(f"--lora-rank {self.lora_rank} contradicts --trainable-layers 0")
        if self.lora_rank > 0 and self.lora_alpha is None:
            object.__setattr__(self, "lora_alpha", 2.0 * self.lora_rank)

    def rate_factor(self, progress: float, num_updates: int = 0) -> float:
        """The schedule's factor of the rate when a share ``progress`` of the training is done.

        Args:
          num_updates: of the training, if that is what it is counted in.
        """
        if self.optimizer == SCALED_ADAM:
            return eden(
                progress, self.warmup_fraction, self.lr_batches_fraction, self.lr_epochs_fraction
            )
        return tri_stage(progress, self.warmup_fraction, self.hold_fraction, num_updates)


def check_weighted_layers(encoder: EncoderOptions, options: OptimOptions) -> None:
    """Refuses options that train XLSR beside ``--weighted-layers 1``, which keeps it frozen.

    Raises:
      UserError: names the option.
    """
    if not encoder.weighted_layers:
        return
    trained = {
        "--trainable-layers": max(options.trainable_layers, 0),
        "--lora-rank": options.lora_rank,
        "--layerdrop": encoder.layerdrop,
    }
    for flag, value in trained.items():
        if value:
            raise UserError(
                f"--weighted-layers 1 contradicts {flag} {value}: it weighs the layers of a "
                "frozen XLSR; leave one of them out"
            )


def set_trainable(model: SpeechModel, options: OptimOptions, step: int) -> None:
    """Freezes and thaws XLSR's layers for ``step``; the front end is frozen always.

    A frozen part runs without dropout, as it did when it was pretrained.
    """
    xlsr, has_masks = model.encoder.xlsr, model.encoder.time_mask_prob > 0
    frozen_now = step < options.freeze_encoder_steps or options.trainable_layers == 0
    frozen_now = frozen_now or model.encoder.layer_weights is not None
    layers = _trained_layers(model, options)
    for name, parameter in xlsr.named_parameters():
        is_trained = not frozen_now and _is_trained(name, model, options, layers)
        if name == "masked_spec_embed" and not has_masks:
            is_trained = False  # as nothing uses it, which processes would wait for
        parameter.requires_grad_(is_trained)
    model.train()
    if not any(p.requires_grad for p in xlsr.parameters()):
        xlsr.eval()


def _is_trained(
    name: str, model: SpeechModel, options: OptimOptions, layers: dict[str, nn.Module]
) -> bool:
    if name.startswith("feature_extractor."):
        return False
    if options.lora_rank > 0:
        return ".lora_" in name
    if options.trainable_layers < 0:
        return True
    if name.startswith("encoder.layers."):
        return name.split(".")[2] in layers
    return _is_top_norm(name, model)


def _trained_layers(model: SpeechModel, options: OptimOptions) -> dict[str, nn.Module]:
    """The layers of XLSR, by number, that ``--trainable-layers`` asks for.

    Raises:
      UserError: there are not so many above the cut of the features.
    """
    layers = model.encoder.xlsr.encoder.layers if model.encoder.xlsr.has_layers else {}
    wanted = options.trainable_layers
    if wanted > len(layers):
        raise UserError(
            f"--trainable-layers {wanted}: of XLSR {len(layers)} layers lie above the cut of the "
            "features; -1 trains all of them"
        )
    return dict(list(layers.items())[0 if wanted < 0 else len(layers) - wanted :])


def prepare_lora(model: SpeechModel, options: OptimOptions) -> None:
    """Gives the trained layers of XLSR their small matrices, if ``--lora-rank`` asks for them.

    Raises:
      UserError: XLSR has no such layers, or is narrower than the rank.
    """
    layers, width = _trained_layers(model, options), model.encoder.config.hidden_size
    if options.lora_rank == 0:
        return
    if options.lora_rank > width:
        raise UserError(f"--lora-rank {options.lora_rank}: must be at most XLSR's width, {width}")
    if not layers:
        raise UserError(
            f"--lora-rank {options.lora_rank}: the features come from the top of XLSR and leave "
            "no layer to train; use features of --cut frontend"
        )
    add_lora(layers.values(), options.lora_rank, options.lora_alpha)


def _is_top_norm(name: str, model: SpeechModel) -> bool:
    """Whether it is of the norm after XLSR's last layer (wav2vec2-base has it at the bottom)."""
    return name.startswith("encoder.layer_norm.") and model.encoder.config.do_stable_layer_norm


def rate_scales(model: SpeechModel, options: OptimOptions) -> dict[str, float]:
    """Of each parameter, by name, its rate relative to ``--base-lr``.

    The top layer of XLSR has ``encoder_lr_scale``, the layer below ``layer_lr_decay`` of that, and
    so on; what lies below the lowest layer has a further factor, what stands around all of them
    the rate of its end.
    """
    prefix, scales = "encoder.xlsr.", {}
    layers = model.encoder.config.num_hidden_layers
    for name, _ in model.named_parameters():
        if not name.startswith(prefix):
            scales[name] = 1.0
            continue
        part = name[len(prefix) :]
        if part.startswith("encoder.layers."):
            below_top = layers - 1 - int(part.split(".")[2])
        else:
            below_top = 0 if _is_top_norm(part, model) else layers
        scales[name] = options.encoder_lr_scale * options.layer_lr_decay**below_top
    return scales


def make_optimizer(model: SpeechModel, options: OptimOptions) -> torch.optim.Optimizer:
    """The optimizer, with a group for each rate, and for parameters with and without decay."""
    scales = rate_scales(model, options)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decay = (options.weight_decay or 0.0) if parameter.dim() > 1 else 0.0
        groups.setdefault((scales[name], decay), []).append(parameter)
    if options.optimizer == SCALED_ADAM:
        groups_of_rates = [{"params": p, "lr_scale": s} for (s, _), p in groups.items()]
        return ScaledAdam(groups_of_rates, options.base_lr, clipping_scale=options.clipping_scale)
    return torch.optim.AdamW(
        [{"params": p, "lr_scale": s, "weight_decay": d} for (s, d), p in groups.items()],
        lr=options.base_lr,
        betas=(0.9, 0.98),
        **fused_adamw(),
    )


def scale_and_clip(gradients: list[Tensor], scale: float, options: OptimOptions) -> float:
    """Multiplies the gradient by ``scale`` and clips it to ``--clip-grad``, in one pass.

    ScaledAdam clips it itself, by the median of recent norms.

    Returns:
      the norm after scaling and before clipping; of one that is not finite nothing changes.
    """
    norms = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    whole = norms.full_tensor() if hasattr(norms, "full_tensor") else norms  # of shards
    norm = scale * float(whole)
    if math.isfinite(norm):
        most = options.clip_grad or math.inf
        torch._foreach_mul_(gradients, scale * min(most / (norm + 1e-6), 1.0))
    return norm


def set_learning_rate(
    optimizer: torch.optim.Optimizer,
    options: OptimOptions,
    progress: float,
    num_updates: int = 0,
) -> float:
    """Sets the rate of every group for this point of the training; returns the base rate.

    Args:
      progress, num_updates: as ``OptimOptions.rate_factor`` takes them.
    """
    rate = options.base_lr * options.rate_factor(progress, num_updates)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    return rate
