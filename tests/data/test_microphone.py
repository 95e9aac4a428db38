"""The microphone gives the samples that the system's sound gives; without one, a clear line."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from xlsr_transducer.data.audio_file import resample
from xlsr_transducer.data.microphone import RATE

pytest.importorskip("miniaudio")

# A recording device of ALSA that plays a file.
FAKE = """pcm.null {{ type null }}
pcm.!default {{ type file  slave.pcm null  file /dev/null  infile {}  format raw }}
"""
READ = """
import itertools, sys, numpy as np
from xlsr_transducer.data.microphone import Microphone
with Microphone() as microphone:
    pieces, count = [], 0
    for piece in microphone:
        pieces.append(piece)
        count += len(piece)
        if count > 16000:
            microphone.stop()
            break
np.save(sys.argv[1], np.concatenate(pieces))
"""


def run(config: Path, *command: str) -> subprocess.CompletedProcess:
    """Runs Python where ALSA has the devices of ``config`` and there is no other sound."""
    environment = {**os.environ, "ALSA_CONFIG_PATH": str(config)}
    environment |= {"PULSE_SERVER": "unix:/nonexistent", "JACK_NO_START_SERVER": "1"}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True
    )


def has_alsa() -> bool:
    try:
        ctypes.CDLL("libasound.so.2")
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_alsa(), reason="no ALSA library")
def test_what_the_device_records_is_resampled_to_16_khz(tmp_path: Path) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 3 * RATE).astype(np.float32)
    wave.tofile(tmp_path / "in.raw")
    config, out = tmp_path / "asound.conf", tmp_path / "out.npy"
    config.write_text(FAKE.format(tmp_path / "in.raw"))
    done = run(config, "-c", READ, str(out))
    assert done.returncode == 0, done.stderr
    found = np.load(out)[:16000]
    # ALSA gives some periods of zeros first.
    starts = [np.concatenate([np.zeros(k * RATE // 10, np.float32), wave]) for k in range(5)]
    assert len(found) == 16000
    assert any(np.array_equal(found, resample(start, RATE)[:16000]) for start in starts)


def test_without_a_device_there_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "empty.conf").write_text("")
    command = ["-m", "xlsr_transducer.microphone", "--server", "ws://localhost:9"]
    done = run(tmp_path / "empty.conf", *command)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: no microphone that can be used (")
    assert done.stderr.count("\n") == 1
