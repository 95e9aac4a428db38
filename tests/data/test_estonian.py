"""Estonian texts as they are read aloud: a table written by hand, and a parser of its own."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from xlsr_transducer.data.normalizers import Report, load
from xlsr_transducer.data.normalizers.estonian import normalize
from xlsr_transducer.data.normalizers.estonian.numerals import ENDINGS, LARGEST, cardinal, ordinal

TABLE = Path(__file__).with_name("estonian_texts.tsv")


def pairs() -> list[tuple[str, str, bool]]:
    """Returns text, expected reading, and whether that is the only one."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [(text, read, rest != ["?"]) for text, read, *rest in rows]


PAIRS = pairs()


def test_the_table_is_large() -> None:
    assert len(PAIRS) >= 150 and len({text for text, _, _ in PAIRS}) == len(PAIRS)


@pytest.mark.parametrize(("text", "read", "is_sure"), PAIRS, ids=[text for text, _, _ in PAIRS])
def test_texts_of_the_table(text: str, read: str, is_sure: bool) -> None:
    report = Report("et")
    assert normalize(text, report) == read
    assert all(change.is_sure for change in report.changes) == is_sure
    assert bool(report.changes) == (text != read)


ONES = dict(zip("üks kaks kolm neli viis kuus seitse kaheksa üheksa".split(), range(1, 10)))
GENITIVES = dict(
    zip("ühe kahe kolme nelja viie kuue seitsme kaheksa üheksa".split(), range(1, 10))
)
# The last word of an ordinal, written out.
ORDINALS = """esimene teine kolmas neljas viies kuues seitsmes kaheksas üheksas""".split()


def value_of(word: str, ones: dict[str, int], ten: str, forms: tuple[str, str, str]) -> int:
    """Returns the value of one word below a thousand."""
    teen, tens, hundred = forms
    if word in ones:
        return ones[word]
    if word == ten:
        return 10
    if word.endswith(teen):
        return 10 + ones[word.removesuffix(teen)]
    if word.endswith(tens):
        return 10 * ones[word.removesuffix(tens)]
    return 100 * (ones[word.removesuffix(hundred)] if word != hundred else 1)


def parsed(text: str, is_genitive: bool = False) -> int:
    """Reads a cardinal below a milliard."""
    total, group = 0, 0
    thousand, million = ("tuhande", "miljoni") if is_genitive else ("tuhat", "miljon")
    forms = ("teistkümne", "kümne", "saja") if is_genitive else ("teist", "kümmend", "sada")
    for word in text.split():
        if word == thousand:
            total, group = total + 1000 * (group or 1), 0
        elif word in (million, "miljonit"):
            total, group = total + 1_000_000 * group, 0
        else:
            words = GENITIVES if is_genitive else ONES
            group += value_of(word, words, "kümne" if is_genitive else "kümme", forms)
    return total + group


def sampled(count: int, most: int, every: int = 2200) -> list[int]:
    """Returns all numbers below ``every``, ``most``, and some between."""
    rng = random.Random(5)
    return [*range(1, every), *(rng.randrange(1, most) for _ in range(count)), most]


def test_cardinals_are_parsed_back() -> None:
    for number in sampled(3000, 10**6):
        assert parsed(cardinal(number)) == number
        assert parsed(cardinal(number, "gen"), is_genitive=True) == number
    for number in sampled(300, 10**6, every=200):
        assert normalize(str(number), Report()) == cardinal(number)


def test_a_case_ending_stands_once_behind_the_genitive() -> None:
    for number in sampled(100, 10**6, every=130):
        for ending in ENDINGS:
            text = cardinal(number, ending)
            assert parsed(text.removesuffix(ending), is_genitive=True) == number
            assert normalize(f"{number}-{ending}", Report()) == text


def test_ordinals_are_a_genitive_and_a_last_word_that_declines() -> None:
    for number in sampled(500, 10**6 - 1):
        before, _, last = ordinal(number).rpartition(" ")
        if number % 10 and number % 100 not in range(11, 20):
            assert last == ORDINALS[number % 10 - 1]
            rest = number - number % 10
        else:
            assert last.endswith("s")
            rest = number - parsed(last.removesuffix("s"), is_genitive=True)
            if last == "tuhandes" and before:
                assert parsed(f"{before} tuhande", is_genitive=True) == number
                continue
        assert parsed(before, is_genitive=True) == rest
        plural = ordinal(number, "l", is_plural=True)
        assert re.search(r"(?:nda|se)tel$|(?:esimes|teis)tel$", plural)


def test_zero_and_the_largest_number_have_names_and_others_are_refused() -> None:
    assert cardinal(0) == "null" and cardinal(LARGEST).startswith("üheksasada")
    for number in (-1, LARGEST + 1):
        with pytest.raises(ValueError, match="only whole numbers"):
            cardinal(number)


PIECES = """5 10|000 1990 24.02.1918 3,5 - – : . , % € km a b II XX dr nt s.t ndatel ga aasta
aastal ( ) / + = § 0 007 kell üle 99999999999999999999 ² ½ 14.30 1/2 IV x""".split()


def test_no_text_is_too_strange_and_no_figure_is_left() -> None:
    rng = random.Random(7)
    for _ in range(2000):
        text = "".join(rng.choice([*PIECES, " ", " ", " "]) for _ in range(rng.randint(0, 9)))
        text = text.replace("|", " ")
        read = normalize(text, Report())
        assert not re.search("[0-9]", read), text
        assert read == " ".join(read.split())


def test_long_texts_of_figures_take_no_square_of_time() -> None:
    for piece in ("9", "9 ", "9.", "123 ", "1-", "1:1 ", "X"):
        normalize(piece * 1500, Report())


def test_a_figure_that_begins_a_sentence_gets_a_capital_where_the_text_is_cased() -> None:
    assert normalize("5 inimest tuli. 3 läks.", Report()) == "Viis inimest tuli. Kolm läks."
    assert normalize("5 inimest tuli", Report()) == "viis inimest tuli"


def test_undecided_pieces_are_named_with_their_kinds() -> None:
    report = Report("et")
    normalize("Tulemus 3:1, sündis 24.02.1918 Tartus", report)
    found = [(c.kind, c.before) for c in report.changes if not c.is_sure]
    assert found == [("date", "24.02.1918"), ("score", "3:1")]


def test_estonian_is_found_by_its_codes() -> None:
    for code in ("et", "est", "et-EE"):
        assert load("auto", code) is normalize
