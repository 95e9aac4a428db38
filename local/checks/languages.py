"""Texts that do not fit the language of their list: letters of another script, or spellings that
another language of the corpus has more often.

Trigrams of letters, with the spaces around words, are counted in texts of each language. A text's
trigrams are independent draws (a multinomial model) with a Dirichlet prior, whose mean is the
average of the languages.
"""

from __future__ import annotations

import collections
import functools
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from local.checks.flags import Flags
from local.checks.utterances import Utterances

_PRIOR = 1000.0  # trigrams that the average of the languages weighs
_TEXTS = 20_000  # of each language are counted
_ENOUGH = 50  # texts of a language, to know it
_FEWEST = 8  # trigrams of a text that is judged
_RATIO = 10.0  # of log-likelihoods, natural: of texts that are flagged, and
_RATIO_EACH = 0.5  # for each trigram
_OTHER_SCRIPT = 0.3  # share of the letters of a text that is flagged
_COMMON_SCRIPT = 0.2  # share of the letters of a language, of scripts that it is written in
_TOGETHER = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "HANGUL": "CJK", "BOPOMOFO": "CJK"}


def flag_languages(u: Utterances, flags: Flags) -> None:
    """Flags ``other-script`` and, where there are several languages, ``other-language``."""
    sizes = np.bincount(u.languages, minlength=len(u.language_names))
    sampled = _Sampled(u, sizes)
    known = np.flatnonzero(sizes >= _ENOUGH).tolist()
    letters = [collections.Counter() for _ in sizes]
    profiles = Profiles(known if len(known) > 1 else [])
    for text, language, is_counted in sampled:
        letters[language].update(text)
        if is_counted:
            profiles.add(text, language)
    profiles.close()
    foreign = [_foreign_letters(counts) for counts in letters]
    scripts, spellings = _Findings(), _Findings()
    for row, (text, language, is_counted) in enumerate(sampled):
        if not foreign[language].isdisjoint(text):
            share, script = _foreign_share(text, foreign[language])
            if share >= _OTHER_SCRIPT:
                scripts.add(row, 100 * share, script)
        ratio, better, count = profiles.compare(text, language, is_counted)
        if count >= _FEWEST and ratio > max(_RATIO, _RATIO_EACH * count):
            spellings.add(row, ratio, u.language_names[better])
    scripts.flag("other-script", flags)
    spellings.flag("other-language", flags)


class _Sampled:
    """Each pass yields the texts of all rows, their languages, and whether each is among the
    ``_TEXTS`` of its language that are counted."""

    def __init__(self, u: Utterances, sizes: np.ndarray) -> None:
        self.u, self.steps = u, np.maximum(1, -(-sizes // _TEXTS)).tolist()

    def __iter__(self) -> Iterator[tuple[str, int, bool]]:
        seen = [0] * len(self.steps)
        for row, language in zip(self.u, self.u.languages.tolist()):
            yield row.text, language, seen[language] % self.steps[language] == 0
            seen[language] += 1


class _Findings:
    """Rows with a value and a name."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.values: list[float] = []
        self.names: list[str] = []

    def add(self, row: int, value: float, name: str) -> None:
        self.rows.append(row)
        self.values.append(value)
        self.names.append(name)

    def flag(self, kind: str, flags: Flags) -> None:
        rows, values = np.array(self.rows, np.int64), np.array(self.values)
        flags.add(kind, rows, values, self.names.__getitem__)


@functools.cache
def _script(letter: str) -> str:
    """Returns the first word of a letter's name, LATIN or CYRILLIC; "" if it is no letter."""
    if not letter.isalpha():
        return ""
    name = unicodedata.name(letter, "").split(" ")[0].split("-")[0]
    return _TOGETHER.get(name, name)


def _foreign_letters(counts: collections.Counter[str]) -> set[str]:
    """Returns the letters of scripts that a language is not written in.

    Args:
      counts: of all characters in its texts.
    """
    scripts: collections.Counter[str] = collections.Counter()
    for character, count in counts.items():
        scripts[_script(character)] += count
    del scripts[""]
    least = _COMMON_SCRIPT * sum(scripts.values())
    return {c for c in counts if _script(c) and scripts[_script(c)] < least}


def _foreign_share(text: str, foreign: set[str]) -> tuple[float, str]:
    """Returns the share of a text's letters that are foreign, and the script of most of them."""
    found = collections.Counter(_script(c) for c in text if c in foreign)
    [(script, _)] = found.most_common(1)
    return sum(found.values()) / sum(map(str.isalpha, text)), script.lower()


def trigrams(text: str) -> list[str]:
    """Returns all runs of three characters, with the spaces before and after the text."""
    padded = f" {text} "
    return [padded[i : i + 3] for i in range(len(padded) - 2)]


class Profiles:
    """How often some languages have each trigram."""

    def __init__(self, languages: Sequence[int]) -> None:
        """``languages``: their numbers; without any, nothing is compared."""
        self.languages = list(languages)
        self._columns = {language: i for i, language in enumerate(languages)}
        self._numbers: dict[str, int] = {}  # trigram -> row of ``counts``
        self._counts: list[list[int]] = [[] for _ in languages]

    def add(self, text: str, language: int) -> None:
        """Counts the trigrams of a text, if its language is one of those."""
        if language not in self._columns:
            return
        counts = self._counts[self._columns[language]]
        for trigram in trigrams(text):
            number = self._numbers.setdefault(trigram, len(self._numbers))
            counts.extend([0] * (number + 1 - len(counts)))
            counts[number] += 1

    def close(self) -> None:
        """Ends the counting."""
        self.counts = np.zeros((len(self._numbers), len(self.languages)))
        for column, counts in enumerate(self._counts):
            self.counts[: len(counts), column] = counts
        self.totals = self.counts.sum(0)
        self._logs = self._log_likelihoods(self.counts, self.totals)

    def _log_likelihoods(self, counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
        """Returns (n, languages); trigrams that no language has are 0."""
        average = (counts / np.maximum(totals, 1)).sum(1, keepdims=True) / max(len(totals), 1)
        logs = np.log((counts + _PRIOR * average + 1e-300) / (totals + _PRIOR))
        return np.where(average > 0, logs, 0.0)

    def compare(self, text: str, language: int, is_counted: bool) -> tuple[float, int, int]:
        """Compares a text's likelihood in its language with that in all.

        Args:
          is_counted: whether the text was counted, and is to be taken out of the counts.

        Returns:
          The logarithm of best likelihood / own, the best language, the number of trigrams.
        """
        if language not in self._columns:
            return 0.0, language, 0
        own = self._columns[language]
        found = [n for n in map(self._numbers.get, trigrams(text)) if n is not None]
        scores = self._logs[found].sum(0)
        if is_counted:
            scores = self._without(found, own)
        best = int(scores.argmax())
        return float(scores[best] - scores[own]), self.languages[best], len(found)

    def _without(self, found: list[int], own: int) -> np.ndarray:
        """Returns the scores of a text that was counted, without what it counted."""
        numbers, times = np.unique(found, return_counts=True)
        counts, totals = self.counts[numbers], self.totals.copy()
        counts[:, own] -= times
        totals[own] -= len(found)
        return times @ self._log_likelihoods(counts, totals)
