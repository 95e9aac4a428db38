"""Distillation: how far a model is from a teacher, in its layers and in its heads.

As in CALD (M. He and P. Garner, "Joint Fine-tuning and Conversion of Pretrained Speech and
Language Models towards Linear Complexity", ICLR 2025). Letters: N batch, T frames, D width of
XLSR, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 2.0  # softens the outputs that are compared


def layer_distance(student: Sequence[Tensor], teacher: Sequence[Tensor], lens: Tensor) -> Tensor:
    """Returns the mean squared distance of normed layer outputs, (N,).

    The norm is a layer norm without weights. The mean is over layers, channels and valid frames.

    Args:
      student, teacher: as many layers, each (N, T, D). lens: (N,) int64, valid frames.
    """
    is_frame = torch.arange(student[0].shape[1], device=lens.device) < lens.unsqueeze(1)
    total = torch.zeros(len(lens), device=lens.device)
    for ours, theirs in zip(student, teacher):
        shape = ours.shape[2:]
        ours, theirs = F.layer_norm(ours.float(), shape), F.layer_norm(theirs.float(), shape)
        total = total + mean_over((ours - theirs).square().mean(2), is_frame)
    return total / len(student)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns the Kullback-Leibler divergence of softened outputs from the teacher's, in nats.

    Args:
      student, teacher: (*, V) logits.

    Returns:
      (*): sum over V of p_teacher (log p_teacher - log p_student).
    """
    ours = (student / TEMPERATURE).log_softmax(-1)
    theirs = (teacher / TEMPERATURE).log_softmax(-1)
    return F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)


def mean_over(values: Tensor, is_valid: Tensor) -> Tensor:
    """Returns each row's mean over its valid places, (N,); 0 of a row without any.

    Args:
      values: (N, ...). is_valid: bool of the same shape.
    """
    total = values.masked_fill(~is_valid, 0.0).flatten(1).sum(1)
    return total / is_valid.flatten(1).sum(1).clamp(min=1)
