"""Masks for training, which hide from XLSR spans of frames, blocks of channels, whole layers.

Spans and blocks as in wav2vec 2.0 and SpecAugment (D. Park et al., Interspeech 2019), layers as
in LayerDrop (A. Fan et al., ICLR 2020). Spans are drawn from PyTorch's generator of the CPU,
which every batch seeds anew. Layers are drawn from the number of the step: all of its batches
leave out the same ones, on every process.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor

from xlsr_transducer.model.wav2vec2 import Wav2Vec2


def draw_spans(rows: int, size: int, prob: float, longest: int, is_fixed: bool = False) -> Tensor:
    """Draws random spans in each row.

    Args:
      prob: share of a row that the spans would cover if none overlapped.
      longest: spans have 1 to ``longest`` places, each length as likely as another.
      is_fixed: all have ``longest`` places, and a row as many of them as fairseq's
        ``compute_mask_indices`` gives it: prob * size / longest, rounded at random.

    Returns:
      (rows, size) bool, True inside spans.
    """
    if is_fixed:
        starts = _fixed_starts(rows, size, prob, longest)
        lengths = torch.full((rows, size), longest)
    else:
        starts = torch.rand(rows, size) < prob / ((1 + longest) / 2)
        lengths = torch.randint(1, longest + 1, (rows, size))
    left = torch.where(starts, lengths, torch.zeros_like(lengths))
    mask = torch.zeros(rows, size, dtype=torch.bool)
    for shift in range(min(longest, size)):
        mask |= F.pad(left > shift, (shift, 0))[:, :size]
    return mask


def _fixed_starts(rows: int, size: int, prob: float, longest: int) -> Tensor:
    """Returns (rows, size) bool, True where a span begins: no two at one place, and before the
    last ``longest`` places, if there are so many."""
    counts = (prob * size / longest + torch.rand(rows, 1)).floor()
    order = torch.rand(rows, size)
    order[:, max(size - longest + 1, 1) :] += 1.0  # comes last
    return order.argsort(1).argsort(1) < counts


def drop_layers(xlsr: Wav2Vec2, prob: float, seed: int, step: int) -> None:
    """Chooses the layers that ``xlsr`` leaves out in training, until the next call.

    Only layers that are trained now are dropped, each with probability ``prob``. The choice
    depends on seed and step alone.
    """
    rng = random.Random(f"layers {seed} {step}")
    for layer in xlsr.encoder.layers.values() if xlsr.has_layers else ():
        is_chosen = rng.random() < prob
        layer.is_dropped = is_chosen and any(p.requires_grad for p in layer.parameters())
