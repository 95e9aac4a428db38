"""What an audio file holds, from its header and its last samples: cheap, and truncation shows."""

from __future__ import annotations

import dataclasses
import os
import struct
from typing import BinaryIO

import soundfile

# A reader of the whole file would find these too, but 100,000 files would take hours.
_TAIL_FRAMES = 800
_OGG_MAX_PAGE = 65307  # bytes: 27 of header, 255 of lengths, 255 * 255 of data
# Writers into a pipe cannot go back to fill in the length and leave one of these.
_UNKNOWN_LENGTH_FROM = 0x7FFF0000


class AudioProblem(Exception):
    """Why a file cannot be used; the text is the reason given to the user."""


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """The header of a good file."""

    num_samples: int  # per channel
    sampling_rate: int  # Hz
    num_channels: int


def probe_audio(path: str) -> AudioInfo:
    """Reads the header of ``path`` and checks that its end is there.

    Raises AudioProblem: missing file, unreadable, truncated, zero duration. An mp3 file without
    a Xing header does not say how long it should be: cut short, it just counts as shorter.
    """
    if not os.path.isfile(path):
        raise AudioProblem("missing file" + (" (a folder)" if os.path.isdir(path) else ""))
    try:
        with open(path, "rb") as f:
            _check_container(f)
        file = soundfile.SoundFile(path)
    except OSError as e:
        raise AudioProblem(f"unreadable audio: {e.strerror}") from e
    except (soundfile.SoundFileError, RuntimeError, TypeError) as e:
        raise AudioProblem(f"unreadable audio: {_message(e)}") from e
    with file:
        info = AudioInfo(file.frames, file.samplerate, file.channels)
        if info.num_samples <= 0 or info.sampling_rate <= 0:
            raise AudioProblem("zero duration")
        _check_tail(file)
    return info


def _message(error: Exception) -> str:
    text = getattr(error, "error_string", "") or str(error)
    return " ".join(text.split()) or type(error).__name__


def _check_tail(file: soundfile.SoundFile) -> None:
    wanted = min(_TAIL_FRAMES, file.frames)
    try:
        file.seek(file.frames - wanted)
        got = len(file.read(wanted, dtype="int16"))
    except (soundfile.SoundFileError, RuntimeError) as e:
        raise AudioProblem("truncated audio: its end cannot be decoded") from e
    if got < wanted:
        raise AudioProblem(f"truncated audio: the last {wanted - got} samples or more are missing")


def _check_container(f: BinaryIO) -> None:
    """Compares lengths in the header with the file's, where libsndfile would not complain."""
    magic = f.read(12)
    size = os.fstat(f.fileno()).st_size
    if magic[:4] == b"RIFF" and magic[8:] == b"WAVE":
        _check_wav(f, size)
    elif magic[:4] == b"FORM":
        _check_length(struct.unpack(">I", magic[4:8])[0], size - 8)
    elif magic[:4] == b"OggS":
        _check_ogg(f, size)


def _check_length(promised: int, present: int) -> None:
    if present < promised < _UNKNOWN_LENGTH_FROM:
        raise AudioProblem(f"truncated audio: {promised} bytes promised, {present} there")


def _check_wav(f: BinaryIO, size: int) -> None:
    position = 12
    while position + 8 <= size:
        f.seek(position)
        name, length = struct.unpack("<4sI", f.read(8))
        if name == b"data":
            return _check_length(length, size - position - 8)
        position += 8 + length + length % 2
    raise AudioProblem("truncated audio: no samples after the header")


def _check_ogg(f: BinaryIO, size: int) -> None:
    f.seek(max(0, size - _OGG_MAX_PAGE))
    tail = f.read()
    start = tail.rfind(b"OggS")
    page = tail[start:] if start >= 0 else b""
    segments = page[26] if len(page) > 26 else 0
    end = 27 + segments + sum(page[27 : 27 + segments])
    last_page = len(page) > 26 and page[5] & 4
    if not last_page or len(page) < end:
        raise AudioProblem("truncated audio: the stream has no end")
