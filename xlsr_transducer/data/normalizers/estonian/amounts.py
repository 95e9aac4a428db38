"""Numbers as texts write them, with signs, decimals and ranges, and how they are read aloud."""

from __future__ import annotations

import re
from typing import NamedTuple

from xlsr_transducer.data.normalizers.estonian.numerals import (
    GENITIVE,
    LARGEST,
    NOMINATIVE,
    PARTITIVE,
    cardinal,
    digit_by_digit,
    modifier_case,
)
from xlsr_transducer.data.normalizers.estonian.tables import Unit

# 1990, 10 000, 1.000.000, each with decimals after a comma. Spaces are plain ones here.
WHOLE = r"(?:\d{1,3}(?: \d{3}){1,4}(?!\d)|\d{1,3}(?:\.\d{3}){1,4}(?!\d)|\d+)"
NUMBER = rf"{WHOLE}(?:,\d+)?"
SIGN = r"(?:(?<![\w)%.,-])[-+\u2212±] ?)?"
DASH = r"\s?[-\u2013\u2014]\s?"
_SIGNS = {"-": "miinus ", "\u2212": "miinus ", "+": "pluss ", "±": "pluss-miinus "}
_MANY = 7  # digits in one piece, which are rather a telephone's or another number's


class Amount(NamedTuple):
    """A number: sign, figures before the comma without spaces, figures after it."""

    sign: str
    whole: str
    decimals: str
    is_grouped: bool = False  # 10 000

    @classmethod
    def parse(cls, text: str) -> Amount:
        """``text`` matches SIGN NUMBER."""
        sign = text[0] if text[0] in _SIGNS else ""
        whole, _, decimals = text[len(sign) :].strip().partition(",")
        figures = re.sub(r"[ .]", "", whole)
        return cls(_SIGNS.get(sign, ""), figures, decimals, figures != whole)

    @property
    def is_one(self) -> bool:
        """Whether a noun after it stands in the nominative."""
        return self.whole == "1" and not self.decimals

    @property
    def is_code(self) -> bool:
        """Whether it is read digit by digit: 007, or longer than any number."""
        is_long = len(self.whole) > 9 and not self.is_grouped
        return is_long or (len(self.whole) > 1 and self.whole[0] == "0")

    @property
    def is_sure(self) -> bool:
        """Whether there is no other way to read it."""
        return len(self.whole) < _MANY or self.is_grouped

    def spoken(self, case: str = NOMINATIVE) -> str:
        """Returns the words, with the last one in ``case``."""
        if self.is_code or int(self.whole) > LARGEST:
            return self.sign + digit_by_digit(self.whole + self.decimals)
        if not self.decimals:
            return self.sign + cardinal(int(self.whole), case)
        inner = case if case in (NOMINATIVE, PARTITIVE) else GENITIVE
        return f"{self.sign}{cardinal(int(self.whole), inner)} koma {self._fraction(case)}"

    def _fraction(self, case: str) -> str:
        zeros = len(self.decimals) - len(self.decimals.lstrip("0"))
        rest = self.decimals[zeros:]
        if len(self.decimals) > 2:
            return digit_by_digit(self.decimals)
        return " ".join(["null"] * zeros + ([cardinal(int(rest), case)] if rest else []))


def counted(amounts: list[Amount], unit: Unit, case: str = NOMINATIVE) -> str:
    """Returns a number, or the two of a range, with a unit: *viis kuni kuus kilomeetrit*.

    Args:
      case: of the whole.
    """
    last = amounts[-1]
    if case == NOMINATIVE:
        form = unit.noun.nominative if last.is_one else unit.noun.partitive
    else:
        form = unit.noun.form(case)
    return " ".join([between(amounts, modifier_case(case)), form, *unit.tail.split()])


def between(amounts: list[Amount], case: str = NOMINATIVE) -> str:
    """Returns one number, or a range of two."""
    return " kuni ".join(amount.spoken(case) for amount in amounts)
