"""mp3 files as Common Voice has them: an ID3v2 tag first, and no header that tells the length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

DELAY = 1105  # samples that an encoder and a decoder add at the start


def write_mp3(path: Path, samples: np.ndarray, rate: int, mode: str) -> np.ndarray:
    """Writes the file. Returns what the same file with the length in its header holds.

    Args:
      samples: (n,), of 32 kHz or more.
      mode: CONSTANT or VARIABLE bitrate.
    """
    level = {"compression_level": 0.5} if mode == "CONSTANT" else {}
    soundfile.write(path, samples, rate, format="MP3", bitrate_mode=mode, **level)
    expected, _ = soundfile.read(path, dtype="float32")
    content = path.read_bytes()
    first = content.index(b"Xing" if mode == "VARIABLE" else b"Info")
    second = content.index(content[:2], first)  # the next frame begins with the same sync word
    tag = b"ID3\x04\x00\x00\x00\x00\x01\x48" + bytes(200)
    path.write_bytes(tag + content[second:])
    return expected
