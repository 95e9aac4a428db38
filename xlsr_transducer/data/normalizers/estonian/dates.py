"""Rules for dates and times of the day in figures."""

from __future__ import annotations

import calendar
import re

from xlsr_transducer.data.normalizers.estonian.amounts import DASH
from xlsr_transducer.data.normalizers.estonian.nouns import MONTHS
from xlsr_transducer.data.normalizers.estonian.numerals import (
    NOMINATIVE,
    cardinal,
    modifier_case,
    ordinal,
)
from xlsr_transducer.data.normalizers.estonian.rules import (
    ENDING,
    Reading,
    rule,
    word_before,
    words_after,
)

_AFTER = {"alates": "st", "kuni": "ni", "enne": "part"}  # words that ask for a case
_LEAP = 2000  # a year that has 29 February


def _spoken(day: int, month: int, year: int | None, case: str) -> str:
    name = MONTHS[month - 1].form(case)
    words = f"{ordinal(day, modifier_case(case))} {name}"
    return words if year is None else f"{words} {cardinal(year)}"


def _date(match: re.Match[str]) -> Reading | None:
    """24.02.1918, 24.02., 1918-02-24, and ranges of them."""
    parts = match.groupdict()
    found = []
    for end in ("", "2"):
        if parts.get("day" + end):
            day, month = int(parts["day" + end]), int(parts["month" + end])
            year = int(parts["year" + end]) if parts.get("year" + end) else None
            if not (1 <= month <= 12 and 1 <= day <= calendar.monthrange(year or _LEAP, month)[1]):
                return None
            found.append((day, month, year))
    before, after = word_before(match).lower(), words_after(match)[0]
    if len(found) == 2 or not (before or after):
        case, is_sure = NOMINATIVE, len(found) == 1
    elif before in _AFTER:
        case, is_sure = _AFTER[before], True
    else:  # toimus kahekümne neljandal veebruaril
        case, is_sure = "l", False
    return Reading(" kuni ".join(_spoken(*one, case) for one in found), is_sure)


def _clock(hour: str, minute: str, second: str | None) -> str:
    parts = [cardinal(int(hour))]
    for figures in filter(None, (minute, second)):
        zero = "null " if figures[0] == "0" else ""
        parts.append(zero + cardinal(int(figures)))
    return " ".join(parts)


def _time(match: re.Match[str]) -> Reading:
    """14:30, kell 14.30, kella 9.00\u201317.30-ni."""
    parts = match.groupdict()
    texts = [_clock(parts["hour"], parts["minute"], parts.get("second"))]
    if parts.get("hour2"):
        texts.append(_clock(parts["hour2"], parts["minute2"], None))
    minute = int(parts["minute2"] or parts["minute"])
    if parts.get("fraction"):  # of seconds
        texts[0] += " koma " + cardinal(int(parts["fraction"]))
    ending = parts["ending"]
    if ending and minute:
        head = texts[-1].removesuffix(cardinal(minute))
        texts[-1] = head + cardinal(minute, ending)
    is_clock = ":" in match[0] or word_before(match).lower() in ("kell", "kella", "kl")
    # 14.00 may be read without its minutes, and 14.30 elsewhere than after "kell" be a number.
    return Reading(" kuni ".join(texts), is_clock and minute > 0)


def _score(match: re.Match[str]) -> Reading:
    """3:1 and 21:3, which are no times."""
    return Reading(" ".join(cardinal(int(n)) for n in match[0].split(":")), False)


_DOTTED = r"(?P<day{0}>\d{{1,2}})\. ?(?P<month{0}>\d{{1,2}})\. ?(?P<year{0}>\d{{4}})(?!\d)"
_SHORT = r"(?P<day{0}>\d{{1,2}})\.(?P<month{0}>\d{{2}})\."
_HOURS = r"(?P<hour{0}>[01]?\d|2[0-4])"
_MINUTES = r"(?P<minute{0}>[0-5]\d)"
_TAIL = rf"(?:-?(?P<ending>{ENDING}))?(?![\w]|[.:]\d)"
_NO_UNIT = r"(?! ?(?:[%€°‰]|eurot|protsenti|(?:k|m|c)?[mgl]\b))"


def _times(colon: str) -> str:
    one, two = (f"{_HOURS}{colon}{_MINUTES}".format(n) for n in ("", "2"))
    seconds = r"(?::(?P<second>[0-5]\d))?(?:,(?P<fraction>\d{1,3})\b)?" if colon == ":" else ""
    return rf"(?<![\w.,:/-]){one}{seconds}(?:{DASH}{two})?{_TAIL}"


DATES = [
    rule("date", rf"(?<![\w.-]){_DOTTED.format('')}{DASH}{_DOTTED.format('2')}", _date),
    rule("date", rf"(?<![\w.-]){_DOTTED.format('')}", _date),
    rule("date", r"(?<![\w.-])(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)(?![\w-])", _date),
    rule("date", rf"(?<![\w.-]){_SHORT.format('')}{DASH}{_SHORT.format('2')}(?!\d)", _date),
    rule("date", rf"(?<![\w.-]){_SHORT.format('')}(?!\d)", _date),
    rule("time", _times(":"), _time),
    rule("time", _times(r"\.") + _NO_UNIT, _time),
    rule("score", r"(?<![\w.,:/-])\d{1,3}:\d{1,3}(?![\w:])", _score),
]
