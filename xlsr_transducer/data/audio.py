"""Reads the samples of a file or a lhotse cut, in one way for every command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO, Optional, Union

import numpy as np
from lhotse import MonoCut, Recording
from lhotse.audio.backend import (
    LibsndfileBackend,
    LibsndfileCompatibleAudioInfo,
    set_current_audio_backend,
)
from lhotse.audio.utils import AudioLoadingError, DurationMismatchError
from lhotse.augmentation import Resample
from lhotse.utils import compute_num_samples

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.data.audio_file import AudioProblem, decode, measure, resample
from xlsr_transducer.data.shar import with_audio

# By default lhotse makes up to half a second of missing audio from reflected samples.
os.environ.setdefault("LHOTSE_AUDIO_DURATION_MISMATCH_TOLERANCE", "0.01")


class _Decoder(LibsndfileBackend):
    """Decodes for lhotse, which otherwise has another program for some endings of file names."""

    def read_audio(
        self,
        path_or_fd: Union[str, Path, BinaryIO],
        offset: float = 0.0,
        duration: Optional[float] = None,
        force_opus_sampling_rate: Optional[int] = None,
    ) -> tuple[np.ndarray, int]:
        """(channels, n) float32, and the rate."""
        samples, rate = decode(path_or_fd, offset, duration)
        return samples.T, rate

    def info(self, path_or_fd: Any, force_opus_sampling_rate: Optional[int] = None) -> Any:
        found = measure(path_or_fd)
        rate, frames = found.sampling_rate, found.num_samples
        return LibsndfileCompatibleAudioInfo(found.num_channels, frames, rate, frames / rate)


set_current_audio_backend(_Decoder())


def _resample(self: Resample, samples: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
    """Resamples for lhotse, which otherwise does it by torchaudio or scipy, whatever is there."""
    rates = self.source_sampling_rate, self.target_sampling_rate
    return np.stack([resample(channel, *rates) for channel in samples])


Resample.__call__ = _resample  # lhotse has no setting for it

# A cut with features lasts as long as its frames; its audio lasts as long as this field says.
AUDIO_DURATION = "audio_duration"


def read_audio(source: Union[str, Path, MonoCut]) -> np.ndarray:
    """Reads channel 0 of a file, or the channel of a cut, and resamples it to 16 kHz.

    Args:
      source: a wav, flac, ogg, opus, mp3 or sph file of any rate, or a cut (with features or
        without).

    Returns:
      (n,) float32 in [-1, 1].

    Raises:
      UserError: the file cannot be read, is shorter than the manifest says, or holds NaN.
    """
    cut = source if isinstance(source, MonoCut) else cut_of_file(source)
    return _read(cut, SAMPLING_RATE)


def read_native(cut: MonoCut) -> tuple[np.ndarray, int]:
    """Reads the channel of a cut as ``read_audio`` does, but at its own rate, which is in Hz."""
    return _read(cut, cut.recording.sampling_rate), cut.recording.sampling_rate


def _read(cut: MonoCut, rate: int) -> np.ndarray:
    try:
        recording = with_audio(cut.recording).resample(rate)
        samples = recording.load_audio(
            channels=cut.channel, offset=cut.start, duration=audio_duration(cut)
        )
    except _READ_ERRORS as e:
        raise UserError(f"{_name(cut)}: {_reason(e)}") from e
    wave = np.ascontiguousarray(samples[0], dtype=np.float32)
    if not np.isfinite(wave).all():
        raise UserError(f"{_name(cut)}: holds samples that are not numbers, or infinite")
    return wave


def cut_of_file(path: Union[str, Path]) -> MonoCut:
    """Channel 0 of a whole file as a cut, named after the file.

    Raises:
      UserError: the header cannot be read, or there is no audio.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such audio file")
    try:
        recording = Recording.from_file(path)
    except _READ_ERRORS as e:
        raise UserError(f"{path}: {_reason(e)}") from e
    if recording.num_samples == 0:
        raise UserError(f"{path}: holds no audio")
    return MonoCut(
        id=recording.id,
        start=0,
        duration=recording.duration,
        channel=recording.channel_ids[0],
        recording=recording,
    )


def audio_duration(cut: MonoCut) -> float:
    """Returns the seconds of audio of a cut; one with features has a little more than its frames
    last."""
    return (cut.custom or {}).get(AUDIO_DURATION, cut.duration)


def num_samples(cut: MonoCut) -> int:
    """Returns how many samples ``read_audio`` gives, from the manifest alone."""
    return compute_num_samples(audio_duration(cut), SAMPLING_RATE)


# soundfile raises RuntimeErrors; lhotse checks some things by assertions.
_READ_ERRORS = (
    AudioProblem,
    AudioLoadingError,
    DurationMismatchError,
    OSError,
    RuntimeError,
    ValueError,
    AssertionError,
    IndexError,  # fewer channels than the manifest says
)


def _name(cut: MonoCut) -> str:
    sources = cut.recording.sources
    return str(sources[0].source) if sources and sources[0].type == "file" else cut.id


def _reason(error: Exception) -> str:
    """Returns one short line out of lhotse's collected messages of many lines."""
    if isinstance(error, FileNotFoundError):
        return "no such audio file"
    text = str(error)
    for sign, meaning in (
        ("No such file", "no such audio file"),
        ("diverged", "truncated: it holds less audio than its header or the manifest says"),
        ("equested more audio", "truncated: it holds less audio than the manifest says"),
    ):
        if sign in text:
            return meaning
    line = text.strip().splitlines()[0][:160].rstrip(".") if text.strip() else ""
    if isinstance(error, AudioProblem):
        return line
    return f"unreadable audio ({type(error).__name__}: {line})"
