"""The geometry of 16 kHz audio: samples, XLSR frames of 20 ms, encoder frames of 40 ms."""

from __future__ import annotations

from typing import Union

import numpy as np

SAMPLING_RATE = 16000
RECEPTIVE_FIELD = 400  # samples that an XLSR frame sees
HOP = 320  # samples from one XLSR frame to the next
OVERLAP = RECEPTIVE_FIELD - HOP  # samples that two neighbouring frames share
FRAME_SHIFT = HOP / SAMPLING_RATE  # seconds: 0.02
SUBSAMPLING = 2  # XLSR frames per encoder frame
ENCODER_FRAME = SUBSAMPLING * FRAME_SHIFT  # seconds


def num_frames(num_samples: int) -> int:
    """Returns the number of XLSR frames of this many samples."""
    return max((num_samples - RECEPTIVE_FIELD) // HOP + 1, 0)


def encoder_frames(
    seconds: Union[float, np.ndarray], subsampling: int = SUBSAMPLING
) -> np.ndarray:
    """Returns the number of encoder frames of this much audio, int64, in the shape of ``seconds``.

    Seconds become samples as in ``lhotse.utils.compute_num_samples``, which rounds halves up.
    """
    samples = np.floor(np.round(np.multiply(seconds, SAMPLING_RATE), 8) + 0.5).astype(np.int64)
    xlsr_frames = (samples - RECEPTIVE_FIELD) // HOP + 1
    return np.maximum(-(-xlsr_frames // subsampling), 0)
