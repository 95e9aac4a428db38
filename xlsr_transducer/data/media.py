"""Audio of any length, from a file or a pipe, piece by piece in constant memory.

What libsndfile reads is read by it, and gives the samples of ``read_audio_file``. The rest (m4a,
webm, mp4 and others) and pipes, in which libsndfile cannot go back, are read by PyAV, which is
ffmpeg's libraries. Of ffmpeg's many kinds of input only files of sound and video are let in: no
playlist, and nothing that names other files or addresses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from xlsr_transducer.data.audio_file import AudioProblem, Resampler, open_blocks

# Of audio; with others a small file could become hours of samples.
RATES = (1000, 768000)  # Hz, from, to
# ffmpeg's names. Those that list other files (hls, concat, dash) or devices are left out.
_CONTAINERS = """aac ac3 aiff amr amrnb amrwb ape asf au avi caf dts eac3 flac flv loas matroska
mov mp3 mpeg mpegts ogg tta voc w64 wav webm wv""".split()
_PIPED = 1 << 15  # bytes read at once
_MAY_BE_MISSING = 0.5  # seconds; an mp4 file's header may promise so much too much

_MOST_PLANES = 8
# numpy's types of ffmpeg's samples, and their full scale.
_SAMPLES = {"u8": ("u1", 2.0**7), "s16": ("i2", 2.0**15), "s32": ("i4", 2.0**31)}
_SAMPLES |= {"s64": ("i8", 2.0**63), "flt": ("f4", 1.0), "dbl": ("f8", 1.0)}


@dataclasses.dataclass(frozen=True)
class Media:
    """Audio that is being read, once."""

    seconds: float | None  # how long it lasts, as far as its header tells
    pieces: Iterator[np.ndarray]  # (n,) float32 at 16 kHz of channel 0, n from 0 up


@contextlib.contextmanager
def open_media(source: Path | BinaryIO) -> Iterator[Media]:
    """Opens a file or a binary stream, which may be a pipe.

    Its pieces raise AudioProblem too: if it is truncated, holds no audio, or samples that are not
    numbers.

    Raises:
      AudioProblem: it cannot be read.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(source, Path):
            source = _opened(source, stack)
        if isinstance(source, Path) or source.seekable():
            media = _of_file(source, stack)
        else:
            media = _by_pyav(source, stack)
        yield dataclasses.replace(media, pieces=_checked(media.pieces))


def _opened(path: Path, stack: contextlib.ExitStack) -> Path | BinaryIO:
    """Returns the path of a file; of a pipe that has a name, the open pipe."""
    if path.is_file():
        return path
    if not path.exists():
        raise AudioProblem("no such audio file")
    if path.is_dir():
        raise AudioProblem("is a folder, not an audio file")
    try:
        return stack.enter_context(open(path, "rb", buffering=0))
    except OSError as e:
        raise AudioProblem(f"unreadable audio: {e.strerror or e}") from e


def _of_file(source: Path | BinaryIO, stack: contextlib.ExitStack) -> Media:
    try:
        file = stack.enter_context(open_blocks(source))
    except AudioProblem as problem:
        try:
            if isinstance(source, Path):
                source = stack.enter_context(open(source, "rb"))
            return _by_pyav(source, stack)
        except (AudioProblem, OSError):
            raise problem from None
    rate, count = file.sampling_rate, file.num_samples
    channel = (np.ascontiguousarray(block[:, 0]) for block in file.blocks)
    return Media(count and count / rate, _resampled(channel, _within(rate)))


def _within(rate: int) -> int:
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioProblem(f"sampling rate {rate}: must be from {RATES[0]} to {RATES[1]} Hz")
    return rate


def _resampled(blocks: Iterator[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    resampler = Resampler(rate)
    for block in blocks:
        yield resampler(block)
    yield resampler(np.zeros(0, np.float32), is_last=True)


def _checked(pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    count = 0
    for piece in pieces:
        if not np.isfinite(piece).all():
            raise AudioProblem("holds samples that are not numbers, or infinite")
        count += len(piece)
        yield piece
    if not count:
        raise AudioProblem("holds no audio")


class _Input:
    """What PyAV reads from: no name, from which ffmpeg could conclude anything."""

    def __init__(self, file: BinaryIO):
        # A pipe gives what is there and does not wait for more.
        self._read = getattr(file, "read1", file.read)
        if file.seekable():
            file.seek(0)
            self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        return self._read(min(size, _PIPED))


def _by_pyav(file: BinaryIO, stack: contextlib.ExitStack) -> Media:
    try:
        import av
    except ImportError as e:
        raise AudioProblem("PyAV reads such audio, and is not installed: pip install av") from e
    whitelist = {"format_whitelist": ",".join(_CONTAINERS), "protocol_whitelist": "none"}
    try:
        container = stack.enter_context(
            av.open(
                _Input(file),
                container_options=whitelist,
                io_open=_refuse,
                metadata_errors="replace",  # titles are often no UTF-8, and nobody's concern
            )
        )
    except (av.FFmpegError, OSError) as e:
        raise _problem(e, file) from e
    if not container.streams.audio:
        raise AudioProblem("holds no audio")
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise AudioProblem("unreadable audio: coded in a way that PyAV does not know")
    seconds = container.duration and container.duration / av.time_base
    # The header of these files tells exactly; of others it is often an estimate.
    promised = 0.0
    if container.format.name.startswith("mov") and stream.duration:
        promised = float(stream.duration * stream.time_base)
    rate = _within(stream.rate or 0)
    blocks = _decoded(container, stream, rate, promised, file)
    return Media(seconds, _resampled(blocks, rate))


def _refuse(url: str, flags: int, options: dict) -> NoReturn:
    raise PermissionError(f"the audio refers to another file, {os.fsdecode(url)[:200]}")


def _problem(error: Exception, file: BinaryIO) -> AudioProblem:
    words = getattr(error, "strerror", None) or str(error)
    if not file.seekable():
        words += "; give raw samples a header, and save m4a as a file first, to use a pipe"
    return AudioProblem(f"unreadable audio: {words}")


def _decoded(
    container: Any, stream: Any, rate: int, promised: float, file: BinaryIO
) -> Iterator[np.ndarray]:
    """Yields (n,) float32 samples of channel 0; packets that are damaged are left out.

    Args:
      promised: seconds that there have to be.
      file: what the container reads.
    """
    import av

    count = 0
    try:
        for packet in _packets(container, stream):
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                continue
            for frame in frames:
                if frame.sample_rate != rate:
                    raise AudioProblem(f"changes its rate, {rate} Hz, to {frame.sample_rate} Hz")
                count += frame.samples
                yield _channel_0(frame)
    except (av.FFmpegError, OSError) as e:
        raise _problem(e, file) from e
    if count / rate < promised - _MAY_BE_MISSING:
        missing = promised - count / rate
        raise AudioProblem(f"truncated audio: {missing:.1f} s or more are missing")


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Yields the packets of a stream, and an empty one at the end."""
    # After it PyAV may look for streams that began midway, which it does not list.
    with contextlib.suppress(IndexError):
        yield from container.demux(stream)


def _channel_0(frame: Any) -> np.ndarray:
    """Returns (n,) float32.

    PyAV's own ``to_ndarray`` reads memory that is not there if there are more than 8 planes.
    """
    name, channels = frame.format.name, frame.layout.nb_channels
    if frame.format.is_planar and channels > _MOST_PLANES:
        raise AudioProblem(f"{channels} channels; of its kind at most {_MOST_PLANES} are read")
    stride = 1 if frame.format.is_planar else channels
    kind, scale = _SAMPLES[name.removesuffix("p")]
    wave = np.frombuffer(frame.planes[0], kind, frame.samples * stride)[::stride]
    middle = 128 if kind == "u1" else 0
    return ((wave.astype(np.float64) - middle) / scale).astype(np.float32)
