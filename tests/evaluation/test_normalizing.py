"""How texts are made comparable before they are scored."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.evaluation.normalizing import Normalizer
from xlsr_transducer.recognition.plain_text import basic, is_cased_or_punctuated


def test_basic_is_what_transformers_has_of_whisper() -> None:
    theirs = pytest.importorskip("transformers.models.whisper.english_normalizer")
    whisper = theirs.BasicTextNormalizer()
    draw = random.Random(1)
    letters = "abÕäЖ中 .,!?-–'’\"()[]<>«»€%&1½²ﬁé\u0301\u0938\u094d\t\n\u00a0_"
    texts = ["".join(draw.choice(letters) for _ in range(30)) for _ in range(400)]
    texts += ["Tere, maailm! (naer) [müra] Kell on 10:30.", "", "<b>x</b>", "a (b", "é́"]
    assert [basic(text) for text in texts] == [" ".join(whisper(t).split()) for t in texts]


def test_replacements_take_the_longest_phrase_once_and_only_whole_words(tmp_path: Path) -> None:
    path = tmp_path / "same.tsv"
    path.write_text("# from, to\n\nkaks kümmend\tkakskümmend\nkaks\t2\neee\t\n2\tkaks\n")
    normalize = Normalizer.parse(str(path))
    assert normalize("eee kaks kümmend kaks kakskümmend") == "kakskümmend 2 kakskümmend"
    assert normalize.description == "4 replacements of same.tsv"


def test_numbers_are_spelt_out_before_punctuation_is_dropped() -> None:
    pytest.importorskip("num2words")
    normalize = Normalizer.parse("basic,numbers:en")
    assert normalize("It is 3.5 or 42!") == "it is three point five or forty two"
    assert Normalizer.parse("numbers:en")(f"1{'0' * 400}") == f"1{'0' * 400}"


def test_none_changes_nothing_but_spaces() -> None:
    assert Normalizer.parse("none")(" Tere,  (x) ") == "Tere, (x)"


@pytest.mark.parametrize(
    "text, message",
    [
        ("none,basic", "none stands alone"),
        ("no-such", "no-such: no such file, and none of none, basic, numbers:LANGUAGE"),
        ("numbers:xx", "num2words has no such language, but am, ar"),
        ("damaged", "damaged:2: expected `from<tab>to`"),
        ("latin", "latin: not UTF-8"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    if text.startswith("numbers"):
        pytest.importorskip("num2words")
    monkeypatch.chdir(tmp_path)
    Path("damaged").write_text("a\tb\nc d\n")
    Path("latin").write_bytes("õ\to\n".encode("latin-1"))
    with pytest.raises(UserError, match=message):
        Normalizer.parse(text)


@pytest.mark.parametrize(
    "text, is_so", [("tere-tere ema'le 10", False), ("Tere", True), ("tere.", True), ("", False)]
)
def test_capitals_and_punctuation_are_noticed(text: str, is_so: bool) -> None:
    assert is_cased_or_punctuated(["tere", text]) is is_so
