"""Utterances out of an aligned recording: from pause to pause, without words that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from local.segmenting.pauses import Pause
from local.segmenting.transcripts import Phrase
from xlsr_transducer.core.options import Options, option
from xlsr_transducer.recognition.long_alignment import AlignedUnit, RecognisedWord, Unit
from xlsr_transducer.recognition.spans import Span

NOT_SPOKEN = "not spoken"
NOT_WRITTEN = "spoken, but not in the transcript"
DIFFERENT = "differs from what was spoken"
NO_WORDS = "sound without words"
NO_PAUSE = "no pause between this and what is left out"
TOO_LONG = "too long, and without a pause"
TOO_SHORT = "too short"

LONGEST_PAUSE = 1.0  # seconds within an utterance
UNUSUAL = 0.1  # seconds that a bound may be from where it usually is, seen from the tokens
LONGEST_SOUND = 1.5  # seconds without words and without a pause

FindPause = Callable[[float, float], "Pause | None"]


@dataclass(frozen=True)
class SegmentOptions(Options):
    """Utterances."""

    min_seconds: float = option(2.0, "of an utterance", above=0)
    max_seconds: float = option(20.0, "of an utterance", above=0)
    min_pause: float = option(0.2, "seconds of quiet that utterances may be cut at", above=0)
    max_wer: float = option(
        50.0, "% of a phrase's words in which it may differ from what is recognised", at_least=0
    )
    max_odds: float = option(
        5.0,
        "how much more probable (log) the model may find its own words, for each that differs",
        at_least=0,
    )


@dataclass(frozen=True)
class Written:
    """A phrase of the transcript, and what the model makes of it."""

    phrase: Phrase
    unit: Unit | None  # None: the model cannot spell it
    places: dict[int, int]  # words of the unit before which it may be cut: word of the phrase
    flaw: str = ""  # why it cannot be used

    def text(self, first: int, last: int) -> str:
        """Returns how words ``first`` to ``last`` of the unit are written."""
        words = self.phrase.words
        start = self.places[first] if first else 0
        end = self.places[last + 1] if last + 1 < len(self.unit.words) else len(words)
        return " ".join(words[start:end])


class Item(NamedTuple):
    """A word that was spoken, or a sound."""

    span: Span
    phrase: int  # of the transcript; -1: of none
    word: int  # of the phrase's unit
    reason: str  # why it is left out; "" if it fits


class Row(NamedTuple):
    """An utterance, or something that is none and why."""

    start: float | None  # seconds; None: nowhere
    end: float | None
    text: str
    reason: str = ""  # "" for an utterance
    confidence: float | None = None  # the mean of its words
    errors: int = 0  # words in which its phrases differ from what was recognised
    odds: float = 0.0  # the highest of its phrases


class Run(NamedTuple):
    """What was spoken from one pause to the next."""

    before: Pause
    items: list[Item]
    after: Pause

    @property
    def fits(self) -> bool:
        """Whether all of it is in the transcript."""
        return not any(item.reason for item in self.items)


def timeline(
    recognised: Sequence[RecognisedWord],
    aligned: Sequence[AlignedUnit | None],
    options: SegmentOptions,
) -> list[Item]:
    """Returns all words in the order of time: those of phrases that fit, and others as they were
    recognised."""
    items, at = [], 0

    def as_recognised(end: int, phrase: int, reason: str) -> Iterator[Item]:
        for word in recognised[at:end]:
            yield Item(word.span, phrase, -1, reason)

    for number, found in enumerate(aligned):
        if found is None:
            continue
        items += as_recognised(found.stretch.first, -1, NOT_WRITTEN)
        at = found.stretch.first
        is_near = 100 * found.error_rate <= options.max_wer and found.odds <= options.max_odds
        if found.words and is_near:
            items += [Item(span, number, i, "") for i, span in enumerate(found.words)]
        else:
            items += as_recognised(found.stretch.end, number, DIFFERENT)
        at = found.stretch.end
    items += as_recognised(len(recognised), -1, NOT_WRITTEN)
    return items


def runs_of(
    items: Sequence[Item], written: Sequence[Written], seconds: float, find_pause: FindPause
) -> list[Run]:
    """Cuts a timeline at pauses, but not within what is one written word."""
    gaps = list(
        zip([0.0, *(i.span.end for i in items)], [*(i.span.start for i in items), seconds])
    )
    pauses: list[Pause | None] = []
    for i, gap in enumerate(gaps):
        is_edge = i in (0, len(items))
        may_cut = is_edge or _may_cut(items[i - 1], items[i], written)
        pauses.append(find_pause(*gap) if may_cut else None)
    pauses = usual_pauses(gaps, pauses)
    found: list[Run] = []
    before, run = Pause(0.0, 0.0), []
    for i, ((end, start), pause) in enumerate(zip(gaps, pauses)):
        if pause is None and start - end > LONGEST_SOUND:
            run.append(Item(Span("", end, start, 0.0), -1, -1, NO_WORDS))
        if pause is not None:
            if run:
                found.append(Run(before, run, pause))
            before, run = pause, []
        if i < len(items):
            run.append(items[i])
    if run:
        found.append(Run(before, run, Pause(seconds, seconds)))
    return found


def usual_pauses(
    gaps: Sequence[tuple[float, float]], pauses: Sequence[Pause | None]
) -> list[Pause | None]:
    """Returns pauses whose bounds are about as far from the model's tokens as is usual in this
    recording: noise may look like speech, and the weak end of a word like noise.

    Args:
      gaps: from the last token before each pause to the first after it, in seconds.
    """
    inner = [(gap, pause) for gap, pause in list(zip(gaps, pauses))[1:-1] if pause is not None]
    if not inner:
        return list(pauses)
    lag = float(np.median([pause.start - gap[0] for gap, pause in inner]))
    lead = float(np.median([pause.end - gap[1] for gap, pause in inner]))
    found: list[Pause | None] = []
    for i, (gap, pause) in enumerate(zip(gaps, pauses)):
        if pause is not None:
            start, end = pause
            if i:
                start = min(max(start, gap[0] + lag - UNUSUAL), gap[0] + lag + UNUSUAL)
            if i + 1 < len(gaps):
                end = min(max(end, gap[1] + lead - UNUSUAL), gap[1] + lead + UNUSUAL)
            middle = (start + end) / 2
            pause = Pause(min(start, middle), max(end, middle))
        found.append(pause)
    return found


def _may_cut(left: Item, right: Item, written: Sequence[Written]) -> bool:
    if left.reason or right.reason or left.phrase != right.phrase:
        return True
    return right.word in written[left.phrase].places


def segment(
    recognised: Sequence[RecognisedWord],
    aligned: Sequence[AlignedUnit | None],
    written: Sequence[Written],
    seconds: float,
    find_pause: FindPause,
    options: SegmentOptions,
) -> list[Row]:
    """Returns the utterances of a recording and all that is in none, in order of time.

    Args:
      aligned: of each phrase of ``written``; None: not spoken.
      seconds: of the recording.
      find_pause: from the time after which, and before which, it is looked for.
    """
    items = timeline(recognised, aligned, options)
    runs = runs_of(items, written, seconds, find_pause)
    maker = _Maker(written, aligned, options)
    rows = [row for group in maker.groups(runs) for row in maker.rows(group)]
    now = 0.0
    for number, found in enumerate(aligned):
        if found is not None:
            now = recognised[found.stretch.end - 1].span.end
            continue
        one = written[number]
        rows.append((now, Row(None, None, one.phrase.text, one.flaw or NOT_SPOKEN)))
    return [row for _, row in sorted(rows, key=lambda pair: pair[0])]


class _Maker:
    """Makes rows, each with its place in time, out of runs."""

    def __init__(
        self,
        written: Sequence[Written],
        aligned: Sequence[AlignedUnit | None],
        options: SegmentOptions,
    ):
        self.written, self.aligned, self.options = written, aligned, options

    def groups(self, runs: Sequence[Run]) -> Iterator[list[Run]]:
        """Yields runs that fit and follow each other, and others one by one."""
        group: list[Run] = []
        for run in runs:
            if group and not (run.fits and group[-1].fits and self._continues(group[-1], run)):
                yield group
                group = []
            group.append(run)
        if group:
            yield group

    def _continues(self, left: Run, right: Run) -> bool:
        between = range(left.items[-1].phrase + 1, right.items[0].phrase)
        return left.after.seconds <= LONGEST_PAUSE and not between

    def rows(self, group: list[Run]) -> Iterator[tuple[float, Row]]:
        """Yields the utterances of a group of runs, and what is none."""
        if not group[0].fits:
            yield from self._left_out(group[0].items)
            return
        pieces = self._merged(list(self._pieces(group)))
        for piece in pieces:
            reason = ""
            if _seconds(piece) > self.options.max_seconds:
                reason = TOO_LONG
            elif _seconds(piece) < self.options.min_seconds:
                reason = TOO_SHORT
            start, end = _edges(piece)
            items = [item for run in piece for item in run.items]
            phrases = sorted({item.phrase for item in items})
            units = [self.aligned[phrase] for phrase in phrases]
            row = Row(
                start,
                end,
                self._text(items),
                reason,
                sum(item.span.confidence for item in items) / len(items),
                sum(unit.errors for unit in units),
                max(unit.odds for unit in units),
            )
            yield start, row

    def _pieces(self, group: list[Run]) -> Iterator[list[Run]]:
        """Cuts a group after each sentence, and long sentences at their longest pauses."""
        piece: list[Run] = []
        for run in group:
            piece.append(run)
            if self._ends_sentence(run.items[-1]):
                yield from self._short_enough(piece)
                piece = []
        if piece:
            yield from self._short_enough(piece)

    def _ends_sentence(self, item: Item) -> bool:
        one = self.written[item.phrase]
        return one.phrase.ends_sentence and item.word + 1 == len(one.unit.words)

    def _short_enough(self, piece: list[Run]) -> Iterator[list[Run]]:
        if len(piece) == 1 or _seconds(piece) <= self.options.max_seconds:
            yield piece
            return
        cut = max(range(1, len(piece)), key=lambda i: piece[i].before.seconds)
        yield from self._short_enough(piece[:cut])
        yield from self._short_enough(piece[cut:])

    def _merged(self, pieces: list[list[Run]]) -> list[list[Run]]:
        """Joins pieces that are too short with the neighbour that is nearer."""
        at = 0
        while at < len(pieces):
            joins = []
            if _seconds(pieces[at]) < self.options.min_seconds:
                for left in (at - 1, at):
                    if 0 <= left < len(pieces) - 1:
                        joined = pieces[left] + pieces[left + 1]
                        if _seconds(joined) <= self.options.max_seconds:
                            joins.append((pieces[left + 1][0].before.seconds, left, joined))
            if not joins:
                at += 1
                continue
            _, left, joined = min(joins, key=lambda join: join[:2])
            pieces[left : left + 2] = [joined]
            at = left
        return pieces

    def _left_out(self, items: list[Item]) -> Iterator[tuple[float, Row]]:
        """Yields rows of a run that does not fit, one for each cause."""
        part: list[Item] = []
        for item in [*items, None]:
            if part and (item is None or self._cause(item) != self._cause(part[0])):
                start, end = part[0].span.start, part[-1].span.end
                phrase, reason = self._cause(part[0])
                text = " ".join(one.span.text for one in part)
                found = self.aligned[phrase] if reason == DIFFERENT else None
                if found:
                    text = self.written[phrase].phrase.text
                    scores = (None, found.errors, found.odds)
                    yield start, Row(start, end, text, reason, *scores)
                else:
                    text = text if part[0].reason else self._text(part)
                    yield start, Row(start, end, text, reason)
                part = []
            if item is not None:
                part.append(item)

    def _cause(self, item: Item) -> tuple[int, str]:
        return (item.phrase if item.reason == DIFFERENT else -1), item.reason or NO_PAUSE

    def _text(self, items: Sequence[Item]) -> str:
        """Returns how words that fit are written."""
        bounds: dict[int, list[int]] = {}
        for item in items:
            bounds.setdefault(item.phrase, []).append(item.word)
        return " ".join(self.written[p].text(w[0], w[-1]) for p, w in bounds.items())


def _edges(piece: Sequence[Run]) -> tuple[float, float]:
    before, after = piece[0].before, piece[-1].after
    return before.end - before.padding, after.start + after.padding


def _seconds(piece: Sequence[Run]) -> float:
    start, end = _edges(piece)
    return end - start
