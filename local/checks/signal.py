"""Measures of one utterance's samples, from which the flags of its audio follow."""

from __future__ import annotations

import hashlib

import numpy as np

FRAME = 0.02  # seconds
_LOUDEST = 5  # frames: a click has fewer, a word has more
_BELOW_LOUDEST = 30.0  # dB: quieter frames at the ends are silence
INAUDIBLE = -60.0  # dBFS, of the loudest tenth of a second
_STEP = 1 / 32768
_NEARLY_FULL = 0.95  # of full scale: mu-law ends at 0.98
_SHORTEST_RUN = 3  # samples at full scale in a row: two may be a peak

# What is measured; seconds but for ``level`` (dBFS) and shares.
MEASURES = np.dtype(
    [
        ("digest", "u8"),  # of the samples, rounded to 16 bits
        ("level", "f4"),  # of the loudest tenth of a second, the mean taken off
        ("leading", "f4"),  # silence before the first sound
        ("trailing", "f4"),
        ("constant", "f4"),  # longest run of one and the same value
        ("clipped", "f4"),  # share of the samples that are in runs at full scale
        ("offset", "f4"),  # mean, as a share of full scale
    ]
)


def measure(samples: np.ndarray, rate: int) -> np.ndarray:
    """Returns one record of ``MEASURES``.

    Args:
      samples: (n,) float32, n from 1 up, as they are in the file. rate: Hz.
    """
    found = np.zeros((), dtype=MEASURES)
    mean = float(samples.mean(dtype=np.float64))
    levels = _frame_levels(samples - np.float32(mean), rate)
    found["digest"] = _digest(samples, rate)
    found["level"] = level = np.sort(levels)[-min(_LOUDEST, len(levels))]
    found["offset"] = mean
    if level > INAUDIBLE:
        sounds = np.flatnonzero(levels > max(level - _BELOW_LOUDEST, INAUDIBLE))
        found["leading"] = sounds[0] * FRAME
        found["trailing"] = (len(levels) - 1 - sounds[-1]) * FRAME
    found["constant"] = _longest_run(samples[1:] == samples[:-1]) / rate
    found["clipped"] = _clipped_share(samples)
    return found


def _frame_levels(samples: np.ndarray, rate: int) -> np.ndarray:
    """Returns the levels of frames in dBFS, of which a full-scale square wave has 0."""
    size = max(1, min(round(FRAME * rate), len(samples)))
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    power = np.einsum("fs,fs->f", frames, frames) / size
    return 10 * np.log10(np.maximum(power, 1e-12))


def _digest(samples: np.ndarray, rate: int) -> int:
    rounded = np.rint(np.clip(samples, -1, 1) * 32768).clip(-32768, 32767).astype("<i2")
    content = rounded.tobytes() + str(rate).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _longest_run(is_set: np.ndarray) -> int:
    """Returns the length of the longest run of set places."""
    ends = np.flatnonzero(~is_set)
    return int(np.diff(np.concatenate([[-1], ends, [len(is_set)]])).max()) - 1


def _clipped_share(samples: np.ndarray) -> float:
    """Returns the share of samples in runs at the largest value that occurs, if it is about full
    scale. An mp3 decoder exceeds it; what would be played counts."""
    played = np.clip(samples, -1, 1)
    share = 0.0
    for side in (played, -played):
        peak = float(side.max())
        if peak >= _NEARLY_FULL:
            share += _in_runs(side >= peak - 1.5 * _STEP) / len(samples)
    return share


def _in_runs(is_set: np.ndarray) -> int:
    """Returns how many set places are in runs of ``_SHORTEST_RUN`` or more."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_set, [False]])))
    lengths = edges[1::2] - edges[::2]
    return int(lengths[lengths >= _SHORTEST_RUN].sum())
