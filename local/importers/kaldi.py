"""Kaldi's data folders: wav.scp, segments, text, utt2spk, utt2lang, spk2gender."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from local.importers.entry import Corpus, Entry, missing_parts
from local.importers.safety import place_problem
from local.importers.text_list import all_lines
from xlsr_transducer.core.errors import UserError

WAV, SEGMENTS, TEXT = "wav.scp", "segments", "text"
_ARCHIVE = re.compile(r"\.ark:\d+(\[.*\])?$")


class Kaldi(Corpus):
    """A data folder of Kaldi; an utterance is a line of segments, or else of wav.scp.

    The tables are read side by side, so that memory does not grow with them as long as they are
    sorted alike, as Kaldi has them.
    """

    form = "a Kaldi folder"

    def entries(self) -> Iterator[Entry]:
        if not (self.path / TEXT).is_file():
            raise UserError(f"{self.path}: a Kaldi folder without {TEXT}")
        table = self.path / SEGMENTS
        has_segments = table.is_file()
        by_utterance = {n: _Column(self.path / n) for n in (TEXT, "utt2spk", "utt2lang")}
        genders = _Column(self.path / "spk2gender").rest()
        recordings = self._recordings() if has_segments else {}
        for line, key, rest in _rows(table if has_segments else self.path / WAV):
            content = f"{key} {rest}"
            text, speaker, language = (column.take(key) for column in by_utterance.values())
            gender = genders.get(speaker or "")
            known = {
                "text": text or "", "speaker": speaker or "", "language": language or "",
                "columns": {"gender": gender} if gender else {},
            }  # fmt: skip
            if has_segments:
                yield self._segment(line, key, rest, known, recordings)
            else:
                problem = self._place_problem(rest, line)
                problem = problem or missing_parts(rest, known["text"])
                yield Entry(
                    line, content, rest, self.locate(rest), id=key, recording=key,
                    problem=problem, **known,
                )  # fmt: skip
        left = len(by_utterance[TEXT].rest())
        if left:
            self.left_out[f"ids in {TEXT} that have no audio"] += left

    def _recordings(self) -> dict[str, str]:
        """Returns the files by the ids of recordings."""
        found = {}
        for line, key, rest in _rows(self.path / WAV):
            place_problem(rest, self.path / WAV, line)  # raises for a pipe
            found[key] = rest
        return found

    def _place_problem(self, place: str, line: int) -> str:
        problem = place_problem(place, self.path / WAV, line)
        if problem or not _ARCHIVE.search(place):
            return problem
        return f"audio that is no file: {place} is a place in an archive; write it to a file"

    def _segment(
        self, line: int, key: str, rest: str, known: dict, recordings: dict[str, str]
    ) -> Entry:
        content, fields = f"{key} {rest}", rest.split()
        if len(fields) not in (3, 4):
            return Entry(line, content, problem="fields: utterance recording start end expected")
        recording, *times = fields[:3]
        place = recordings.get(recording)
        if place is None:
            return Entry(line, content, problem=f"no such recording: {recording} in {WAV}")
        try:
            start, end = map(float, times)
            channels = tuple(map(int, fields[3:]))
        except ValueError:
            problem = f"times that are no seconds: {' '.join(fields[1:])}"
            return Entry(line, content, problem=problem)
        problem = missing_parts(place, known["text"]) or self._place_problem(place, line)
        return Entry(
            line, content, place, self.locate(place), id=key, recording=recording, start=start,
            end=None if end == -1 else end,  # Kaldi's -1: to the end
            channels=channels, problem=problem, **known,
        )  # fmt: skip


class _Column:
    """A table of keys and values that is read in step with another, in whatever order."""

    def __init__(self, path: Path) -> None:
        self._rows = _rows(path) if path.is_file() else iter(())
        self._is_sorted = path.is_file() and _is_sorted(key for _, key, _ in _rows(path))
        self._read: dict[str, str] = {}  # ahead of where they are wanted
        self._last = ""

    def take(self, key: str) -> str | None:
        """Returns the value of a key, once; None if it has none."""
        while key not in self._read:
            if self._is_sorted and self._last > key:
                return None
            row = next(self._rows, None)
            if row is None:
                return None
            _, self._last, self._read[row[1]] = row
        return self._read.pop(key)

    def rest(self) -> dict[str, str]:
        """Returns all that has not been taken."""
        self._read.update((key, value) for _, key, value in self._rows)
        return self._read


def _is_sorted(keys: Iterator[str]) -> bool:
    return all(a <= b for a, b in itertools.pairwise(keys))


def _rows(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yields line number, key and the rest of each line, spaces around it removed."""
    for number, line in all_lines(path):
        try:
            key, _, rest = line.decode("utf-8").strip().replace("\t", " ").partition(" ")
        except UnicodeDecodeError as e:
            raise UserError(f"{path}, line {number}: not UTF-8") from e
        if key:
            yield number, key, rest.strip()
