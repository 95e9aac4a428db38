"""Audio files as samples, with soundfile and soxr alone: what a server installs.

``data/audio.py`` reads through lhotse, which decodes and resamples here too, so that every command
receives the same samples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Union

import numpy as np
import soundfile
import soxr

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.data.mp3 import without_length

_BLOCK = 1 << 16  # samples decoded at a time, of all channels
_UNKNOWN_LENGTH = 1 << 62  # libsndfile's number of frames is larger where there is none to know


class AudioProblem(Exception):
    """Why a file cannot be used; the text is the reason given to the user."""


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """Length, rate and channels of a good file."""

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
    with open_blocks(source) as file:
        if file.num_samples is not None:
            return AudioInfo(file.num_samples, file.sampling_rate, file.num_channels)
        frames = sum(len(block) for block in file.blocks)
        return AudioInfo(frames, file.sampling_rate, file.num_channels, is_decoded=True)


def decode(
    source: Source, offset: float = 0.0, duration: float | None = None
) -> tuple[np.ndarray, int]:
    """Decodes a file, or ``duration`` seconds of it from ``offset`` on.

    Returns:
      (n, channels) float32, shorter where the file ends before; the rate in Hz.

    Raises:
      AudioProblem: the file cannot be read, or holds less than its header promises.
    """
    with _opened(source) as (file, silence), _problems_named(source):
        rate = file.samplerate
        start = _round(offset * rate)
        count = None if duration is None else _round(duration * rate)
        if silence is not None:
            blocks = [np.zeros((0, file.channels), np.float32), *_blocks(source, file, silence)]
            return np.concatenate(blocks)[start:][:count], rate
        start = min(start, file.frames)
        wanted = file.frames - start if count is None else min(count, file.frames - start)
        file.seek(start)
        samples = file.read(wanted, dtype="float32", always_2d=True)
        _require_whole(len(samples), wanted)
        return samples, rate


@dataclasses.dataclass(frozen=True)
class AudioBlocks:
    """A file that is read from its start to its end, a block at a time."""

    sampling_rate: int  # Hz
    num_channels: int
    num_samples: int | None  # per channel; None: the header does not tell
    blocks: Iterator[np.ndarray]  # (n, channels) float32


@contextlib.contextmanager
def open_blocks(source: Source) -> Iterator[AudioBlocks]:
    """Opens a file to be read in blocks, which together are what ``decode`` returns.

    Raises:
      AudioProblem: the file cannot be read; or, by the blocks, holds less than its header
        promises.
    """
    with _opened(source) as (file, silence):
        count = file.frames if silence is None else None
        blocks = _blocks(source, file, silence)
        yield AudioBlocks(file.samplerate, file.channels, count, blocks)


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


def resample(wave: np.ndarray, rate: int, target: int = SAMPLING_RATE) -> np.ndarray:
    """Returns (n,) samples at ``rate`` as (n',) at ``target``, n' = n target / rate, rounded."""
    return Resampler(rate, target)(wave, is_last=True)


class Resampler:
    """Resamples a stream: what it returns is together what ``resample`` returns, to the bit.

    It keeps samples back for its filter: about 0.1 s from 8 kHz, less from higher rates.
    """

    def __init__(self, rate: int, target: int = SAMPLING_RATE):
        self._stream = None
        if rate != target:
            self._stream = soxr.ResampleStream(rate, target, num_channels=1, dtype="float32")

    def __call__(self, piece: np.ndarray, is_last: bool = False) -> np.ndarray:
        """Takes the next (n,) samples, n from 0 up; returns those that are ready, (n',)."""
        if self._stream is None:
            return piece
        return self._stream.resample_chunk(piece.astype(np.float32, copy=False), is_last)


class _File(soundfile.SoundFile):
    """Read block by block from start to end, without soundfile's seek after each block."""

    def seekable(self) -> bool:
        return False


@contextlib.contextmanager
def _opened(source: Source) -> Iterator[tuple[_File, int | None]]:
    """The open file; of one that does not tell its length, the samples of silence before its
    audio, to be read to its end."""
    with contextlib.ExitStack() as stack:
        with _problems_named(source):
            file, silence = _open(source, stack)
        yield file, silence


def _open(source: Source, stack: contextlib.ExitStack) -> tuple[_File, int | None]:
    if _may_be_mp3(source):
        data = stack.enter_context(open(source, "rb")) if _is_path(source) else source
        prepared = without_length(data)
        if prepared is not None:
            content, silence = prepared
            return stack.enter_context(_File(content)), silence
    file = stack.enter_context(_File(_rewound(source)))
    # FLAC that was written into a pipe does not tell its length.
    return file, None if file.frames <= _UNKNOWN_LENGTH else 0


def _may_be_mp3(source: Source) -> bool:
    start = _first_bytes(source, 3)
    return start == b"ID3" or (start[:1] == b"\xff" and len(start) > 1 and start[1] >= 0xE0)


def _first_bytes(source: Source, count: int) -> bytes:
    if _is_path(source):
        with open(source, "rb") as f:
            return f.read(count)
    return _rewound(source).read(count)


def _is_path(source: Source) -> bool:
    return isinstance(source, (str, Path))


def _rewound(source: Source) -> Source:
    if not _is_path(source):
        source.seek(0)
    return source


def _blocks(source: Source, file: _File, silence: int | None) -> Iterator[np.ndarray]:
    """Yields (n, channels) from where the file stands to its end, but for the silence."""
    size, count, skip = max(_BLOCK // file.channels, 1), 0, silence or 0
    while True:
        with _problems_named(source):
            block = file.read(size, dtype="float32", always_2d=True)
        if not len(block):
            break
        count += len(block)
        yield block[skip:]
        skip = max(skip - len(block), 0)
    if silence is None:
        _require_whole(count, file.frames)


def _require_whole(found: int, wanted: int) -> None:
    if found < wanted:
        missing = wanted - found
        raise AudioProblem(f"truncated audio: {missing} samples or more are missing")


@contextlib.contextmanager
def _problems_named(source: Source) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise AudioProblem(f"unreadable audio: {e.strerror or e}") from e
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError) as e:
        raise AudioProblem(f"unreadable audio: {_reason(e, source)}") from e


def _reason(error: Exception, source: Source) -> str:
    start = _first_bytes(source, 1024)
    if start.startswith(b"NIST_1A") and b"embedded-shorten" in start:
        return "compressed by shorten, which libsndfile does not read; convert it with sph2pipe"
    text = " ".join((getattr(error, "error_string", "") or str(error)).split()).rstrip(".")
    if not text or "File does not exist" in text:  # libsndfile's words for broken MPEG audio too
        return "no audio that libsndfile can read"
    return text
