"""Pauses between words: where the model emits nothing, and it is quiet."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from xlsr_transducer.core.geometry import FRAME_SHIFT
from xlsr_transducer.recognition.long_encoding import Encoded

PADDING = 0.05  # seconds of a pause that stay with the speech before it, and after it
_AROUND = 1.5  # seconds before and after, whose level is that of speech
_DELAY = 0.6  # seconds after the end of a word in which its last token may come
_EARLY = 0.2  # seconds before the beginning of a word in which its first token may come
_LEAST = 6.0  # dB between speech and a pause
_MOST = 40.0  # dB; a digital zero is no measure for silence
_SHARE = 0.5  # of the way from the quietest to speech, up to which it is quiet


class Pause(NamedTuple):
    """Between speech that ends at ``start`` and speech that begins at ``end``, in seconds."""

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.end - self.start

    @property
    def padding(self) -> float:
        """How much of it stays with the speech on either side."""
        return min(PADDING, self.seconds / 2)


def find_pause(encoded: Encoded, after: float, before: float, least: float) -> Pause | None:
    """Returns the pause between the last token of a word and the first of the next.

    If there are several stretches of quiet, from the start of the first to the end of the last:
    what is between is no speech that the model knows.

    Args:
      after, before: seconds; when the tokens come. They may come late, within the next speech.
      least: seconds of quiet that are a pause.
    """
    step = encoded.frame_seconds
    first = max(int((after - _AROUND) / step), 0)
    last = min(int((before + _AROUND) / step) + 1, encoded.num_frames)
    levels = encoded.levels(first, last)
    low, high = (round((t - first * step) / FRAME_SHIFT) for t in (after, before))
    low, high = max(low, 0), min(high, len(levels))
    if high - low < 1:
        return None
    around = np.concatenate([levels[:low], levels[high:]])
    speech = float(np.percentile(around if len(around) else levels, 80))
    smooth = np.convolve(np.pad(levels, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")
    floor = max(float(smooth[low:high].min()), speech - _MOST)
    if speech - floor < _LEAST:
        return None
    start, end = max(low - round(_DELAY / FRAME_SHIFT), 0), high + round(_EARLY / FRAME_SHIFT)
    is_quiet = smooth[start:end] < floor + _SHARE * (speech - floor)
    runs = [(start + a, start + b) for a, b in _runs(is_quiet)]
    wanted = round(least / FRAME_SHIFT)
    runs = [(a, b) for a, b in runs if b - a >= wanted and a < high and b > low]
    if not runs:
        return None
    return Pause(*(first * step + FRAME_SHIFT * at for at in (runs[0][0], runs[-1][1])))


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """Returns from where up to where a mask (n,) is true."""
    edges = np.flatnonzero(np.diff(np.pad(mask.astype(np.int8), 1)))
    return [tuple(pair) for pair in edges.reshape(-1, 2).tolist()]
