"""Rules for abbreviations and symbols."""

from __future__ import annotations

import re

from xlsr_transducer.data.normalizers.estonian.nouns import MONTHS
from xlsr_transducer.data.normalizers.estonian.rules import ENDING, Reading, rule, words_after
from xlsr_transducer.data.normalizers.estonian.tables import (
    ABBREVIATIONS,
    BEFORE_NUMBER,
    ENDS_LISTS,
    ONLY_AFTER_NUMBER,
    ONLY_WITH_POINT,
    SHORT_NOUNS,
    SYMBOLS,
    UNSURE,
)

# What follows a point that is no longer needed: nothing but the end of the text keeps it.
_POINT = r"(?P<point>\.?)(?!\w)"


def _point(match: re.Match[str], name: str) -> str:
    """Returns the point of an abbreviation that ends a sentence as well, '' of another."""
    rest = match.string[match.end() :].strip()
    ends = not rest or (name in ENDS_LISTS and rest[:1].isupper())
    return match["point"] if ends else ""


def _named(match: re.Match[str], names: dict) -> str | None:
    """Returns the abbreviation as the table has it, None if it needs a point and has none."""
    word = re.sub(r"\. ?(?=\w)", ".", match["word"])
    name = word if word in names else word[0].lower() + word[1:]
    return None if name in ONLY_WITH_POINT and not match["point"] else name


def _abbreviation(match: re.Match[str]) -> Reading | None:
    name = _named(match, ABBREVIATIONS)
    if name is None:
        return None
    return Reading(ABBREVIATIONS[name] + _point(match, name), name not in UNSURE)


def _noun(match: re.Match[str]) -> Reading | None:
    name = _named(match, SHORT_NOUNS)
    if name is None:
        return None
    noun = SHORT_NOUNS[name]
    word = noun.form(match["ending"]) if match["ending"] else noun.nominative
    space = " " if match.string[match.end() : match.end() + 1].isalnum() else ""
    return Reading(word + _point(match, name) + space)


def _before_number(match: re.Match[str]) -> Reading:
    name = match["word"].lower()
    return Reading(BEFORE_NUMBER[name] + " ", name != "a")


def _century(match: re.Match[str]) -> Reading:
    """19. saj lõpus: the genitive before another word, else the adessive."""
    is_genitive = words_after(match)[0] not in ("", "e", "m", "eKr", "pKr", "p")
    point = match["point"] if not match.string[match.end() :].strip() else ""
    return Reading(("sajandi" if is_genitive else "sajandil") + point, False)


def _month(match: re.Match[str]) -> Reading:
    start = match["word"].lower()[:3]
    return Reading(next(m.nominative for m in MONTHS if m.nominative.startswith(start)), False)


def _class(match: re.Match[str]) -> Reading:
    return Reading("klass", False)


def _symbol(match: re.Match[str]) -> Reading:
    around = match.string[: match.start()][-1:] + match.string[match.end() :][:1]
    return Reading(f" {SYMBOLS[match[0]]} ", len(around) == 2 and not around.strip())


def _pattern(names: dict, skipped: frozenset[str] = frozenset()) -> str:
    """Returns a pattern of abbreviations, with a capital or without, spaces after inner points."""
    found = []
    for name in sorted(set(names) - skipped, key=len, reverse=True):
        first = f"[{name[0]}{name[0].upper()}]" if name[0].isalpha() else re.escape(name[0])
        found.append(first + re.escape(name[1:]).replace(r"\.", r"\. ?"))
    return rf"(?P<word>{'|'.join(found)})"


_AFTER_ORDINAL = r"(?<=[\dIVX]\. )|(?<=[IVX] )|(?<=[\dIVX]\.)"
# Before the figures are spelt.
BEFORE_FIGURES = [
    rule("symbol", r"(?<=\d) ?[x×] ?(?=\d)", lambda match: Reading(" korda ")),
    rule("abbreviation", r"(?<![\w.-])(?P<word>[Uu]|[Cc]a|[Kk]l)\.? ?(?=\d)", _before_number),
    rule("abbreviation", r"(?<![\w.-])(?<!\d )(?<!\. )(?P<word>[Aa])\.? (?=\d{4}\b)",
         _before_number),
    rule("abbreviation", rf"(?:{_AFTER_ORDINAL})(?P<word>saj)\b(?P<point>\.?)", _century),
    rule("abbreviation", r"(?<=\d\. )kl\b\.?", _class),
    rule("abbreviation", rf"(?<=\d\. )(?P<word>{'|'.join(ONLY_AFTER_NUMBER)})\b\.?", _month),
]  # fmt: skip
# Afterwards.
ABBREVIATED = [
    rule("abbreviation", rf"(?<![\w.-]){_pattern(SHORT_NOUNS, frozenset('§'))}"
         rf"(?:-(?P<ending>{ENDING}))?{_POINT}", _noun),
    rule("abbreviation", rf"(?P<word>§)(?:-(?P<ending>{ENDING})\b)?(?P<point>)(?P<space>)", _noun),
    rule("abbreviation", rf"(?<![\w.-]){_pattern(ABBREVIATIONS, ONLY_AFTER_NUMBER)}{_POINT}",
         _abbreviation),
    rule("symbol", r"(?<=\s)[+<>](?=\s)|[&=×±%½€№]", _symbol),
]  # fmt: skip
