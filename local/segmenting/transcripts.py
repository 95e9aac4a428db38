"""Reads transcripts of long recordings: plain text, SRT and WebVTT.

Times of subtitles are not used: the recording tells them better. What is no speech is removed:
tags, names of speakers, notes in brackets, musical notes.
"""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from xlsr_transducer.core.errors import UserError

LONGEST = 15  # words of a phrase
_SHORTEST = 6  # words of one that ends at a comma

_TIME = r"(?:\d+:)?\d{1,2}:\d{2}[.,]\d{1,3}"
_TIMING = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
_TAG = re.compile(r"</?[A-Za-z0-9][^<>]*>|<\d[\d:.]*>|\{\\[^{}]*\}")
_NOTE = re.compile(r"\[[^\[\]]*\]|[\u2669-\u266f]+|^\s*\([^()]*\)\s*$")
_DASH = re.compile(r"^\s*(?:[-\u2010-\u2015]|>>+)\s*")
_SPEAKER = re.compile(r"^\s*([^\W\d_][^:]{0,40}):\s+")
_ENDS = re.compile(r"[.!?\u2026][\"')\]\u00bb\u201c\u201d\u2019]*$")
_PAUSES = re.compile(r"[,;:\u2013\u2014][\"')\]\u00bb\u201c\u201d\u2019]*$|^[-\u2013\u2014]$")


class Flaw(NamedTuple):
    """A part of a transcript that cannot be understood."""

    line: int
    reason: str
    text: str


@dataclass(frozen=True)
class Phrase:
    """Some words of one sentence, as they are written."""

    words: tuple[str, ...]
    line: int  # where it begins in its file
    ends_sentence: bool

    @property
    def text(self) -> str:
        """Its words with spaces between."""
        return " ".join(self.words)


@dataclass(frozen=True)
class Transcript:
    """What somebody wrote down of a recording, in order."""

    phrases: list[Phrase]
    flaws: list[Flaw]


def read_transcript(path: Path) -> Transcript:
    """Reads a .txt, .srt or .vtt file in UTF-8.

    Raises:
      UserError: it is none of these, or holds no text.
    """
    readers = {".txt": _plain, ".srt": _cues, ".vtt": _cues}
    if not path.is_file():
        raise UserError(f"{path}: no such transcript")
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: a transcript is a .txt, .srt or .vtt file")
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: is UTF-16; convert it to UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        number = content[: e.start].count(b"\n") + 1
        raise UserError(f"{path}:{number}: is not UTF-8; convert it") from e
    if "\0" in text:
        raise UserError(f"{path}: is no text")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if path.suffix.lower() == ".txt" and any(map(_TIMING.fullmatch, lines)):
        raise UserError(f"{path}: looks like subtitles; name it .srt or .vtt")
    if path.suffix.lower() == ".vtt" and not re.match(r"WEBVTT(\s|$)", lines[0]):
        raise UserError(f"{path}:1: a .vtt file begins with WEBVTT")
    flaws: list[Flaw] = []
    spoken = list(readers[path.suffix.lower()](lines, flaws))
    phrases = phrases_of(spoken)
    if not phrases:
        why = f"; line {flaws[0].line}: {flaws[0].reason}" if flaws else ""
        raise UserError(f"{path}: holds no text{why}")
    return Transcript(phrases, flaws)


def _plain(lines: list[str], flaws: list[Flaw]) -> Iterator[tuple[int, str]]:
    yield from enumerate(lines, 1)


def _cues(lines: list[str], flaws: list[Flaw]) -> Iterator[tuple[int, str]]:
    """Yields the lines of all cues with their numbers, without what is no speech."""
    for is_blank, group in itertools.groupby(enumerate(lines, 1), lambda x: not x[1].strip()):
        block = list(group)
        if is_blank or re.match(r"(WEBVTT|NOTE|STYLE|REGION)(\s|$)", block[0][1]):
            continue
        timed = [i for i, (_, line) in enumerate(block[:2]) if _TIMING.fullmatch(line)]
        if not timed:
            text = " ".join(line.strip() for _, line in block)
            reason = "not a cue: no times such as 00:00:01,000 --> 00:00:02,500"
            flaws.append(Flaw(block[0][0], reason, text))
            continue
        for number, line in block[timed[0] + 1 :]:
            yield number, without_marks(line)


def without_marks(line: str) -> str:
    """Returns a line of a subtitle without tags, notes, dashes, and names of speakers.

    A name in capitals is taken for a speaker's, and any before a colon after `>>`.
    """
    line = html.unescape(_TAG.sub("", line))
    line = _NOTE.sub(" ", line)
    dash = _DASH.match(line)
    line = _DASH.sub("", line)
    speaker = _SPEAKER.match(line)
    if speaker and (speaker[1].isupper() or (dash and dash[0].strip().startswith(">>"))):
        line = line[speaker.end() :]
    return " ".join(line.split())


def phrases_of(lines: list[tuple[int, str]]) -> list[Phrase]:
    """Cuts numbered lines into phrases: at ends of lines and sentences, and long ones at commas.

    Lines end sentences only in a text without full stops.
    """
    rows = [(number, line.split()) for number, line in lines if line.split()]
    has_stops = any(_ENDS.search(word) for _, words in rows for word in words)
    found: list[Phrase] = []
    for row, (number, words) in enumerate(rows):
        following = rows[row + 1][1][:1] if row + 1 < len(rows) else []
        start = 0
        for i, word in enumerate(words):
            after = words[i + 1 : i + 2] or following
            ends = _ends_sentence(word, after) if has_stops else i + 1 == len(words)
            count = i + 1 - start
            is_long = count >= LONGEST or (count >= _SHORTEST and _PAUSES.search(word))
            if ends or i + 1 == len(words) or (is_long and len(words) - i > 2):
                found.append(Phrase(tuple(words[start : i + 1]), number, bool(ends)))
                start = i + 1
    return found


def _ends_sentence(word: str, following: list[str]) -> bool:
    """Returns whether a sentence ends with a word: not with `24.` or `jne.` before a small
    letter."""
    if not _ENDS.search(word):
        return False
    letters = [c for c in "".join(following) if c.isalnum()]
    return not (re.search(r"[.\u2026]\W*$", word) and letters and letters[0].islower())
