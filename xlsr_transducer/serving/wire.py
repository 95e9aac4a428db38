"""Audio on the wire: from the bytes of messages, cut anywhere, to samples at 16 kHz."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.data.audio_file import Resampler

# Samples beyond this are no audio in [-1, 1], but 16-bit numbers, or noise.
LARGEST = 16.0
RATES = (4000, 192000)  # Hz, from, to


class BadAudio(Exception):
    """Why a message cannot be audio; the text is the reason given to the caller."""


def _float32(data: bytes) -> np.ndarray:
    samples = np.frombuffer(data, dtype="<f4").astype(np.float32)
    if not np.isfinite(samples).all():
        raise BadAudio("samples must be numbers, and some are NaN or infinite")
    if len(samples) and np.abs(samples).max() > LARGEST:
        raise BadAudio(
            f"samples must be float32 in [-1, 1], and one is {np.abs(samples).max():.4g}; "
            "divide 16-bit samples by 32768"
        )
    return samples


def _pcm16(data: bytes) -> np.ndarray:
    return np.frombuffer(data, dtype="<i2").astype(np.float32) / 32768


def _ulaw_table() -> np.ndarray:
    """Returns (256,) float32, the samples of ITU-T G.711's mu-law bytes."""
    code = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = (code >> 4) & 7, (code & 15).astype(np.int32)
    magnitude = (((mantissa << 3) + 132) << exponent) - 132
    return (np.where(code & 128, -magnitude, magnitude) / 32768).astype(np.float32)


def _alaw_table() -> np.ndarray:
    """Returns (256,) float32, the samples of ITU-T G.711's A-law bytes."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = ((code >> 4) & 7).astype(np.int32), (code & 15).astype(np.int32)
    magnitude = np.where(
        exponent == 0, (mantissa << 4) + 8, ((mantissa << 4) + 264) << np.maximum(exponent - 1, 0)
    )
    return (np.where(code & 128, magnitude, -magnitude) / 32768).astype(np.float32)


def _from_table(table: np.ndarray) -> Callable[[bytes], np.ndarray]:
    return lambda data: table[np.frombuffer(data, dtype=np.uint8)]


# Bytes per sample, and from bytes to float32 samples.
CODINGS: dict[str, tuple[int, Callable[[bytes], np.ndarray]]] = {
    "float32": (4, _float32),
    "pcm16": (2, _pcm16),
    "g711_ulaw": (1, _from_table(_ulaw_table())),
    "g711_alaw": (1, _from_table(_alaw_table())),
}


class WireAudio:
    """Decodes and resamples the audio of one stream; a sample may lie across two messages."""

    def __init__(self, coding: str, rate: int):
        """
        Args:
          coding: one of ``CODINGS``.
          rate: Hz.

        Raises:
          BadAudio: the rate is none of audio.
        """
        if not RATES[0] <= rate <= RATES[1]:
            raise BadAudio(f"rate {rate}: must be from {RATES[0]} to {RATES[1]} Hz")
        self._width, self._decode = CODINGS[coding]
        self._resampler = Resampler(rate, SAMPLING_RATE)
        self._rest = b""

    def decode(self, data: bytes) -> np.ndarray:
        """Returns (n,) float32 samples at 16 kHz of the next message.

        Raises:
          BadAudio: the message holds something else.
        """
        data = self._rest + data
        whole = len(data) - len(data) % self._width
        self._rest = data[whole:]
        return self._resampler(self._decode(data[:whole]))

    def finish(self) -> np.ndarray:
        """Returns (n,) samples that the resampler kept back.

        Raises:
          BadAudio: the audio ends within a sample.
        """
        if self._rest:
            raise BadAudio(f"the audio ends within a sample of {self._width} bytes")
        return self._resampler(np.zeros(0, np.float32), is_last=True)
