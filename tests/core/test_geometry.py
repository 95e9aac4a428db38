"""Frames of 16 kHz audio beside their definition."""

from __future__ import annotations

import numpy as np
import torch
from lhotse.utils import compute_num_samples

from xlsr_transducer.core.geometry import (
    ENCODER_FRAME,
    FRAME_SHIFT,
    OVERLAP,
    encoder_frames,
    num_frames,
)


def test_frames_are_the_windows_that_fit() -> None:
    for samples in (0, 399, 400, 719, 720, 16000, 16001):
        windows = torch.zeros(max(samples, 400)).unfold(0, 400, 320)
        assert num_frames(samples) == (len(windows) if samples >= 400 else 0)
    assert (OVERLAP, FRAME_SHIFT, ENCODER_FRAME) == (80, 0.02, 0.04)


def test_encoder_frames_are_pairs_of_xlsr_frames_an_odd_last_one_included() -> None:
    rng = np.random.default_rng(0)
    # Random durations, whole frames, and halves of samples, which lhotse rounds up.
    seconds = [0.0, *rng.uniform(0, 30, 2000), *(np.arange(1, 400) * 320 + 79.5) / 16000, 0.045]
    expected = [-(-num_frames(compute_num_samples(s, 16000)) // 2) for s in seconds]
    assert encoder_frames(np.array(seconds)).tolist() == expected
    assert [int(encoder_frames(s)) for s in seconds[:50]] == expected[:50]
