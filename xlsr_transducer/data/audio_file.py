"""Audio files as samples at 16 kHz, with soundfile and scipy alone: what a server installs.

The samples are those of ``data/audio.py``, which reads through lhotse (without torchaudio;
with it, lhotse resamples with another filter).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile

from xlsr_transducer.errors import UserError

SAMPLING_RATE = 16000


def read_audio_file(path: str | Path) -> np.ndarray:
    """Reads channel 0 of a wav, flac, ogg or mp3 file of any rate.

    Returns:
      (n,) float32 in [-1, 1].

    Raises:
      UserError: the file is missing, cannot be read, or holds no audio or no numbers.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such audio file")
    try:
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, ValueError) as e:
        reason = str(e).splitlines()[0].split(": ")[-1].rstrip(".")
        raise UserError(f"{path}: unreadable audio ({reason})") from e
    if len(samples) == 0:
        raise UserError(f"{path}: holds no audio")
    wave = np.ascontiguousarray(samples[:, 0])
    if not np.isfinite(wave).all():
        raise UserError(f"{path}: holds samples that are not numbers, or infinite")
    return resample(wave, rate)


def resample(wave: np.ndarray, rate: int) -> np.ndarray:
    """(n,) samples at ``rate`` -> (n',) at 16 kHz."""
    if rate == SAMPLING_RATE:
        return wave
    common = math.gcd(rate, SAMPLING_RATE)
    return scipy.signal.resample_poly(wave, SAMPLING_RATE // common, rate // common)
