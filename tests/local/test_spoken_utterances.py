"""Utterances of long recordings hold what was spoken and nothing else."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from local.segmenting import utterances as module
from local.segmenting.pauses import PADDING, Pause, find_pause
from local.segmenting.transcripts import Phrase
from local.segmenting.utterances import (
    DIFFERENT,
    NO_PAUSE,
    NO_WORDS,
    NOT_SPOKEN,
    NOT_WRITTEN,
    TOO_LONG,
    TOO_SHORT,
    Row,
    SegmentOptions,
    Written,
    segment,
    usual_pauses,
)
from xlsr_transducer.recognition import long_encoding
from xlsr_transducer.recognition.long_alignment import AlignedUnit, RecognisedWord, Unit
from xlsr_transducer.recognition.long_encoding import Encoded
from xlsr_transducer.recognition.placing import Stretch
from xlsr_transducer.recognition.spans import Span


def levels(folder: Path, decibels: list[float]) -> Encoded:
    """A recording of these levels, one for each XLSR frame of 20 ms."""
    array = np.array(decibels, dtype=np.float16).reshape(-1, 2)
    np.save(folder / "levels-00000.npy", array)
    long_encoding._mapped.cache_clear()
    return Encoded(folder, ((len(array),),), 0.04, 2)


@pytest.mark.parametrize("noise, speech_level", [(-80, -20), (-45, -25), (-100, -10)])
def test_a_pause_is_from_the_end_of_speech_to_its_beginning(
    noise: float, speech_level: float, tmp_path: Path
) -> None:
    quiet = [noise] * 50
    encoded = levels(tmp_path, [speech_level] * 50 + quiet + [speech_level] * 50)
    # Tokens may come early or late, within the speech or the pause.
    for after, before in ((0.8, 2.3), (1.3, 1.9), (1.04, 2.0)):
        pause = find_pause(encoded, after, before, 0.2)
        assert pause.start == pytest.approx(1.0, abs=0.03)
        assert pause.end == pytest.approx(2.0, abs=0.03)
        assert pause.padding == PADDING
    assert find_pause(encoded, 0.8, 2.3, 1.2) is None
    assert find_pause(encoded, 0.2, 0.7, 0.2) is None  # within speech
    assert find_pause(encoded, 1.5, 1.5, 0.2) is None


def test_music_between_two_pauses_is_not_within_speech(tmp_path: Path) -> None:
    parts = [[-20.0] * 50, [-70.0] * 20, [-25.0] * 60, [-70.0] * 20, [-20.0] * 50]
    encoded = levels(tmp_path, sum(parts, []))
    pause = find_pause(encoded, 0.9, 3.1, 0.2)
    assert pause == pytest.approx((1.0, 3.0), abs=0.03)
    flat = levels(tmp_path, [-30.0] * 200)
    assert find_pause(flat, 1.0, 2.0, 0.2) is None


def test_a_bound_that_is_unusual_is_moved_to_where_bounds_usually_are() -> None:
    gaps = [(0.0, 1.0), *((float(k), k + 0.5) for k in range(1, 10)), (10.0, 11.0)]
    pauses = [Pause(a + 0.1, b - 0.1) for a, b in gaps]
    pauses[3] = Pause(gaps[3][0] + 0.35, gaps[3][1] - 0.12)
    pauses[5] = None
    found = usual_pauses(gaps, pauses)
    assert found[3] == pytest.approx((gaps[3][0] + 0.1 + module.UNUSUAL, gaps[3][1] - 0.12))
    assert found[5] is None and found[0] == pytest.approx((0.1, 0.9))
    assert usual_pauses([(0.0, 1.0)], [None]) == [None]


# ---- utterances


class Talk:
    """A made-up recording: phrases of words, pauses between some of them, what fits and not."""

    def __init__(self) -> None:
        self.now, self.words, self.pauses = 0.5, [], []
        self.written: list[Written] = []
        self.aligned: list[AlignedUnit | None] = []

    def _say(self, words: list[str], seconds: float) -> list[Span]:
        spans = []
        for word in words:
            spans.append(Span(word, self.now, self.now + seconds, 0.9))
            self.words.append(RecognisedWord(spans[-1], (3,)))
            self.now += seconds
        return spans

    def pause(self, seconds: float = 0.5) -> Talk:
        self.pauses.append(Pause(self.now, self.now + seconds))
        self.now += seconds
        return self

    def other(self, text: str, seconds: float = 0.5) -> Talk:
        """Speaks what is not in the transcript."""
        self._say(text.split(), seconds)
        return self

    def unspoken(self, text: str) -> Talk:
        self._write(text)
        self.aligned.append(None)
        return self

    def phrase(self, text: str, seconds: float = 0.5, odds: float = 0.0, errors: int = 0) -> Talk:
        words = self._write(text)
        first = len(self.words)
        spans = self._say(words, seconds)
        stretch = Stretch(first, len(self.words))
        self.aligned.append(AlignedUnit(stretch, spans, errors, odds))
        return self

    def _write(self, text: str) -> list[str]:
        words = text.split()
        phrase = Phrase(tuple(words), 1, text.endswith("."))
        places = {k: k for k in range(1, len(words))}
        self.written.append(Written(phrase, Unit(tuple(words), (3,)), places))
        return words

    def rows(self, **options: float) -> list[Row]:
        def find(after: float, before: float) -> Pause | None:
            found = [p for p in self.pauses if p.start < before and p.end > after]
            return Pause(found[0].start, found[-1].end) if found else None

        args = (self.words, self.aligned, self.written, self.now, find)
        return segment(*args, SegmentOptions(**options))


def shown(rows: list[Row]) -> list[tuple[str, str]]:
    return [(row.text, row.reason) for row in rows]


def test_sentences_between_pauses_are_utterances() -> None:
    talk = Talk().phrase("a b c d.").pause().phrase("e f g,").pause(0.3).phrase("h i.").pause()
    rows = talk.phrase("j k l m.").pause().rows()
    assert shown(rows) == [("a b c d.", ""), ("e f g, h i.", ""), ("j k l m.", "")]
    first = rows[0]
    assert (first.start, first.end) == pytest.approx((0.0, 2.5 + PADDING))
    assert rows[1].start == pytest.approx(3.0 - PADDING)
    assert first.confidence == pytest.approx(0.9)


def test_speech_without_text_is_in_no_utterance() -> None:
    talk = Talk().phrase("a b c d.").other("x y").pause().phrase("e f g h.").pause()
    talk.other("z").pause().phrase("i j k l.").pause(0.3).phrase("m n o.").other("w").pause()
    assert shown(talk.rows()) == [
        ("a b c d.", NO_PAUSE),
        ("x y", NOT_WRITTEN),
        ("e f g h.", ""),
        ("z", NOT_WRITTEN),
        ("i j k l.", ""),
        ("m n o.", NO_PAUSE),
        ("w", NOT_WRITTEN),
    ]


def test_phrases_that_differ_or_were_not_spoken_are_left_out() -> None:
    talk = Talk().phrase("a b c d.").pause().phrase("e f g h.", odds=9.0, errors=1).pause()
    talk.unspoken("no no.").phrase("i j k l.", odds=2.0, errors=2).pause()
    talk.phrase("m n o p.", odds=0.5, errors=3).pause()
    rows = talk.rows()
    assert shown(rows) == [
        ("a b c d.", ""),
        ("e f g h.", DIFFERENT),
        ("no no.", NOT_SPOKEN),
        ("i j k l.", ""),
        ("m n o p.", DIFFERENT),
    ]
    assert (rows[1].errors, rows[1].odds, rows[3].errors) == (1, 9.0, 2)
    assert rows[2].start is None and rows[1].start == pytest.approx(3.0)
    assert [r for _, r in shown(talk.rows(max_wer=80.0, max_odds=10.0))].count("") == 4


def test_short_ones_join_the_nearer_neighbour_and_long_ones_are_cut_at_pauses() -> None:
    talk = Talk().phrase("a b c d.").pause(0.8).phrase("e.").pause(0.3).phrase("f g h i.").pause(3)
    talk.phrase("j.").pause(3)
    assert shown(talk.rows()) == [("a b c d.", ""), ("e. f g h i.", ""), ("j.", TOO_SHORT)]
    long = Talk().phrase("a b c d e,").pause(0.4).phrase("f g h,").pause(0.9).phrase("i j k l m.")
    assert shown(long.pause().rows(max_seconds=6.0)) == [
        ("a b c d e, f g h,", ""),
        ("i j k l m.", ""),
    ]
    assert shown(Talk().phrase("a b c d e.").pause().rows(max_seconds=2.4)) == [
        ("a b c d e.", TOO_LONG)
    ]


def test_nothing_is_joined_over_what_was_not_spoken_or_a_long_pause() -> None:
    talk = Talk().phrase("a b").pause(0.3).unspoken("x").phrase("c d").pause(1.5).phrase("e f.")
    rows = talk.pause().rows()
    assert shown(rows) == [("a b", TOO_SHORT), ("x", NOT_SPOKEN), ("c d", TOO_SHORT),
                           ("e f.", TOO_SHORT)]  # fmt: skip


def test_long_sounds_without_words_are_in_no_utterance() -> None:
    talk = Talk().phrase("a b c d.").pause().phrase("e f")
    talk.now += 4.0  # of music, without a pause
    talk.phrase("g h i.").pause()
    assert shown(talk.rows()) == [
        ("a b c d.", ""), ("e f", NO_PAUSE), ("", NO_WORDS), ("g h i.", NO_PAUSE)
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_whatever_was_spoken_utterances_hold_that_and_all_else_is_listed(seed: int) -> None:
    """Of random talks, compared word by word with what was made up."""
    draw, talk, number = random.Random(seed), Talk(), 0
    for _ in range(60):
        words = [f"w{number + k}" for k in range(draw.randint(1, 8))]
        number += len(words)
        kind = draw.choice(["phrase"] * 6 + ["other", "unspoken", "differs"])
        text = " ".join(words) + "." * draw.choice([0, 1])
        seconds = draw.choice([0.2, 0.5, 1.2])
        if kind == "phrase":
            talk.phrase(text, seconds)
        elif kind == "differs":
            talk.phrase(text, seconds, odds=99.0, errors=1)
        elif kind == "other":
            talk.other(text, seconds)
        else:
            talk.unspoken(text)
        if draw.random() < 0.6:
            talk.pause(draw.choice([0.2, 0.4, 1.2]))
    rows = talk.rows(max_seconds=8.0)
    good = {w for a in talk.aligned if a and not a.odds for s in a.words for w in [s.text]}
    times = {word.span.text: word.span for word in talk.words}
    end = 0.0
    for row in rows:
        if row.reason:
            continue
        assert 2.0 <= row.end - row.start <= 8.0 and row.start >= end - 1e-9
        inside = [w for w, s in times.items() if s.start < row.end and s.end > row.start]
        assert inside == row.text.split() and set(inside) <= good
        assert all(row.start <= times[w].start and times[w].end <= row.end for w in inside)
        end = row.end
    listed = " ".join(row.text for row in rows).split()
    everything = [*times, *(w for o, a in zip(talk.written, talk.aligned) if a is None
                            for w in o.phrase.words)]  # fmt: skip
    assert sorted(listed) == sorted(everything)
    assert any(not row.reason for row in rows)


def test_what_is_one_written_word_is_not_cut() -> None:
    """Figures that are spoken as several words."""
    talk = Talk().phrase("tuhat üheksasada").pause(0.3).phrase("aasta lõpus oli.").pause()
    phrase = Phrase(("1900", "aasta", "lõpus", "oli."), 1, True)
    unit = Unit(("tuhat", "üheksasada", "aasta", "lõpus", "oli"), (3,))
    spans = [word.span for word in talk.words]
    talk.written = [Written(phrase, unit, {2: 1, 3: 2, 4: 3})]
    talk.aligned = [AlignedUnit(Stretch(0, 5), spans, 0, 0.0)]
    talk.pauses.append(Pause(spans[0].end - 0.01, spans[0].end + 0.01))
    assert shown(talk.rows(min_seconds=0.5, max_seconds=2.0)) == [
        ("1900", ""), ("aasta lõpus oli.", "")
    ]  # fmt: skip
