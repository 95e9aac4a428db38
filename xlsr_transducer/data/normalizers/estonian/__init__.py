"""Estonian: figures, units, money, dates, abbreviations and symbols as they are read aloud.

What cannot be decided from the text gets its likeliest reading, and is reported as undecided: the
case of a figure before a noun that `nouns` does not list, dates inside sentences, scores and more.
"""

from __future__ import annotations

import re

from xlsr_transducer.data.normalizers.estonian.dates import DATES
from xlsr_transducer.data.normalizers.estonian.figures import NUMBERS, QUANTITIES, ROMANS
from xlsr_transducer.data.normalizers.estonian.rules import apply
from xlsr_transducer.data.normalizers.estonian.words import ABBREVIATED, BEFORE_FIGURES
from xlsr_transducer.data.normalizers.report import Report

_SPACES = re.compile(r"[\u00a0\u2000-\u200a\u202f]")

_CLASS = re.compile(r"(\d)\.(?=[a-hA-H] klass)")  # 5.b klassis
_CASED = re.compile(r"\b[A-ZÄÖÜÕŠŽ][a-zäöüõšž]|[.?!]\s*$")


def normalize(text: str, report: Report) -> str:
    """Returns the text in words; punctuation and case are left as they are."""
    text = _SPACES.sub(" ", text).replace("\u2044", "/").replace("...", "\u2026")
    text = _CLASS.sub(r"\1. ", text)
    is_cased = bool(_CASED.search(text))
    rules = [*ROMANS, *ABBREVIATED]
    if any(c.isdigit() for c in text):
        rules = [*BEFORE_FIGURES, *DATES, *QUANTITIES, *NUMBERS, *rules]
    return " ".join(apply(rules, text, report, is_cased).split())
