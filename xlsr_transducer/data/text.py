"""Normalises transcripts before they are learnt or scored, and counts the changes."""

from __future__ import annotations

import collections
import dataclasses
import unicodedata

from xlsr_transducer.core.options import option
from xlsr_transducer.data.normalizers import NONE, Report, load

# One of these inside a word is spelling, elsewhere it is punctuation.
_IN_WORD = "'-"
# Typographic variants, mapped under every policy.
_VARIANTS = {
    **dict.fromkeys("\u2018\u2019\u201b\u02bc\u0060\u00b4\u2032", "'"),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb", '"'),
    "\u2026": "...",
}
_WORD_START = "\u2581"  # a space in sentencepiece's tokens
# Lower case of I differs where the alphabet has a dotless i as well.
_LOWER = {"tr": {"I": "\u0131", "\u0130": "i"}, "az": {"I": "\u0131", "\u0130": "i"}}


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """Text options."""

    case: str = option("lower", "lower: lower-case all text; keep: as it is", ("lower", "keep"))
    punctuation: str = option(
        "in-word",
        "keep: all of it; drop: none of it; in-word: only ' and - between letters or digits",
        choices=("keep", "drop", "in-word"),
    )
    unicode: str = option(
        "nfc", "nfc: composed; nfkc: and without variants, such as ﬁ and ½", ("nfc", "nfkc")
    )
    normalizer: str = option(
        NONE,
        "spells figures and abbreviations out: none; auto, by language; a language's code; or "
        "FILE.py, your own",
    )


@dataclasses.dataclass(frozen=True)
class CharacterUse:
    """One way a character was treated: ``becomes`` is '' where it was dropped."""

    character: str
    becomes: str

    @property
    def action(self) -> str:
        """kept, mapped or dropped."""
        if self.becomes == self.character:
            return "kept"
        return "mapped" if self.becomes.strip() else "dropped"


class TextNormalizer:
    """Composes, spells out by the language's normaliser, maps typographic variants, lower-cases,
    and applies the punctuation policy.

    ``uses`` counts every character of all texts so far by what became of it; white space is
    not counted.
    """

    def __init__(self, options: TextOptions, language: str = "et") -> None:
        """Raises UserError if there is no such normaliser."""
        self.options = options
        self.uses: collections.Counter[CharacterUse] = collections.Counter()
        self._language = language
        self._form = options.unicode.upper()
        self._spell_out = load(options.normalizer, language)
        self._lower = _LOWER.get(language.split("-")[0], {})
        self._cache: dict[str, tuple[str, bool]] = {}

    def __call__(self, text: str, report: Report | None = None) -> str:
        """Returns the normalized text: words separated by single spaces, '' if nothing is left.

        Args:
          report: gets the changes.
        """
        report = report or Report(self._language)
        composed = unicodedata.normalize(self._form, text)
        if composed != text:
            report.of_characters.add("unicode")
        text = self._spell_out(composed, report) if self._spell_out else composed
        pieces = []
        for i, character in enumerate(text):
            becomes, depends = self._cached(character)
            if depends and not (
                _is_word(text[i - 1 : i] if i else "") and _is_word(text[i + 1 : i + 2])
            ):
                becomes = " "
            if not character.isspace():
                self.uses[CharacterUse(character, becomes.strip())] += 1
                if becomes != character:
                    report.of_characters.add(_kind(character, becomes))
            pieces.append(becomes)
        return unicodedata.normalize("NFC", " ".join("".join(pieces).split()))

    def _cached(self, character: str) -> tuple[str, bool]:
        if character not in self._cache:
            self._cache[character] = self._treat(character)
        return self._cache[character]

    def _treat(self, character: str) -> tuple[str, bool]:
        """Returns what a character becomes; True if that holds only inside a word (else a
        space)."""
        becomes = _VARIANTS.get(character, character)
        category = unicodedata.category(becomes[0])
        if category[0] in "LMN":
            if self.options.case == "lower":
                becomes = self._lower.get(becomes, becomes.lower())
            return becomes, False
        if category == "Cf":  # soft hyphens, joiners, marks of direction: inside words
            return "", False
        if category[0] in "ZC":
            return " ", False
        if self.options.punctuation == "keep":
            return (" " if becomes == _WORD_START else becomes), False
        if becomes in _IN_WORD:
            # The apostrophe is no word boundary, the hyphen is one.
            return ("" if becomes == "'" else " ", False) if self._drops_all() else (becomes, True)
        return " ", False

    def _drops_all(self) -> bool:
        return self.options.punctuation == "drop"


def _kind(character: str, becomes: str) -> str:
    """Returns how the change of one character is called in reports."""
    if not becomes.strip():
        return "punctuation"
    return "case" if character.isupper() else "variant"


def _is_word(character: str) -> bool:
    return bool(character) and unicodedata.category(character)[0] in "LMN"
