"""Transcripts are read as they are found, and utterances hold what was spoken and nothing else."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from local import segment as command
from local.demo import segmenting as experiment
from local.importers.text_list import TextList
from local.segmenting import utterances as module
from local.segmenting.pauses import PADDING, Pause, find_pause
from local.segmenting.transcripts import Phrase, phrases_of, read_transcript, without_marks
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
from tests.recognition.test_subtitles import spoken
from tests.support.random_models import CHUNK, write_random_model
from tests.support.stream_driver import speech
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model
from xlsr_transducer.recognition import long_encoding
from xlsr_transducer.recognition.long_alignment import AlignedUnit, Aligner, RecognisedWord, Unit
from xlsr_transducer.recognition.long_encoding import Encoded, encode_recording
from xlsr_transducer.recognition.placing import Stretch
from xlsr_transducer.recognition.spans import Span
from xlsr_transducer.recognition.subtitles import render

# ---- transcripts


def texts(path: Path) -> list[str]:
    return [phrase.text for phrase in read_transcript(path).phrases]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("ending", ["srt", "vtt", "txt"])
def test_what_the_recipe_writes_is_read_again(ending: str, tmp_path: Path) -> None:
    segments = spoken(3)
    path = write(tmp_path / f"a.{ending}", render(ending, segments, 100.0))
    words = [word.text for s in segments for word in s.words]
    assert " ".join(texts(path)).split() == words
    assert not read_transcript(path).flaws


SRT = """1
00:00:01,000 --> 00:00:02,500
<i>Tere hommikust!</i>
- MARI: Kuidas läheb?

2
00:00:02.5 --> 00:00:04,000 X1:10 X2:20
{\\an8}[muusika] Hästi, <font color="red">aitäh</font> &amp; sulle ka.

this is no cue
at all

4
00:00:05,000 --> 00:00:06,000
(naerab)
♪ la la ♪
"""


def test_subtitles_lose_what_is_no_speech_and_bad_cues_are_named(tmp_path: Path) -> None:
    for text in (SRT, "\n\n" + SRT.replace("\n", "\r\n")):
        found = read_transcript(write(tmp_path / "a.srt", text, "utf-8-sig"))
        wanted = ["Tere hommikust!", "Kuidas läheb?", "Hästi, aitäh & sulle ka.", "la la"]
        assert [phrase.text for phrase in found.phrases] == wanted
        [flaw] = found.flaws
        assert flaw.line == (10 if text is SRT else 12)
        assert "no times" in flaw.reason and flaw.text == "this is no cue at all"
    vtt = "WEBVTT - title\nKind: captions\n\nNOTE\nnot spoken\n\nSTYLE\n::cue {}\n\nintro\n"
    vtt += "00:01.000 --> 00:02.000 align:start\n<v Mari>Tere, <00:01.500><c>Jüri</c>.\n"
    assert texts(write(tmp_path / "a.vtt", vtt)) == ["Tere, Jüri."]


@pytest.mark.parametrize(
    "line, wanted",
    [
        ("ERR: uudised", "uudised"),
        ("kell 7:30 algab", "kell 7:30 algab"),
        ("Ta ütles: tule", "Ta ütles: tule"),
        (">> Jüri: tere", "tere"),
        ("– Jah.", "Jah."),
        ("a < b", "a < b"),
        ("(see) oli", "(see) oli"),
    ],
)
def test_marks_are_told_from_speech(line: str, wanted: str) -> None:
    assert without_marks(line) == wanted


def test_phrases_end_with_sentences_lines_and_at_commas() -> None:
    text = "Täna on 24. veebruar. Aastal 1918. sündis ta jne. ja nii edasi! „Jah.” Kas? ei"
    found = phrases_of([(7, text)])
    assert [(p.text, p.ends_sentence) for p in found] == [
        ("Täna on 24. veebruar.", True),
        ("Aastal 1918. sündis ta jne. ja nii edasi!", True),
        ("„Jah.”", True),
        ("Kas?", True),
        ("ei", False),
    ]
    assert {p.line for p in found} == {7}
    assert [p.ends_sentence for p in phrases_of([(1, "a b"), (2, ""), (3, "c")])] == [True, True]
    long = " ".join(["üks kaks kolm neli viis kuus,"] * 4 + ["x"] * 40) + "."
    found = phrases_of([(1, long)])
    assert max(len(p.words) for p in found) <= 16 and min(len(p.words) for p in found) > 1
    assert " ".join(p.text for p in found) == long
    assert [p.ends_sentence for p in found] == [False] * (len(found) - 1) + [True]
    assert found[0].text.endswith("kuus,")


@pytest.mark.parametrize(
    "name, content, complaint",
    [
        ("a.docx", b"x", "a transcript is a .txt, .srt or .vtt file"),
        ("a.txt", b"", "holds no text"),
        ("a.srt", b"no cue\n", "holds no text; line 1: not a cue"),
        ("a.vtt", b"00:01.000 --> 00:02.000\nx\n", "a.vtt:1: a .vtt file begins with WEBVTT"),
        ("a.txt", b"1\n00:00:01,000 --> 00:00:02,500\nx\n", "looks like subtitles"),
        ("a.txt", b"ok\n\xff\xe4\n", "a.txt:2: is not UTF-8"),
        ("a.txt", "x".encode("utf-16"), "is UTF-16"),
        ("a.txt", b"\0\0", "is no text"),
    ],
)
def test_other_files_are_refused_by_name(
    name: str, content: bytes, complaint: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))}.*{re.escape(complaint)}"):
        read_transcript(tmp_path / name)


# ---- pauses


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


# ---- the command


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model and 36 s of sound with pauses, in which it finds words."""
    folder = tmp_path_factory.mktemp("segment")
    write_random_model(folder / "model.pt", ["transducer", "ctc"])
    wave = speech(36 * 16000, 7).numpy()
    for start in range(2, 36, 3):
        wave[start * 16000 : start * 16000 + 8000] *= 1e-3
    soundfile.write(folder / "a b.wav", wave, 16000)
    return folder


def run(folder: Path, *more: str) -> int:
    arguments = [f"--checkpoint={folder / 'model.pt'}", "--window-seconds=4", *more]
    return command.main(
        [*arguments, "--data-dir=none", "--cpu-layers=pytorch", "--punctuation=keep"]
    )


def own_words(folder: Path, method: str, work: Path) -> list[str]:
    """The words that the library recognises in the recording."""
    loaded = load_model(CheckpointOptions(checkpoint=folder / "model.pt"))
    wave, _ = soundfile.read(folder / "a b.wav", dtype="float32")
    args = (loaded.model.encoder, CHUNK, [wave], 4.0, work, {}, lambda _: None)
    found = Aligner(loaded.model, loaded.tokenizer, method).recognise(encode_recording(*args))
    return [word.span.text for word in found]


@pytest.mark.parametrize("method", ["ctc", "transducer"])
def test_the_model_s_own_words_come_back_as_utterances(
    method: str, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_encoding, "PART", 6.0)
    words = own_words(recording, method, tmp_path / "own")
    assert len(words) > 12
    lines = [" ".join(words[i : i + 4]) for i in range(0, len(words), 4)]
    del lines[2]
    text = write(tmp_path / "t.txt", "\n".join([*lines, "日本"]))
    arguments = [f"--audio={recording / 'a b.wav'}", f"--transcript={text}"]
    arguments += [f"--method={method}", "--min-seconds=0.5", "--speaker=mari"]
    assert run(recording, *arguments, f"--out-dir={tmp_path / 'one'}") == 0
    entries = list(TextList(tmp_path / "one" / "segments.txt", tmp_path).entries())
    table = (tmp_path / "one" / "segments.tsv").read_text().splitlines()
    rows = [dict(zip(table[0].split("\t"), line.split("\t"))) for line in table[1:]]
    kept = [row for row in rows if row["state"] == "utterance"]
    assert len(kept) == len(entries)
    all_words = " ".join(words)
    for entry, row in zip(entries, kept):
        assert not entry.problem and entry.speaker == row["speaker"] == "mari"
        assert Path(entry.path) == recording / "a b.wav" and entry.text == row["text"]
        assert 0 <= entry.start < entry.end <= 36 and entry.text in all_words
        assert float(row["start"]) == entry.start and 0 < float(row["confidence"]) <= 1
    states = {row["text"]: row["state"] for row in rows}
    assert "'日本' has characters that the model's tokens lack" in states["日本"]
    assert NOT_WRITTEN in states.values()
    # Killed after its first part, it goes on and ends with the same bytes.
    store, calls = long_encoding._store, []

    def killed(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return store(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(long_encoding, "_store", killed)
        run(recording, *arguments, f"--out-dir={tmp_path / 'two'}")
    assert not (tmp_path / "two" / "segments.txt").exists()
    assert run(recording, *arguments, f"--out-dir={tmp_path / 'two'}") == 0
    for name in ("segments.txt", "segments.tsv"):
        one, two = ((tmp_path / n / name).read_bytes() for n in ("one", "two"))
        assert one == two


def test_many_recordings_and_what_is_wrong_with_one(
    recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = own_words(recording, "ctc", tmp_path / "own")
    write(tmp_path / "t.txt", " ".join(words))
    (tmp_path / "broken.wav").write_bytes(b"RIFFx")
    write(tmp_path / "empty.txt", "\n")
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 16000)
    audio = recording / "a b.wav"
    (tmp_path / "other.wav").symlink_to(audio)
    entries = [f"{audio}|t.txt|mari", "broken.wav|t.txt|x", "short.wav|t.txt|y"]
    listed = write(tmp_path / "list.txt", "\n".join(entries))
    options = ["--min-seconds=0.3", f"--list={listed}", f"--out-dir={tmp_path / 'out'}"]
    assert run(recording, *options) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 2 and "broken.wav: unreadable audio" in errors[0]
    assert "short.wav: is shorter than a frame" in errors[1]
    assert (tmp_path / "out" / "segments.txt").read_text().count("|mari\n") > 0
    write(tmp_path / "wrong.txt", "ksksk mlmlm ntntn")
    arguments = [f"--audio={audio}", f"--transcript={tmp_path / 'wrong.txt'}"]
    assert run(recording, *arguments, f"--out-dir={tmp_path / 'out'}") == 2
    assert "no utterance: " in capsys.readouterr().err.splitlines()[-1]
    for content, complaint in (
        ("a|b", "list.txt:1: a line has audio|transcript|speaker"),
        (f"{audio}|t.txt|x\n\n{audio}|t.txt|y", "list.txt:3: .*is named twice"),
        ("none.wav|t.txt|x", "list.txt:1: .*none.wav: no such file"),
        ("# nothing", "names no recording"),
    ):
        write(listed, content)
        with pytest.raises(UserError, match=complaint.replace("|", r"\|")):
            run(recording, *options)
    for more, complaint in (
        ([], "give --audio and --transcript, or a --list"),
        ([f"--audio={audio}"], "give --audio and --transcript"),
        ([f"--list={listed}", "--speaker=x"], "--speaker belongs to --audio"),
    ):
        with pytest.raises(UserError, match=complaint):
            run(recording, *more, f"--out-dir={tmp_path / 'out'}")


def test_the_head_must_be_there() -> None:
    assert command.head_of(None, ["transducer", "ctc"]) == "ctc"
    assert command.head_of(None, ["transducer"]) == "transducer"
    with pytest.raises(UserError, match="needs a model with ctc or transducer; .* has classifier"):
        command.head_of(None, ["classifier"])
    with pytest.raises(UserError, match="needs a model with ctc; this one has transducer"):
        command.head_of("ctc", ["transducer"])


# ---- the experiment


def test_the_experiment_tells_right_from_wrong() -> None:
    one = experiment.Sentence
    truth = [one(0.0, 1.0, ["a", "b"]), one(2.0, 3.0, ["c", "d"]), one(5.0, 6.0, ["e"])]
    kept = [one(0.1, 2.95, ["a", "b", "c", "d"]), one(4.8, 6.0, ["x"]), one(2.5, 3.1, ["d"])]
    wrong, words, distances = experiment.score(kept, truth)
    assert (wrong, words) == (1, 5)
    assert distances == pytest.approx([0.1, 0.05, 0.1])
    lines = [f"Lause {k}." for k in range(300)]
    text, written = experiment.make_transcript(lines, 1)
    assert [k for k, line in enumerate(lines) if line in text] == written
    assert 255 < len(written) < 285 and text.count(".") > len(written) + 15
