"""Estonian numerals: cardinals and ordinals of any whole number, in every case.

In a numeral of several words those before the last stand in the genitive, except in the
nominative and partitive of cardinals, and the last one takes the ending: *kahekümne viiele*.
"""

from __future__ import annotations

from typing import NamedTuple

# Endings that follow the genitive; they name the cases. Before the last four a modifier is in the
# genitive: viie aastaga.
NOMINATIVE, GENITIVE, PARTITIVE = "nom", "gen", "part"
AGREEING = ("sse", "st", "s", "le", "lt", "l", "ks")
UNAGREEING = ("ni", "na", "ta", "ga")
ENDINGS = (*AGREEING, *UNAGREEING)
LARGEST = 10**15 - 1


class Noun(NamedTuple):
    """A word that declines: its three forms, and the plural where one is needed."""

    nominative: str
    genitive: str
    partitive: str
    plural_genitive: str = ""
    plural_partitive: str = ""

    def form(self, case: str, is_plural: bool = False) -> str:
        """Returns the form of a case: NOMINATIVE, GENITIVE, PARTITIVE or one of ENDINGS."""
        if is_plural:
            forms = (self.genitive + "d", self.plural_genitive, self.plural_partitive)
        else:
            forms = self[:3]
        named = dict(zip((NOMINATIVE, GENITIVE, PARTITIVE), forms))
        return named.get(case) or forms[1] + case


def modifier_case(case: str) -> str:
    """Returns the case of a numeral before a noun that stands in ``case``."""
    return GENITIVE if case in UNAGREEING else case


DIGITS = (
    Noun("null", "nulli", "nulli"),
    Noun("üks", "ühe", "ühte"),
    Noun("kaks", "kahe", "kahte"),
    Noun("kolm", "kolme", "kolme"),
    Noun("neli", "nelja", "nelja"),
    Noun("viis", "viie", "viit"),
    Noun("kuus", "kuue", "kuut"),
    Noun("seitse", "seitsme", "seitset"),
    Noun("kaheksa", "kaheksa", "kaheksat"),
    Noun("üheksa", "üheksa", "üheksat"),
)
_SHORT = {1: "üht", 2: "kaht"}  # of the partitive, inside words
_TEN = Noun("kümme", "kümne", "kümmet")
_HUNDRED = Noun("sada", "saja", "sadat")
_THOUSAND = Noun("tuhat", "tuhande", "tuhandet")
_LARGE = ("miljon", "miljard", "triljon")  # 10^6, 10^9, 10^12
_FIRST = Noun("esimene", "esimese", "esimest", "esimeste", "esimesi")
_SECOND = Noun("teine", "teise", "teist", "teiste", "teisi")


def _joined(digit: int, nominative: str, genitive: str, partitive: str) -> Noun:
    first = DIGITS[digit]
    return Noun(
        first.nominative + nominative,
        first.genitive + genitive,
        _SHORT.get(digit, first.partitive) + partitive,
    )


def _below_thousand(number: int) -> list[Noun]:
    words = []
    hundreds, rest = divmod(number, 100)
    if hundreds:
        words.append(_HUNDRED if hundreds == 1 else _joined(hundreds, "sada", "saja", "sadat"))
    tens, ones = divmod(rest, 10)
    if tens == 1 and ones:
        words.append(_joined(ones, "teist", "teistkümne", "teistkümmet"))
    else:
        if tens:
            words.append(_TEN if tens == 1 else _joined(tens, "kümmend", "kümne", "kümmet"))
        if ones:
            words.append(DIGITS[ones])
    return words


def _words(number: int) -> list[Noun]:
    """Returns the words of a cardinal. Raises ValueError if it has no name here."""
    if not 0 <= number <= LARGEST:
        raise ValueError(f"{number}: only whole numbers from 0 to {LARGEST} can be spelt")
    words: list[Noun] = []
    for power in range(len(_LARGE), 0, -1):
        count, number = divmod(number, 1000 ** (power + 1))
        if count:
            name = _LARGE[power - 1]
            counted = name if count == 1 else name + "it"  # üks miljon, kaks miljonit
            words += [*_below_thousand(count), Noun(counted, name + "i", name + "it")]
    thousands, rest = divmod(number, 1000)
    if thousands:
        words += [*(_below_thousand(thousands) if thousands > 1 else []), _THOUSAND]
    return words + _below_thousand(rest) or [DIGITS[0]]


def cardinal(number: int, case: str = NOMINATIVE) -> str:
    """Returns a cardinal in a case: 25 with "le" is *kahekümne viiele*.

    Raises:
      ValueError: the number is negative or above LARGEST.
    """
    *before, last = _words(number)
    inner = case if case in (NOMINATIVE, PARTITIVE) else GENITIVE
    return " ".join([*(word.form(inner) for word in before), last.form(case)])


def ordinal(number: int, case: str = NOMINATIVE, is_plural: bool = False) -> str:
    """Returns an ordinal in a case: 25 with "l" is *kahekümne viiendal*.

    Raises:
      ValueError: the number is negative or above LARGEST.
    """
    *before, last = _words(number)
    if last == DIGITS[1]:
        named = _FIRST
    elif last == DIGITS[2]:
        named = _SECOND
    else:
        stem = last.genitive
        if stem.startswith(("miljoni", "miljardi", "triljoni")):
            stem = stem[:-1] + "e"
        elif last == DIGITS[3]:
            stem = "kolma"
        named = Noun(stem + "s", *(stem + end for end in ("nda", "ndat", "ndate", "ndaid")))
    return " ".join([*(word.genitive for word in before), named.form(case, is_plural)])


def digit_by_digit(figures: str) -> str:
    """Returns the digits one by one; anything else in ``figures`` is left out."""
    return " ".join(DIGITS[int(figure)].nominative for figure in figures if figure in "0123456789")


def roman(figures: str) -> int:
    """Returns the value of a Roman numeral of I, V and X, 0 if it is not one (1 to 39)."""
    tens, rest = "", figures
    while rest.startswith("X"):
        tens, rest = tens + "X", rest[1:]
    ones = ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")
    return 10 * len(tens) + ones.index(rest) if rest in ones and len(tens) < 4 else 0
