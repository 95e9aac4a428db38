"""Recognised segments as files: text, JSON, subtitles (SubRip's srt, WebVTT) and Praat's TextGrid.

A writer takes segments as they end and returns what is to be appended to the file, so that a
recording of hours needs no more memory than a short one (a TextGrid begins with counts, and is
written at the end).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from xlsr_transducer.recognition.alignment_files import text_grid
from xlsr_transducer.recognition.spans import Span, TimedText, word_shapes

# What viewers can read: the usual limits of broadcasters.
LINE = 42  # characters
LINES = 2
LONGEST = 7.0  # seconds of a cue
SHORTEST = 1.0  # seconds, if the next cue does not come before
PAUSE = 1.0  # seconds without a word that end a cue
_ENDS = (".", "?", "!", "…")  # of sentences, in texts that are punctuated


class Writer:
    """Makes a file of segments: ``header``, then what ``add`` returns, then ``finish``."""

    header = ""

    def add(self, segment: TimedText) -> str:
        """Takes the next segment, which is final; returns the next part of the file."""
        raise NotImplementedError

    def finish(self, seconds: float) -> str:
        """Returns the last part of the file, of audio that lasts ``seconds``."""
        return ""


class Text(Writer):
    """A line of text for each segment."""

    def add(self, segment: TimedText) -> str:
        return segment.text + "\n"


class Json(Writer):
    """An object: ``segments`` with ``start``, ``end``, ``text`` and ``words``; and ``seconds``."""

    header = '{"segments": ['

    def __init__(self) -> None:
        self._separator = "\n"

    def add(self, segment: TimedText) -> str:
        separator, self._separator = self._separator, ",\n"
        return separator + json.dumps(_segment(segment), ensure_ascii=False)

    def finish(self, seconds: float) -> str:
        return f'\n], "seconds": {round(seconds, 3)}}}\n'


def _segment(segment: TimedText) -> dict[str, Any]:
    times = {"start": round(segment.start, 3), "end": round(segment.end, 3)}
    return {**times, "text": segment.text, "words": word_shapes(segment.words)}


@dataclasses.dataclass(frozen=True)
class Cue:
    """A subtitle: from when to when it is shown, in milliseconds, and its lines."""

    start: int
    end: int
    lines: list[str]


class Subtitles(Writer):
    """Cues that follow each other, none before its first word.

    A cue waits for the next one, before which it has to end.
    """

    def __init__(self) -> None:
        self._waiting: list[Span] = []  # words of the cue that comes next
        self._start = 0  # of it, in milliseconds
        self._count = 0

    def add(self, segment: TimedText) -> str:
        return "".join(self._show(words) for words in _groups(segment.words))

    def finish(self, seconds: float) -> str:
        return self._show([])

    def _show(self, following: list[Span]) -> str:
        """Returns the waiting cue; ``following`` waits from now on."""
        shown, start, self._waiting = self._waiting, self._start, following
        if following:
            self._start = max(_milliseconds(following[0].start), start + 1 if shown else 0)
        if not shown:
            return ""
        end = max(_milliseconds(shown[-1].end), start + _milliseconds(SHORTEST))
        if following:
            end = min(end, self._start)
        self._count += 1
        return self.format(self._count, Cue(start, end, _lines([word.text for word in shown])))

    def format(self, number: int, cue: Cue) -> str:
        """Returns a cue as the format writes it; numbers begin with 1."""
        raise NotImplementedError


class Srt(Subtitles):
    """SubRip's format."""

    def format(self, number: int, cue: Cue) -> str:
        times = f"{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}"
        return "\n".join([str(number), times, *cue.lines, "", ""])


class Vtt(Subtitles):
    """WebVTT (W3C)."""

    header = "WEBVTT\n\n"

    def format(self, number: int, cue: Cue) -> str:
        lines = [_escaped(line) for line in cue.lines]
        times = f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}"
        return "\n".join([times, *lines, "", ""])


class TextGrid(Writer):
    """Praat's format, with tiers of words and of segments."""

    def __init__(self) -> None:
        self._words: list[Span] = []
        self._segments: list[Span] = []

    def add(self, segment: TimedText) -> str:
        self._words += segment.words
        if segment.words:
            self._segments.append(Span(segment.text, segment.start, segment.end, 1.0))
        return ""

    def finish(self, seconds: float) -> str:
        # The last frame may be filled up, and end a little after the audio.
        end = max([seconds, *(span.end for span in self._segments[-1:])])
        return text_grid({"words": self._words, "segments": self._segments}, end)


WRITERS: dict[str, type[Writer]] = {
    "txt": Text,
    "json": Json,
    "srt": Srt,
    "vtt": Vtt,
    "textgrid": TextGrid,
}
ENDINGS = {name: f".{name}" for name in WRITERS} | {"textgrid": ".TextGrid"}  # of files


def render(name: str, segments: Iterable[TimedText], seconds: float) -> str:
    """Returns a whole file.

    Args:
      name: of the format, one of ``WRITERS``.
      segments: all of the audio's, final.
      seconds: how long the audio lasts.
    """
    writer = WRITERS[name]()
    return writer.header + "".join(map(writer.add, segments)) + writer.finish(seconds)


def _groups(words: Sequence[Span]) -> Iterator[list[Span]]:
    """Splits the words of a segment into cues, where there is punctuation at the end of
    sentences."""
    group: list[Span] = []
    for word in words:
        if group and not _fits(group, word):
            size = _whole_sentences(group)
            if not _fits(group[size:] or group, word):  # a pause, say: nothing is moved
                size = len(group)
            yield group[:size]
            group = group[size:]
        group.append(word)
    if group:
        yield group


def _whole_sentences(group: Sequence[Span]) -> int:
    """Returns how many words belong to sentences that end in a full cue; all of them, if a
    sentence would leave more than half of it empty."""
    ends = [i for i, word in enumerate(group, 1) if word.text.rstrip('"').endswith(_ENDS)]
    return ends[-1] if ends and 2 * ends[-1] >= len(group) else len(group)


def _fits(group: list[Span], word: Span) -> bool:
    if word.end - group[0].start > LONGEST or word.start - group[-1].end > PAUSE:
        return False
    return len(_filled([*(w.text for w in group), word.text])) <= LINES


def _filled(words: Sequence[str]) -> list[str]:
    """Returns lines that are as full as they may be; a longer word has a line of its own."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word) <= LINE:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


def _lines(words: Sequence[str]) -> list[str]:
    """Returns one line, or two of lengths as equal as may be."""
    lines = _filled(words)
    if len(lines) != 2:
        return lines
    pairs = [[" ".join(words[:k]), " ".join(words[k:])] for k in range(1, len(words))]
    return min(pairs, key=lambda pair: max(map(len, pair)))


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _clock(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{point}{rest:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
