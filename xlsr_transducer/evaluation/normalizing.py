"""How texts are made comparable before they are scored: ``--score-normalize``.

    none                 words as they are
    basic                Whisper's for languages other than English (A. Radford et al., "Robust
                         speech recognition via large-scale weak supervision", 2022, appendix C):
                         lower case; text in brackets is removed; marks, symbols and punctuation
                         become spaces
    numbers:LANGUAGE     numbers in digits are spelt out, by num2words
    FILE                 one replacement a line, `from<tab>to`, of words or phrases; `to` may be
                         empty

Several are joined by commas. Numbers come first, whatever the order: without punctuation 3.5 is
two numbers. The rest comes in the order given. Reference and recognised text are treated alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.recognition.plain_text import basic

NONE, BASIC, NUMBERS = "none", "basic", "numbers:"
Step = Callable[[str], str]
_NUMBER = re.compile(r"\d+(?:[.,]\d+)?")


class Normalizer:
    """Normalises texts for scoring; ``description`` says how, for the report."""

    def __init__(self, steps: Sequence[Step], description: str):
        self._steps = steps
        self.description = description

    @classmethod
    def parse(cls, text: str) -> Normalizer:
        """Returns what ``--score-normalize TEXT`` asks for.

        Raises:
          UserError: a file that is missing or damaged, a language that num2words lacks, or
            num2words itself is not installed.
        """
        names = [name.strip() for name in text.split(",")]
        if NONE in names and len(names) > 1:
            raise UserError(f"--score-normalize {text}: {NONE} stands alone")
        names.sort(key=lambda name: not name.startswith(NUMBERS))
        made = [_step(name) for name in names if name != NONE]
        description = ", then ".join(words for _, words in made) or "texts as they are"
        return cls([step for step, _ in made], description)

    def __call__(self, text: str) -> str:
        """Returns the text to score, its words separated by single spaces."""
        for step in self._steps:
            text = step(text)
        return " ".join(text.split())


def _step(name: str) -> tuple[Step, str]:
    if name == BASIC:
        return basic, "Whisper's basic normalisation"
    if name.startswith(NUMBERS):
        language = name[len(NUMBERS) :]
        return spelt_numbers(language), f"numbers spelt out in {language!r} by num2words"
    path = Path(name)
    replace = Replacements.read(path)
    return replace, f"{len(replace)} replacements of {path.name}"


def spelt_numbers(language: str) -> Step:
    """Returns a step that spells whole and decimal numbers out.

    Raises:
      UserError: num2words is not installed, or lacks the language.
    """
    try:
        import num2words
    except ImportError as e:
        raise UserError(
            f"--score-normalize {NUMBERS}{language}: needs num2words; pip install num2words"
        ) from e
    if language not in num2words.CONVERTER_CLASSES:
        known = ", ".join(sorted(num2words.CONVERTER_CLASSES))
        raise UserError(
            f"--score-normalize {NUMBERS}{language}: num2words has no such language, but {known}"
        )

    def spell(match: re.Match) -> str:
        digits = match.group().replace(",", ".")
        number: Any = float(digits) if "." in digits else int(digits)
        try:
            return f" {num2words.num2words(number, lang=language)} "
        except (NotImplementedError, OverflowError, KeyError, IndexError):
            return match.group()  # too large for the language: left as it is

    return lambda text: _NUMBER.sub(spell, text)


class Replacements:
    """Replaces words and phrases, the longest first, from left to right."""

    def __init__(self, pairs: Sequence[tuple[str, str]]):
        self._table = {tuple(a.split()): b.split() for a, b in pairs}
        self._longest = max(map(len, self._table), default=0)

    @classmethod
    def read(cls, path: Path) -> Replacements:
        """Reads a file of replacements; empty lines and those that begin with # say nothing.

        Raises:
          UserError: it is missing, or a line is no replacement.
        """
        if not path.is_file():
            raise UserError(
                f"--score-normalize {path}: no such file, and none of {NONE}, {BASIC}, "
                f"{NUMBERS}LANGUAGE"
            )
        pairs = []
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as e:
            raise UserError(f"{path}: not UTF-8 ({e.reason})") from e
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            before, tab, after = line.partition("\t")
            if not tab or not before.strip():
                raise UserError(f"{path}:{number}: expected `from<tab>to`, got {line!r}")
            pairs.append((before, after))
        return cls(pairs)

    def __len__(self) -> int:
        return len(self._table)

    def __call__(self, text: str) -> str:
        """Returns the text with every phrase replaced once."""
        words, kept, at = text.split(), [], 0
        while at < len(words):
            for size in range(min(self._longest, len(words) - at), 0, -1):
                new = self._table.get(tuple(words[at : at + size]))
                if new is not None:
                    kept += new
                    at += size
                    break
            else:
                kept.append(words[at])
                at += 1
        return " ".join(kept)
