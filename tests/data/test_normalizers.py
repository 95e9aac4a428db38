"""Which normaliser a text gets, those by num2words, and a user's own file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.normalizers import Change, Report, load, resolved
from xlsr_transducer.data.text import TextNormalizer, TextOptions

OWN = """
def normalize(text, report):
    if report.language == "lv" and "5" in text:
        report.undecided("digit", "5", "pieci")
        return text.replace("5", "pieci")
    return text
"""


def write(folder: Path, source: str) -> str:
    path = folder / "own.py"
    path.write_text(source, encoding="utf-8")
    return str(path)


def spelt(text: str, language: str) -> tuple[str, list[Change]]:
    report = Report(language)
    return load("auto", language)(text, report), report.changes


def test_none_is_the_default_and_leaves_figures() -> None:
    assert load("none", "et") is None
    assert TextNormalizer(TextOptions())("5 km") == "5 km"


def test_a_normaliser_comes_before_case_and_punctuation() -> None:
    options = TextOptions(normalizer="auto")
    assert TextNormalizer(options)("Dr. Tamm, 5%!") == "doktor tamm viis protsenti"
    kept = TextOptions(normalizer="et", case="keep", punctuation="keep")
    assert TextNormalizer(kept, "lv")("Dr. Tamm, 5%!") == "Doktor Tamm, viis protsenti!"


def test_nfkc_takes_variants_of_characters_off() -> None:
    text = "ﬁlm １２ ① m²"
    assert TextNormalizer(TextOptions())(text) == "ﬁlm １２ ① m²"
    assert TextNormalizer(TextOptions(unicode="nfkc"))(text) == "film 12 1 m2"
    spelt_out = TextOptions(unicode="nfkc", normalizer="et")
    assert TextNormalizer(spelt_out)("５ m²") == "viis ruutmeetrit"


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("en", "the 3rd of 1,234.5", "the third of one thousand, two hundred and thirty-four "
         "point five"),
        ("en", "B2B", "B two B"),
        ("en", "minus -5, 007", "minus minus five, zero zero seven"),
        ("en", "25", "twenty-five"),
        ("de", "25", "fünfundzwanzig"),
        ("fi", "5. luokka", "viides luokka"),
        ("lv", "25", "divdesmit pieci"),
        ("ru", "25", "двадцать пять"),
        ("fr", "le 1er mai", "le premier mai"),
        ("pt-BR", "21", "vinte e um"),
    ],
)  # fmt: skip
def test_other_languages_have_figures_spelt_by_num2words(
    language: str, text: str, expected: str
) -> None:
    pytest.importorskip("num2words")
    found, changes = spelt(text, language)
    assert found == expected and changes


def test_figures_that_num2words_cannot_spell_stay_and_are_reported() -> None:
    pytest.importorskip("num2words")
    for text in ("9" * 400, "1," + "9" * 400):
        found, [change, *_] = spelt(text, "ru")
        assert not change.is_sure or "9" not in found
    found, [change] = spelt("3. klase", "lv")  # which has no ordinals there
    assert found == "trīs klase" and not change.is_sure


def test_an_unknown_language_is_one_line_that_lists_what_there_is() -> None:
    pytest.importorskip("num2words")
    with pytest.raises(UserError, match="language 'xx'.*there is none but et, am, ar") as error:
        TextNormalizer(TextOptions(normalizer="auto"), "xx")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="--normalizer estonian: there is none but et"):
        load("estonian", "et")


def test_num2words_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "num2words", None)
    with pytest.raises(UserError, match="pip install num2words"):
        load("auto", "lv")
    assert load("auto", "et") is not None  # needs none


def test_a_file_of_ones_own_is_used_with_the_language_and_a_report(tmp_path: Path) -> None:
    own = load(write(tmp_path, OWN), "lv")
    report = Report("lv")
    assert own("5 kaķi", report) == "pieci kaķi"
    assert report.changes == [Change("digit", "5", "pieci", is_sure=False)]
    assert own("5 kassi", Report("et")) == "5 kassi"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def normalise(text, report): return text", "has no function normalize"),
        ("normalize = 5", "has no function normalize"),
        ("def normalize(text, report)\n    return text", r"own.py:1: SyntaxError"),
        ("import no_such_module", r"own.py:1: ModuleNotFoundError"),
        ("def normalize(text, report):\n    return {}[text]", r"own.py:2: KeyError.*text: 'a b'"),
        ("def normalize(text, report):\n    pass", "returned None, not a text"),
    ],
)
def test_a_broken_file_of_ones_own_is_one_line(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(write(tmp_path, source), "et")("a b", Report())
    with pytest.raises(UserError, match="no such file"):
        load(str(tmp_path / "none.py"), "et")


def test_the_record_of_a_file_changes_with_its_content(tmp_path: Path) -> None:
    name = write(tmp_path, OWN)
    before = resolved(name)
    assert before.startswith("own.py ") and resolved("et") == "et"
    write(tmp_path, OWN + "\n")
    assert resolved(name) != before
