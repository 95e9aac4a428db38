"""One utterance as a corpus describes it, and what a reader of corpora offers."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from xlsr_transducer.data.audio_file import AudioInfo


@dataclasses.dataclass(frozen=True)
class Entry:
    """One utterance; ``problem`` is why it cannot be used, empty if it can."""

    line: int
    content: str  # the line as it stood
    path: str = ""  # as the corpus writes it
    audio: str = ""  # absolute, symbolic links resolved
    text: str = ""
    speaker: str = ""
    language: str = ""  # '' where the corpus does not tell
    id: str = ""  # in the corpus, if it has ids
    recording: str = ""  # its id in the corpus
    start: float = 0.0  # s
    end: float | None = None  # s; None: the end of the recording
    channels: tuple[int, ...] = ()  # of the recording; empty: not told
    channel_in_file: Mapping[int, int] = dataclasses.field(default_factory=dict)  # if it differs
    duration: float | None = None  # s, where the corpus tells that of the whole file
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    info: AudioInfo | None = None
    problem: str = ""

    @property
    def shares_recording(self) -> bool:
        """Returns whether others may well be in the same recording."""
        return bool(self.recording) or self.end is not None


@dataclasses.dataclass
class Corpus:
    """A corpus that can be read; each form of corpora has a class of its own."""

    path: Path  # a file or a folder
    folder: Path  # where relative paths begin
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Lines that are not wanted, by reason; known after ``entries``."""

    form = ""  # in words, for the log

    @property
    def identity(self) -> tuple[str, ...]:
        """What is read; no two lists of a corpus may have the same."""
        return (os.path.realpath(self.path),)

    def entries(self) -> Iterator[Entry]:
        """Yields the utterances in the order of the corpus, their audio not yet looked at.

        Raises:
          UserError: the corpus as a whole cannot be understood, or asks for a program to be run.
        """
        raise NotImplementedError

    def locate(self, path: str) -> str:
        """Returns the absolute path of an audio file, links resolved."""
        return os.path.realpath(os.path.join(self.folder, path))


def missing_parts(path: str, text: str) -> str:
    """Returns why an utterance of this audio path and text cannot be used; '' if it can."""
    return "missing file: the path is empty" if not path else "" if text else "empty text"


def plain_columns(fields: Mapping[str, object]) -> dict[str, str]:
    """Returns the columns of an utterance as text; empty ones, lists and such are left out."""
    found = {}
    for name, value in fields.items():
        if isinstance(value, (str, int, float)) and str(value).strip():
            found[str(name)] = " ".join(str(value).split())
    return found
