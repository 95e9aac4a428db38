"""Probes an audio file by its header and its last samples: cheap, and truncation shows."""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

from xlsr_transducer.data.audio_file import AudioInfo, AudioProblem, decode, measure

# A reader of the whole file would find these too, but 100,000 files would take hours.
_TAIL_FRAMES = 800
_OGG_MAX_PAGE = 65307  # bytes: 27 of header, 255 of lengths, 255 * 255 of data
# Writers into a pipe cannot go back to fill in the length and leave one of these.
_UNKNOWN_LENGTH_FROM = 0x7FFF0000


def probe_audio(path: str) -> AudioInfo:
    """Reads the header of ``path`` and checks that its end is there.

    Raises AudioProblem: missing file, unreadable, truncated, zero duration. A file that does not
    tell its length, such as an mp3 file without a Xing header, is decoded, and holds what comes.
    """
    if not os.path.isfile(path):
        raise AudioProblem("missing file" + (" (a folder)" if os.path.isdir(path) else ""))
    try:
        with open(path, "rb") as f:
            _check_container(f)
    except OSError as e:
        raise AudioProblem(f"unreadable audio: {e.strerror}") from e
    info = measure(path)
    if info.num_samples <= 0 or info.sampling_rate <= 0:
        raise AudioProblem("zero duration")
    if not info.is_decoded:
        try:
            decode(path, max(info.num_samples - _TAIL_FRAMES, 0) / info.sampling_rate)
        except AudioProblem as e:
            reason = str(e).removeprefix("unreadable audio: ").removeprefix("truncated audio: ")
            raise AudioProblem(f"truncated audio: {reason}") from e
    return info


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
