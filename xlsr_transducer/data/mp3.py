"""mp3 files that do not tell their length, made ready for a decoder that has to know it.

libsndfile knows the length of an mp3 file from the Xing header in its first frame. Without one,
as in Mozilla Common Voice, it estimates the length from the first frame's bitrate and the size of
the file, tags included, and reads no further than that. So such a file gets a silent first frame
of the least bitrate: the estimate is then never too small, and the decoder finds the file's end.
(ISO/IEC 11172-3, 2.4.1.3 and 2.4.2.3: the header of a frame.)
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO, Optional

# Of layer III, by version: 3 is MPEG 1, 2 is MPEG 2, 0 is MPEG 2.5.
_FULL = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_HALF = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_KBITS = {3: _FULL, 2: _HALF, 0: _HALF}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_LENGTH_TAGS = (b"Xing", b"Info", b"VBRI")
_TAG_WITHIN = 64  # bytes of the first frame
_WINDOW = 1 << 20  # bytes of a file in memory
_MOST_TRIES = 1 << 20  # places that look like a frame and are none, before what follows is junk


class _Bytes:
    """The bytes of a file by slices, as of ``bytes``, of which a window is in memory."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._size = file.seek(0, io.SEEK_END)
        self._start, self._window = 0, b""

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, where: slice) -> bytes:
        start, end, _ = where.indices(self._size)
        if start < self._start or end > self._start + len(self._window):
            self._file.seek(start)
            self._start, self._window = start, self._file.read(max(end - start, _WINDOW))
        return self._window[start - self._start : max(end - self._start, 0)]

    def find(self, byte: bytes, start: int) -> int:
        """Returns the place of the next ``byte`` from ``start`` on, or -1."""
        for place in range(start, self._size, _WINDOW):
            found = self[place : place + _WINDOW].find(byte)
            if found >= 0:
                return place + found
        return -1


class _WithHead(io.RawIOBase):
    """A file to read: ``head``, then the bytes from ``start`` to ``end`` of another."""

    def __init__(self, head: bytes, data: _Bytes, start: int, end: int):
        self._head, self._data, self._offset = head, data, start - len(head)
        self._size = len(head) + end - start
        self._position = 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(start + offset, 0)
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        position, end = self._position, min(self._position + len(buffer), self._size)
        found = self._head[position:end]
        position += len(found)
        if position < end:
            found += self._data[position + self._offset : end + self._offset]
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)


def without_length(file: BinaryIO) -> Optional[tuple[BinaryIO, int]]:
    """Returns an mp3 file that can be decoded to its end, and the samples of silence before its
    audio.

    It reads ``file``, which stays open. Tags are left out, and a last frame that is cut off.
    Returns None for a file that has a header with its length, and for one that is no mp3.
    """
    data = _Bytes(file)
    start = _end_of_id3(data)
    if any(tag in data[start : start + _TAG_WITHIN] for tag in _LENGTH_TAGS):
        return None
    end = start
    for position, size in _frames(data, start):
        end = position + size
    if end == start:
        return None
    header = data[start : start + 4]
    # Without check sum and padding. A frame of zeros is silence.
    silent = bytes([0xFF, header[1] | 1, 1 << 4 | header[2] & 0x0C, header[3]])
    silent = silent.ljust(_frame_size(silent, silent), b"\0")
    return _WithHead(silent, data, start, end), _samples(header)


def _end_of_id3(data: _Bytes) -> int:
    position = 0
    while data[position : position + 3] == b"ID3" and len(data) >= position + 10:
        a, b, c, d = data[position + 6 : position + 10]  # seven bits each
        position += 10 + (a << 21 | b << 14 | c << 7 | d)
    return position


def _frames(data: _Bytes, start: int) -> Iterator[tuple[int, int]]:
    """Place and size of each whole frame that is like the one at ``start``."""
    first, position, tries = data[start : start + 4], start, 0
    size = _frame_size(first, first)
    while size and position + size <= len(data):
        yield position, size
        position += size
        size = _frame_size(data[position : position + 4], first)
        while not size:  # padding, or a tag
            position, tries = data.find(b"\xff", position + 1), tries + 1
            if position < 0 or tries > _MOST_TRIES:
                return
            size = _frame_size(data[position : position + 4], first)
            if not _frame_size(data[position + size : position + size + 4], first):
                size = 0


def _frame_size(header: bytes, like: bytes) -> int:
    """Returns the bytes of a frame of layer III, of the version and rate of another; 0 if it is
    none."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    if header[1] & 0xFE != like[1] & 0xFE or header[2] & 0x0C != like[2] & 0x0C:
        return 0
    version, bitrate, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return 0
    padding, bits = header[2] >> 1 & 1, _KBITS[version][bitrate] * 1000
    return _samples(header) // 8 * bits // _RATES[version][rate] + padding


def _samples(header: bytes) -> int:
    return 1152 if header[1] >> 3 & 3 == 3 else 576
