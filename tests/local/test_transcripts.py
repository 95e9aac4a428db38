"""Transcripts of long recordings are read as they are found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from local.segmenting.transcripts import phrases_of, read_transcript, without_marks
from tests.recognition.test_subtitles import spoken
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.recognition.subtitles import render


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
