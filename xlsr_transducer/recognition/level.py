"""The level of whole recordings: ``decode --normalize-level 1``."""

from __future__ import annotations

import dataclasses

import numpy as np
from lhotse.cut import Cut

from xlsr_transducer.core.options import Options, option
from xlsr_transducer.data.batches import Change

USUAL_LEVEL = 0.05  # rms from which the normalisation of waveforms starts, -26 dBFS


@dataclasses.dataclass(frozen=True)
class LevelOptions(Options):
    """Level."""

    normalize_level: bool = option(
        False, "bring each recording to -26 dBFS first, which needs all of it and does not stream"
    )

    def change(self) -> Change:
        """What is done to each recording, as ``batches`` takes it."""
        return _of_cut if self.normalize_level else None

    def suffix(self) -> list[str]:
        """The part of result file names that carries it."""
        return ["normalize-level"] if self.normalize_level else []


def _of_cut(cut: Cut, wave: np.ndarray, pause: float) -> np.ndarray:
    return at_level(wave)


def at_level(wave: np.ndarray, rms: float = USUAL_LEVEL) -> np.ndarray:
    """Returns (n,) samples without their mean, scaled to an rms; silence becomes zeros.

    Samples may exceed full scale, which does no harm to numbers that are not stored as integers.
    """
    centred = wave.astype(np.float64)
    centred -= centred.mean() if len(wave) else 0.0
    found = float(np.sqrt(np.mean(np.square(centred)))) if len(wave) else 0.0
    return (centred * (rms / found if found else 1.0)).astype(np.float32)
