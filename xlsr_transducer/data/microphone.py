"""The computer's microphone, by miniaudio: PulseAudio, ALSA, Core Audio, WASAPI and others."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
from collections.abc import Generator, Iterator
from typing import Any, Protocol

import numpy as np

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio_file import Resampler

RATE = 48000  # Hz, what nearly every device has; miniaudio converts what is left
PIECE = 100  # milliseconds
_SILENT_FOR = 10.0  # seconds without a sample, after which the device is taken for gone


class Capture(Protocol):
    """Live audio: yields (n,) float32 pieces at 16 kHz until ``stop``."""

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields the pieces as they come."""

    def stop(self) -> None:
        """Ends the audio; any thread or signal handler may call it."""


class Microphone:
    """A recording device that is open, as a ``Capture``.

    >>> with Microphone() as microphone:
    ...     for piece in microphone: ...
    """

    def __init__(self, device: int | None = None):
        """
        Args:
          device: a number of ``microphones``; None: the system's choice.

        Raises:
          UserError: there is no such device, or it cannot be used.
        """
        miniaudio = _miniaudio()
        self._blocks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        with _named_errors(miniaudio):
            self._device = miniaudio.CaptureDevice(
                input_format=miniaudio.SampleFormat.FLOAT32,
                nchannels=1,
                sample_rate=RATE,
                buffersize_msec=PIECE,
                device_id=None if device is None else _device_id(device),
                backends=_backends(miniaudio),
            )

    def __enter__(self) -> Microphone:
        receiver = self._receive()
        next(receiver)
        with _named_errors(_miniaudio()):
            self._device.start(receiver)
        return self

    def __exit__(self, *_: object) -> None:
        self._device.close()

    def _receive(self) -> Generator[None, bytearray, None]:
        """Takes what the device records, in a thread of miniaudio."""
        while True:
            self._blocks.put(bytes((yield)))

    def __iter__(self) -> Iterator[np.ndarray]:
        resampler = Resampler(RATE)
        with contextlib.suppress(_Stopped):
            while True:
                yield resampler(np.frombuffer(self._next(), dtype=np.float32))
        yield resampler(np.zeros(0, np.float32), is_last=True)

    def _next(self) -> bytes:
        try:
            block = self._blocks.get(timeout=_SILENT_FOR)
        except queue.Empty:
            raise UserError("the microphone gives no samples any more") from None
        if block is None:
            raise _Stopped
        return block

    def stop(self) -> None:
        """Ends the audio after what has been recorded."""
        self._blocks.put(None)


class _Stopped(Exception):
    """No more audio is wanted."""


def microphones() -> list[str]:
    """Returns the names of the recording devices.

    Raises:
      UserError: the system has no sound.
    """
    return [device["name"] for device in _devices()]


def _devices() -> list[dict[str, Any]]:
    miniaudio = _miniaudio()
    with _named_errors(miniaudio):
        return miniaudio.Devices(_backends(miniaudio)).get_captures()


def _device_id(number: int) -> Any:
    found = _devices()
    if not 0 <= number < len(found):
        raise UserError(f"--device {number}: there are {len(found)}; see --list-devices")
    return found[number]["id"]


def _miniaudio() -> Any:
    try:
        import miniaudio
    except ImportError as e:
        raise UserError("the microphone needs miniaudio: pip install miniaudio") from e
    return miniaudio


def _backends(miniaudio: Any) -> list[Any]:
    """Returns all but the one that records silence where there is no sound system."""
    silent = (miniaudio.Backend.NULL, miniaudio.Backend.CUSTOM)
    return [backend for backend in miniaudio.Backend if backend not in silent]


@contextlib.contextmanager
def _named_errors(miniaudio: Any) -> Iterator[None]:
    try:
        with _without_noise():
            yield
    except miniaudio.MiniaudioError as e:
        reason = ", ".join(map(str, e.args[:1]))
        raise UserError(f"no microphone that can be used ({reason}); see --list-devices") from e


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Inside, what libraries write to stderr is dropped: ALSA explains itself in dozens of
    lines."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
