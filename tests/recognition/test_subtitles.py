"""Subtitles say what was recognised, when it was said, in lines that can be read."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Sequence

import pytest

from xlsr_transducer.recognition.spans import Span, TimedText
from xlsr_transducer.recognition.subtitles import ENDINGS, LINE, LONGEST, WRITERS, render

Shown = tuple[int, int, str]  # from when to when, in milliseconds, and the text


def segment(number: int, words: list[Span]) -> TimedText:
    text = " ".join(word.text for word in words)
    return TimedText(number, text, [], [w.start for w in words], [], words, True)


def spoken(seed: int, start: float = 0.0, pieces: Sequence[str] = "aeioklmnst") -> list[TimedText]:
    """Segments of one to sixty words, some with long pauses within."""
    draw, now, found = random.Random(seed), start, []
    for number in range(12):
        words = []
        for _ in range(draw.randint(1, 60)):
            length = draw.choice([0.04, 0.2, 0.6])
            text = "".join(draw.choices(pieces, k=draw.randint(1, 12)))
            words.append(Span(text, now, now + length, 0.9))
            now += length + draw.choice([0, 0, 0.04, 0.12, 3.0 * (draw.random() < 0.1)])
        found.append(segment(number, words))
        now += draw.choice([0.0, 0.4, 2.0])
    return found


def parsed(text: str, kind: str) -> list[Shown]:
    """Reads subtitles by ffmpeg's parsers."""
    av = pytest.importorskip("av")
    shown = []
    with av.open(io.BytesIO(text.encode())) as container:
        assert container.format.name == kind
        for packet in container.demux(subtitles=0):
            for subtitle in packet.decode() if packet.size else []:
                text = subtitle.dialogue.decode()
                shown.append((packet.pts, packet.pts + packet.duration, text))
    return shown


@pytest.mark.parametrize("name, kind", [("srt", "srt"), ("vtt", "webvtt")])
@pytest.mark.parametrize("start", [0.0, 3599.5, 99 * 3600.0, 1234 * 3600.0])
def test_cues_have_all_words_at_their_times(name: str, kind: str, start: float) -> None:
    segments = spoken(int(start), start)
    words = [word for s in segments for word in s.words]
    shown = parsed(render(name, segments, 0.0), kind)
    assert " ".join(text for *_, text in shown).split() == [word.text for word in words]
    remaining = iter(words)
    for cue, (begin, end, text) in enumerate(shown):
        said = [next(remaining) for _ in text.split()]
        assert begin == round(said[0].start * 1000)
        following = shown[cue + 1][0] if cue + 1 < len(shown) else 10**12
        assert begin < end <= following
        # It stays until its last word has been said, and a second if there is time.
        assert end == min(max(round(said[-1].end * 1000), begin + 1000), following)


@pytest.mark.parametrize("seed", range(5))
def test_cues_can_be_read(seed: int) -> None:
    shown = parsed(render("srt", spoken(seed), 0.0), "srt")
    for begin, end, text in shown:
        lines = text.split("\n")
        assert len(lines) <= 2 and max(map(len, lines)) <= LINE
        assert end - begin <= LONGEST * 1000
    assert any("\n" in text for *_, text in shown)
    assert sum(len(text) for *_, text in shown) / len(shown) > 25  # and are not single words


def test_slow_speech_and_pauses_end_a_cue() -> None:
    slow = [Span("slow", k * 2.0, k * 2.0 + 1.5, 1.0) for k in range(6)]
    pause = [Span("after", 12.7, 12.8, 1.0), Span("pause", 12.8, 12.9, 1.0)]
    shown = parsed(render("srt", [segment(0, slow + pause)], 1.0), "srt")
    assert [text for *_, text in shown] == ["slow slow slow", "slow slow slow", "after pause"]


def test_two_lines_are_about_equally_long() -> None:
    words = [Span("four", k * 0.1, k * 0.1 + 0.1, 1.0) for k in range(9)]
    [(_, _, text)] = parsed(render("srt", [segment(0, words)], 1.0), "srt")
    assert sorted(map(len, text.split("\n"))) == [19, 24]


def test_a_cue_of_punctuated_text_ends_with_a_sentence_where_that_fills_half_of_it() -> None:
    texts = (
        "Tere tulemast kõigile, kes täna siia tulid! Alustame nüüd. Ilm on täna väga ilus ja soe"
    )
    words = [Span(text, i * 0.3, i * 0.3 + 0.2, 1.0) for i, text in enumerate(texts.split())]
    shown = [
        text.replace("\n", " ")
        for *_, text in parsed(render("srt", [segment(0, words)], 0), "srt")
    ]
    assert shown == ["Tere tulemast kõigile, kes täna siia tulid! Alustame nüüd.",
                     "Ilm on täna väga ilus ja soe"]  # fmt: skip
    early = [Span(text, i * 0.3, i * 0.3 + 0.2, 1.0)
             for i, text in enumerate(["Jah.", *["sõnadele"] * 12])]  # fmt: skip
    first, *_ = parsed(render("srt", [segment(0, early)], 0), "srt")
    assert first[2].startswith("Jah. sõnadele sõnadele")  # a cue of one word would be worse
    paused = [*words[:10], *(Span("ilm", 9.0 + i, 9.1 + i, 1.0) for i in range(1))]
    shown = [
        text.replace("\n", " ")
        for *_, text in parsed(render("srt", [segment(0, paused)], 0), "srt")
    ]
    assert shown == [" ".join(texts.split()[:10]), "ilm"]


def test_a_word_that_is_longer_than_a_line_is_not_cut() -> None:
    words = [Span("a" * 50, 0.0, 0.5, 1.0), Span("b", 0.5, 0.6, 1.0)]
    [(_, _, text)] = parsed(render("vtt", [segment(0, words)], 1.0), "webvtt")
    assert text == "a" * 50 + "\nb"


def test_words_in_one_frame_do_not_make_cues_without_duration() -> None:
    words = [Span("w" * 40, k * 1e-4, (k + 1) * 1e-4, 1.0) for k in range(8)]
    shown = parsed(render("srt", [segment(0, words)], 1.0), "srt")
    assert len(shown) == 4 and all(begin < end for begin, end, _ in shown)
    assert all(a[1] <= b[0] for a, b in zip(shown, shown[1:]))


def test_vtt_escapes_what_it_would_take_for_tags() -> None:
    segments = spoken(3, pieces=["<", ">", "&", "&lt;", "/", ";", "-", "b"])
    words = [word.text for s in segments for word in s.words]
    shown = parsed(render("vtt", segments, 0.0), "webvtt")
    assert " ".join(text for *_, text in shown).split() == words


def test_text_has_a_line_for_each_segment() -> None:
    segments = spoken(1)
    assert render("txt", segments, 9.0).splitlines() == [s.text for s in segments]


def test_json_has_segments_words_times_and_confidence() -> None:
    segments = spoken(2, pieces='ä"\\<\n')
    found = json.loads(render("json", segments, 1234.5678))
    assert found["seconds"] == 1234.568
    assert [s["text"] for s in found["segments"]] == [s.text for s in segments]
    for s, expected in zip(found["segments"], segments):
        assert (s["start"], s["end"]) == (round(expected.start, 3), round(expected.end, 3))
        assert [tuple(word.values()) for word in s["words"]] == [
            (w.text, round(w.start, 3), round(w.end, 3), w.confidence) for w in expected.words
        ]
    assert "ä" in render("json", segments, 0.0)  # not as an escape


def tiers(grid: str) -> dict[str, list[tuple[float, float, str]]]:
    """Reads a TextGrid by its grammar: intervals of a tier follow each other from xmin to xmax,
    quotes are doubled, counts are right."""
    number = r"(\d+\.?\d*)"
    head = re.match(
        r'File type = "ooTextFile"\nObject class = "TextGrid"\n\n'
        rf"xmin = 0\nxmax = {number}\ntiers\? <exists>\nsize = (\d+)\nitem \[\]:\n",
        grid,
    )
    rest, xmax, found = grid[head.end() :], float(head[1]), {}
    for tier in range(1, int(head[2]) + 1):
        top = re.match(
            rf' +item \[{tier}\]:\n +class = "IntervalTier"\n +name = "(\w+)"\n'
            rf" +xmin = 0\n +xmax = {number}\n +intervals: size = (\d+)\n",
            rest,
        )
        rest, intervals, now = rest[top.end() :], [], 0.0
        for i in range(1, int(top[3]) + 1):
            interval = re.match(
                rf" +intervals \[{i}\]:\n +xmin = {number}\n +xmax = {number}\n"
                r' +text = "((?:[^"]|"")*)"\n',
                rest,
            )
            rest = rest[interval.end() :]
            start, end, text = float(interval[1]), float(interval[2]), interval[3]
            assert abs(start - now) < 2e-6 and start < end
            intervals.append((start, end, text.replace('""', '"')))
            now = end
        assert now == float(top[2]) == xmax
        found[top[1]] = intervals
    assert not rest
    return found


@pytest.mark.parametrize("seed", range(3))
def test_a_text_grid_has_words_and_segments_at_their_times(seed: int) -> None:
    segments = spoken(seed, 0.5, pieces='ab"')
    end = segments[-1].end
    for seconds in (end + 3.0, end - 0.01):  # the last frame may end after the audio
        found = tiers(render("textgrid", segments, seconds))
        words = [(w.start, w.end, w.text) for s in segments for w in s.words]
        said = [w for w in found["words"] if w[2]]
        assert [w[2] for w in said] == [w[2] for w in words]
        assert all(abs(a - b) < 1e-6 for x, y in zip(said, words) for a, b in zip(x[:2], y[:2]))
        assert [s[2] for s in found["segments"] if s[2]] == [s.text for s in segments]


@pytest.mark.parametrize("name", WRITERS)
def test_silence_makes_a_valid_file(name: str) -> None:
    found = render(name, [], 2.0)
    if name == "json":
        assert json.loads(found) == {"segments": [], "seconds": 2.0}
    elif name == "textgrid":
        assert tiers(found) == {"words": [(0, 2, "")], "segments": [(0, 2, "")]}
    else:
        assert found == ("WEBVTT\n\n" if name == "vtt" else "")


@pytest.mark.parametrize("name", ["txt", "json", "srt", "vtt"])
def test_segments_are_written_as_they_end(name: str) -> None:
    """No writer keeps more than the last cue."""
    writer, held = WRITERS[name](), 0
    for s in spoken(4):
        held += len(s.text) - len(writer.add(s))
        assert held < 100
    assert ENDINGS[name] == f".{name}"
