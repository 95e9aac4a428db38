"""Speech as text while it is spoken: recognised here, and shown on a terminal."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
import signal
import unicodedata
from collections.abc import Iterable, Iterator
from typing import TextIO

import numpy as np
import torch

from xlsr_transducer.data.microphone import Capture
from xlsr_transducer.recognition.live import LiveModel

_CLEAR_LINE = "\r\x1b[2K"


@dataclasses.dataclass(frozen=True)
class LiveText:
    """The text of the segment that is being spoken; final once it has ended."""

    text: str
    is_final: bool


def recognise(model: LiveModel, pieces: Iterable[np.ndarray]) -> Iterator[LiveText]:
    """Recognises live audio.

    Args:
      pieces: (n,) float32 samples at 16 kHz, as they come.
    """
    engine = model.engine(1)
    stream = engine.open("microphone")
    for piece in itertools.chain(pieces, [None]):
        if piece is None:
            stream.finish()
        else:
            stream.accept(torch.from_numpy(piece))
        while engine.has_work() or (piece is None and len(engine)):
            computed, _ = engine.step()
            for found in stream.take_segments():
                yield LiveText(model.timed(found, 0, is_final=True).text, is_final=True)
            engine.read(computed)
            if stream.slot is not None:
                live = model.timed(stream.live.hypothesis(), 0, is_final=False)
                yield LiveText(live.text, is_final=False)


def dictate(capture: Capture, texts: Iterable[LiveText], out: TextIO) -> None:
    """Shows texts to the last; Ctrl-C ends the audio, and a second one everything.

    Args:
      texts: of ``capture``.
    """
    screen = Screen(out)
    before = signal.getsignal(signal.SIGINT)

    def stop(*_: object) -> None:
        signal.signal(signal.SIGINT, before)
        capture.stop()

    signal.signal(signal.SIGINT, stop)
    try:
        for found in texts:
            screen.show(found)
    finally:
        signal.signal(signal.SIGINT, before)
        screen.clear()


class Screen:
    """Shows text as it grows.

    On a terminal the segment that is being spoken has one line, which is written anew, and becomes
    a line of its own when it is final. Elsewhere there are lines of final text alone.
    """

    def __init__(self, out: TextIO):
        self._out = out
        self._is_terminal = out.isatty()
        self._shown = ""

    def show(self, live: LiveText) -> None:
        """Shows what is new."""
        # Escape sequences are not text.
        text = "".join(c for c in live.text if c.isprintable())
        if live.is_final:
            self.clear()
            if text:
                self._write(text + "\n")
        elif self._is_terminal:
            tail = last_columns(text, shutil.get_terminal_size().columns - 1)
            if tail != self._shown:
                self._write(_CLEAR_LINE + tail)
                self._shown = tail

    def clear(self) -> None:
        """Removes text that is not final."""
        if self._shown:
            self._write(_CLEAR_LINE)
            self._shown = ""

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def last_columns(text: str, columns: int) -> str:
    """Returns the end of ``text`` that fits in so many columns; some characters take two."""
    start = len(text)
    while start and columns > 0:
        columns -= 2 if unicodedata.east_asian_width(text[start - 1]) in "WF" else 1
        if columns >= 0:
            start -= 1
    return text[start:]
