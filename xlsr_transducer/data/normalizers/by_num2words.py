"""Figures to words in the languages of num2words: whole numbers, decimals, and ordinals.

Agreement with the words around, dates, units and abbreviations are left to a module of one's own.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from xlsr_transducer.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xlsr_transducer.data.normalizers.report import Report

# Where an ordinal is written with a point, as in Estonian: 3. plads, 3. Platz.
_POINTED = frozenset("cs da de et fi hu is lv nb no pl sk sl sr".split())
# Where it is written with letters: 3rd, 3e, 3º.
_LETTERED = {
    "en": "st|nd|rd|th",
    "fr": "er|ère|re|e|ème|nd|nde",
    "es": "º|ª|.º|.ª",
    "pt": "º|ª",
    "it": "º|ª",
    "nl": "e|de|ste",
    "sv": ":a|:e",
}
# Where the comma parts thousands and the point decimals.
_POINT_DECIMALS = frozenset("en he ja ko th zh te kn bn fa".split())


def languages() -> list[str]:
    """Returns the codes of num2words' languages. Raises UserError if it is not installed."""
    try:
        import num2words
    except ImportError as e:
        raise UserError(
            "--normalizer: this language needs num2words: pip install num2words"
        ) from e
    return sorted(num2words.CONVERTER_CLASSES)


def normalizer(code: str) -> Callable[[str, Report], str] | None:
    """Returns the normaliser of a language; None if num2words has no such language.

    Raises:
      UserError: num2words is not installed.
    """
    known, code = languages(), code.replace("-", "_")
    for name in (code, code.split("_")[0]):
        if name in known:
            return _Numbers(name).normalize
    return None


class _Numbers:
    def __init__(self, name: str) -> None:
        self._name, language = name, name.split("_")[0]
        mark = _LETTERED.get(language)
        tail = rf"(?P<ordinal>(?:{mark})(?!\w))?" if mark else r"(?P<ordinal>(?!))?"
        if language in _POINTED:
            tail = r"(?P<ordinal>\.(?= [^\W\d_]))?"
        self._is_sure = language not in _POINTED
        decimal, group = (".", ",") if language in _POINT_DECIMALS else (",", ".")
        self._decimal = decimal
        groups = rf"\d{{1,3}}(?:[{group} \u00a0\u202f]\d{{3}})+(?!\d)"
        number = rf"(?P<number>(?:{groups}|\d+)(?:[{decimal}]\d+)?)"
        self._pattern = re.compile(rf"(?P<sign>(?<!\S)[-\u2212])?{number}{tail}")
        self._spell = lru_cache(maxsize=100_000)(self._spelt)

    def normalize(self, text: str, report: Report) -> str:
        """Returns the text with its figures in words."""

        def replace(match: re.Match[str]) -> str:
            kind = "ordinal" if match["ordinal"] else "number"
            whole, _, rest = match["number"].partition(self._decimal)
            whole = re.sub(r"\D", "", whole)
            words = self._spell(match["sign"] or "", whole, rest, kind)
            if words is None:
                report.undecided("too large", match[0], match[0])
                return match[0]
            # A point after a figure may end a sentence, and a figure stand for any form.
            sure = kind == "number" or self._is_sure
            (report.changed if sure else report.undecided)(kind, match[0], words)
            before = match.string[: match.start()][-1:]
            after = match.string[match.end() :][:1]
            return " " * before.isalnum() + words + " " * after.isalnum()

        return self._pattern.sub(replace, text)

    def _spelt(self, sign: str, whole: str, rest: str, kind: str) -> str | None:
        """Returns the words, None where num2words has none."""
        from num2words import num2words

        is_code = len(whole) > 1 and whole[0] == "0"
        try:
            if is_code:  # digit by digit
                return " ".join(num2words(int(digit), lang=self._name) for digit in whole + rest)
            if rest:
                number = float(f"{sign and '-'}{whole}.{rest}")
                return num2words(number, lang=self._name)
            return num2words(int(f"{sign and '-'}{whole}"), lang=self._name,
                             to="ordinal" if kind == "ordinal" else "cardinal")  # fmt: skip
        except NotImplementedError:
            return num2words(int(whole), lang=self._name) if kind == "ordinal" else None
        except (OverflowError, KeyError, IndexError, ValueError, TypeError):
            return None
