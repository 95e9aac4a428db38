"""Audio files as samples, with soundfile and scipy alone: what a server installs.

``data/audio.py`` reads through lhotse, which decodes here too, so that every command receives the
same samples (without torchaudio; with it, lhotse resamples with another filter).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Union

import numpy as np
import scipy.signal
import soundfile

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.data.mp3 import without_length

_BLOCK = 1 << 16  # frames decoded at a time
_UNKNOWN_LENGTH = 1 << 62  # libsndfile's number of frames is larger where there is none to know


class AudioProblem(Exception):
    """Why a file cannot be used; the text is the reason given to the user."""


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """What a good file holds."""

    num_samples: int  # per channel
    sampling_rate: int  # Hz
    num_channels: int
    is_decoded: bool = False  # the length was found by decoding, as the header does not tell


Source = Union[str, Path, BinaryIO]


def measure(source: Source) -> AudioInfo:
    """Length, rate and channels: from the header, or by decoding where it does not tell.

    Raises:
      AudioProblem: the file cannot be read.
    """
    with _opened(source) as (file, silence):
        if silence is None:
            return AudioInfo(file.frames, file.samplerate, file.channels)
        frames = len(_read_to_the_end(file)) - silence
        return AudioInfo(frames, file.samplerate, file.channels, is_decoded=True)


def decode(
    source: Source, offset: float = 0.0, duration: float | None = None
) -> tuple[np.ndarray, int]:
    """Decodes a file, or ``duration`` seconds of it from ``offset`` on.

    Returns:
      (n, channels) float32, shorter where the file ends before; the rate in Hz.

    Raises:
      AudioProblem: the file cannot be read, or holds less than its header promises.
    """
    with _opened(source) as (file, silence):
        rate = file.samplerate
        start = _round(offset * rate)
        count = None if duration is None else _round(duration * rate)
        if silence is not None:
            return _read_to_the_end(file)[silence + start :][:count], rate
        start = min(start, file.frames)
        wanted = file.frames - start if count is None else min(count, file.frames - start)
        file.seek(start)
        samples = file.read(wanted, dtype="float32", always_2d=True)
        if len(samples) < wanted:
            missing = wanted - len(samples)
            raise AudioProblem(f"truncated audio: {missing} samples or more are missing")
        return samples, rate


def _round(samples: float) -> int:
    return math.floor(samples + 0.5)


def read_audio_file(path: str | Path) -> np.ndarray:
    """Reads channel 0 of a wav, flac, ogg, opus, mp3 or sph file of any rate.

    Returns:
      (n,) float32 in [-1, 1].

    Raises:
      UserError: the file is missing, cannot be read, or holds no audio or no numbers.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such audio file")
    try:
        samples, rate = decode(path)
    except AudioProblem as e:
        raise UserError(f"{path}: {e}") from e
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


class _Sequential(soundfile.SoundFile):
    """Read block by block from start to end, without soundfile's seek after each block."""

    def seekable(self) -> bool:
        return False


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[tuple[soundfile.SoundFile, int | None]]:
    """The open file; of one that does not tell its length, the samples of silence before its
    audio, to be read to its end."""
    with _problems_named(source):
        prepared = without_length(_read_bytes(source)) if _may_be_mp3(source) else None
        if prepared is not None:
            data, silence = prepared
            with _Sequential(io.BytesIO(data)) as file:
                yield file, silence
            return
        with soundfile.SoundFile(_rewound(source)) as file:
            if file.frames <= _UNKNOWN_LENGTH:
                yield file, None
                return
        with _Sequential(_rewound(source)) as file:  # FLAC that was written into a pipe
            yield file, 0


def _may_be_mp3(source: Source) -> bool:
    start = _read_bytes(source, 3)
    return start == b"ID3" or (start[:1] == b"\xff" and len(start) > 1 and start[1] >= 0xE0)


def _read_bytes(source: Source, count: int = -1) -> bytes:
    if isinstance(source, (str, Path)):
        with open(source, "rb") as f:
            return f.read(count)
    return _rewound(source).read(count)


def _rewound(source: Source) -> Source:
    if not isinstance(source, (str, Path)):
        source.seek(0)
    return source


def _read_to_the_end(file: soundfile.SoundFile) -> np.ndarray:
    blocks = [np.zeros((0, file.channels), dtype=np.float32)]
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block)
    return np.concatenate(blocks)


@contextlib.contextmanager
def _problems_named(source: Source) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise AudioProblem(f"unreadable audio: {e.strerror or e}") from e
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError) as e:
        raise AudioProblem(f"unreadable audio: {_reason(e, source)}") from e


def _reason(error: Exception, source: Source) -> str:
    start = _read_bytes(source, 1024)
    if start.startswith(b"NIST_1A") and b"embedded-shorten" in start:
        return "compressed by shorten, which libsndfile does not read; convert it with sph2pipe"
    text = " ".join((getattr(error, "error_string", "") or str(error)).split()).rstrip(".")
    if not text or "File does not exist" in text:  # libsndfile's words for broken MPEG audio too
        return "no audio that libsndfile can read"
    return text
