"""Waveform normalisation, the first step of XLSR, in a form that can stream.

Letters: N batch, n samples, T frames. ``overlap`` = receptive field - hop = 80 samples: a
frame arrives with 320 samples, the first one with 80 more.

``cumulative`` is the streaming form: the samples that complete frame t are normalised
with mean and variance of all samples up to there, and never again. The result does not
depend on the chunk size. A prior worth a second of speech at a usual level keeps a quiet
start from being blown up.
"""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor

from xlsr_transducer.core.errors import UserError

MODES = ("cumulative", "utterance", "none")
PRIOR_SAMPLES = 16000.0
PRIOR_VARIANCE = 0.05**2  # speech at -26 dB of full scale


def check_mode(mode: str, streaming: bool = False) -> str:
    """Returns ``mode``, or refuses it with the reason."""
    if mode not in MODES:
        raise UserError(f"--normalize {mode}: must be one of {', '.join(MODES)}")
    if streaming and mode == "utterance":
        raise UserError(
            "--normalize utterance needs the mean and variance of the whole utterance and so "
            "cannot stream; use --normalize cumulative"
        )
    return mode


def normalize_utterance(x: Tensor, lens: Tensor) -> Tensor:
    """Normalises each row to zero mean and unit variance (Hugging Face's feature extractor).

    Args:
      x: (N, n) samples, anything beyond a row's length.
      lens: (N,) int64.

    Returns:
      (N, n), zero beyond the lengths.
    """
    is_sample = torch.arange(x.shape[1], device=x.device) < lens.unsqueeze(1)
    count = lens.clamp(min=1).unsqueeze(1)
    wide = x.double().masked_fill(~is_sample, 0.0)
    mean = wide.sum(1, keepdim=True) / count
    centred = (wide - mean).masked_fill(~is_sample, 0.0)
    variance = centred.square().sum(1, keepdim=True) / count
    return (centred / (variance + 1e-7).sqrt()).to(x.dtype)


def normalize_cumulative(x: Tensor, hop: int, overlap: int) -> Tensor:
    """Normalises by the cumulative form over whole rows.

    Padding needs no care: no sample is influenced by a later one.

    Args:
      x: (N, n) samples.

    Returns:
      (N, overlap + T * hop) samples; those after the last complete frame are dropped.
    """
    frames = max((x.shape[1] - overlap) // hop, 0)
    if frames == 0:
        return x.new_zeros(x.shape[0], overlap)
    done = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    stats = torch.zeros(x.shape[0], 2, dtype=torch.float64, device=x.device)
    start, body = x[:, :overlap], x[:, overlap : overlap + frames * hop]
    start, body, _ = cumulative_step(body, start, stats, done, hop)
    return torch.cat((start, body), dim=1)


def cumulative_step(
    x: Tensor,
    tail: Tensor,
    stats: Tensor,
    done: Tensor,
    hop: int,
    prior_samples: float = PRIOR_SAMPLES,
    prior_variance: float = PRIOR_VARIANCE,
) -> Tuple[Tensor, Tensor, Tensor]:
    """Normalises the samples of some frames as they arrive.

    Args:
      x: (N, T * hop) new raw samples.
      tail: (N, overlap): of a stream at its start, its first samples, raw; later, the
        last samples as they were normalised at arrival.
      stats: (N, 2) float64, sum and sum of squares of all samples so far.
      done: (N,) int64, frames so far.

    Returns:
      ``tail`` normalised, ``x`` normalised, and the sums after each frame (N, T + 1, 2).
    """
    overlap = tail.shape[1]
    is_start = (done == 0).unsqueeze(1)
    first = tail.double()
    first_sums = torch.stack((first.sum(1), first.square().sum(1)), dim=1)
    frames = x.double().reshape(x.shape[0], -1, hop)
    sums = torch.stack((frames.sum(2), frames.square().sum(2)), dim=2)
    sums = torch.cat((torch.where(is_start, first_sums, stats).unsqueeze(1), sums), dim=1)
    sums = sums.cumsum(1)
    arrived = torch.arange(1, frames.shape[1] + 1, device=x.device) + done.unsqueeze(1)
    count = (arrived * hop + overlap).unsqueeze(2) + prior_samples
    mean = sums[:, 1:, :1] / count
    square = (sums[:, 1:, 1:] + prior_samples * prior_variance) / count
    scale = (square - mean.square()).clamp(min=0.0).add(1e-7).rsqrt()
    out = ((frames - mean) * scale).flatten(1).to(x.dtype)
    new_tail = ((first - mean[:, 0]) * scale[:, 0]).to(tail.dtype)
    return torch.where(is_start, new_tail, tail), out, sums
