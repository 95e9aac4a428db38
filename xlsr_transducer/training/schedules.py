"""How the learning rate changes over a training: factors by the share of it that is done.

The share of its data, not of steps or epochs: a training takes the same course whatever its
batches, GPUs or epochs, and a corpus ten times larger is a training ten times longer. With
``--num-updates`` it is the share of the updates, as in fairseq.
"""

from __future__ import annotations

TRI_STAGE_START = 0.01
TRI_STAGE_END = 0.05
EDEN_START = 0.5


def tri_stage(progress: float, warmup: float, hold: float, num_updates: int = 0) -> float:
    """Rise, hold, decay: linear from 1 % to 1, then 1, then exponential to 5 %.

    A. Babu et al., "XLS-R", Interspeech 2022 (fairseq's fine-tuning).

    Args:
      progress: share of the training that is done; beyond 1 counts as 1.
      warmup, hold: lengths of the first two stages, as shares of the training.
      num_updates: if above 0, each stage is cut to whole updates of so many, as in fairseq.
    """
    decay = 1.0 - warmup - hold
    if num_updates:
        # Rounded first: 1 - 0.1 - 0.6 is a little less than 0.3.
        whole = (int(round(share * num_updates, 6)) for share in (warmup, hold, decay))
        warmup, hold, decay = (stage / num_updates for stage in whole)
    progress = min(progress, 1.0)
    if progress < warmup:
        return TRI_STAGE_START + (1.0 - TRI_STAGE_START) * progress / warmup
    into_decay = progress - warmup - hold
    if into_decay <= 0 or decay <= 0:
        return 1.0
    return TRI_STAGE_END ** min(into_decay / decay, 1.0)


def eden(progress: float, warmup: float, lr_batches: float, lr_epochs: float) -> float:
    """icefall's Eden: two factors that fall with the fourth root, and a short warm-up.

    Z. Yao et al., "Zipformer", ICLR 2024, section 3.5, where b counts batches and e epochs::

        ((b^2 + B^2) / B^2)^-1/4  ((e^2 + E^2) / E^2)^-1/4  rise from 1/2 to 1

    Both counts are proportional to the data seen, so b / B is progress / lr_batches when
    lr_batches is B over the batches of the training, and likewise with epochs.

    Args:
      progress: share of the training's data that has been seen.
      warmup: length of the rise; lr_batches, lr_epochs: where the two factors begin to fall; all
        as shares of the training's data.
    """
    by_batches = (1.0 + (progress / lr_batches) ** 2) ** -0.25
    by_epochs = (1.0 + (progress / lr_epochs) ** 2) ** -0.25
    rise = 1.0 if progress >= warmup else EDEN_START + (1.0 - EDEN_START) * progress / warmup
    return by_batches * by_epochs * rise
