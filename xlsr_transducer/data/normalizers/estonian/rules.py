"""Rules: what a pattern of a text becomes, and whether that is the only reading."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from xlsr_transducer.data.normalizers.estonian.numerals import ENDINGS
from xlsr_transducer.data.normalizers.report import Report


class Reading(NamedTuple):
    """What a match becomes; ``is_sure`` is False where another reading is as correct."""

    text: str
    is_sure: bool = True


class Rule(NamedTuple):
    """A kind of change: where it applies, and what comes of it; None leaves the match."""

    kind: str
    pattern: re.Pattern[str]
    read: Callable[[re.Match[str]], Reading | None]


def rule(kind: str, pattern: str, read: Callable[[re.Match[str]], Reading | None]) -> Rule:
    """Returns a rule of a pattern that is still text."""
    return Rule(kind, re.compile(pattern), read)


def apply(rules: Iterable[Rule], text: str, report: Report, is_cased: bool) -> str:
    """Returns the text after each rule in turn, and reports the changes.

    Args:
      is_cased: the text has capitals: the first word of a sentence gets one.
    """
    for one in rules:

        def replace(match: re.Match[str], one: Rule = one) -> str:
            reading = one.read(match)
            if reading is None:
                return match[0]
            new = reading.text
            if is_cased and _begins(match):
                new = new[:1].upper() + new[1:]
            note = report.changed if reading.is_sure else report.undecided
            note(one.kind, match[0].strip(), new.strip())
            return new

        text = one.pattern.sub(replace, text)
    return text


def _begins(match: re.Match[str]) -> bool:
    """Whether a match begins a sentence with a figure, or is written with a capital."""
    old = match[0].lstrip("-+")
    if old[:1].isalpha() and old.strip("IVX.-\u2013"):  # no Roman numeral
        return old[0].isupper() and not old[1:2].isupper() and len(old) > 1
    before = match.string[: match.start()].rstrip(' "')
    return not before or before[-1] in ".?!"


def word_before(match: re.Match[str]) -> str:
    """Returns the word in front of a match, '' if something else is there."""
    found = re.search(r"([^\W\d_]+)[ ]?$", match.string[: match.start()][-40:])
    return found[1] if found else ""


def words_after(match: re.Match[str], end: int | None = None) -> tuple[str, str]:
    """Returns the next two words, '' where punctuation or something else comes first; the second
    may be figures.

    Args:
      end: where to look, if not after the match.
    """
    rest = match.string[match.end() if end is None else end :][:80]
    found = re.match(r" ?([^\W\d_]+)(?:-\w+)?(?: (\w+))?", rest)
    return (found[1], found[2] or "") if found else ("", "")


def any_of(names: Iterable[str]) -> str:
    """Returns a pattern of any of the names, the longest first."""
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))


LETTER = r"[^\W\d_]"
ENDING = "|".join(sorted(ENDINGS, key=len, reverse=True))
