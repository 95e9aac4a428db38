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
    _flag_scripts(u, flags)
    counts = np.bincount(u.languages, minlength=len(u.language_names))
    known = np.flatnonzero(counts >= _ENOUGH)
    if len(known) > 1:
        _flag_spellings(u, flags, known.tolist(), counts)


@functools.cache
def _script(letter: str) -> str:
    """Returns the first word of a letter's name, LATIN or CYRILLIC; "" if it is no letter."""
    if not letter.isalpha():
        return ""
    name = unicodedata.name(letter, "").split(" ")[0].split("-")[0]
    return _TOGETHER.get(name, name)


def _scripts(text: str) -> collections.Counter[str]:
    """Counts the letters of a text by script."""
    if text.isascii():
        return collections.Counter(LATIN=sum(map(str.isalpha, text)))
    found = collections.Counter(map(_script, text))
    del found[""]
    return found


def _flag_scripts(u: Utterances, flags: Flags) -> None:
    totals = [collections.Counter() for _ in u.language_names]
    for row, number in zip(u, u.languages):
        totals[number].update(_scripts(row.text))
    common = [
        {script for script, n in total.items() if n >= _COMMON_SCRIPT * sum(total.values())}
        for total in totals
    ]
    if all(len(total) < 2 for total in totals):
        return
    rows, shares, names = [], [], []
    for i, (row, number) in enumerate(zip(u, u.languages)):
        found = _scripts(row.text)
        others = {script: n for script, n in found.items() if script not in common[number]}
        if others and sum(others.values()) >= _OTHER_SCRIPT * sum(found.values()):
            rows.append(i)
            shares.append(100 * sum(others.values()) / sum(found.values()))
            names.append(max(others, key=others.__getitem__).lower())
    flags.add("other-script", np.array(rows, int), np.array(shares), names.__getitem__)


def trigrams(text: str) -> list[str]:
    """Returns all runs of three characters, with the spaces before and after the text."""
    padded = f" {text} "
    return [padded[i : i + 3] for i in range(len(padded) - 2)]


class Profiles:
    """How often the languages have each trigram."""

    def __init__(self, num_languages: int) -> None:
        self._numbers: dict[str, int] = {}
        self._counts: list[list[int]] = [[] for _ in range(num_languages)]

    def add(self, text: str, language: int) -> None:
        """Counts the trigrams of a text."""
        counts = self._counts[language]
        for trigram in trigrams(text):
            number = self._numbers.setdefault(trigram, len(self._numbers))
            counts.extend([0] * (number + 1 - len(counts)))
            counts[number] += 1

    def close(self) -> None:
        """Ends the counting."""
        size = len(self._numbers)
        counts = [np.array(some + [0] * (size - len(some))) for some in self._counts]
        self.counts = np.stack(counts, axis=1).astype(float)  # (trigrams, languages)
        self.totals = self.counts.sum(0)
        self._logs = self._log_likelihoods(self.counts, self.totals)

    def _log_likelihoods(self, counts: np.ndarray, totals: np.ndarray) -> np.ndarray:
        """Returns (n, languages); trigrams that no language has are 0."""
        average = (counts / np.maximum(totals, 1)).mean(1, keepdims=True)
        logs = np.log((counts + _PRIOR * average + 1e-300) / (totals + _PRIOR))
        return np.where(average > 0, logs, 0.0)

    def score(self, text: str, counted_as: int | None) -> tuple[np.ndarray, int]:
        """Returns the log-likelihood of a text in each language, and how many trigrams it has.

        Args:
          counted_as: the language in which the text was counted, of which it is then taken out.
        """
        found = [self._numbers[t] for t in trigrams(text) if t in self._numbers]
        if counted_as is None:
            return self._logs[found].sum(0), len(found)
        numbers, times = np.unique(found, return_counts=True)
        counts, totals = self.counts[numbers], self.totals.copy()
        counts[:, counted_as] -= times
        totals[counted_as] -= len(found)
        logs = self._log_likelihoods(counts, totals)
        return (times[:, None] * logs).sum(0), len(found)


def _flag_spellings(u: Utterances, flags: Flags, known: Sequence[int], counts: np.ndarray) -> None:
    column = {number: i for i, number in enumerate(known)}  # language -> place in the profiles
    steps = [max(1, -(-int(n) // _TEXTS)) for n in counts]
    profiles = Profiles(len(known))
    for text, number, is_counted in _rows(u, steps):
        if is_counted and number in column:
            profiles.add(text, column[number])
    profiles.close()
    rows, ratios, names = [], [], []
    for i, (text, number, is_counted) in enumerate(_rows(u, steps)):
        if number not in column:
            continue
        own = column[number]
        scores, count = profiles.score(text, own if is_counted else None)
        best = int(scores.argmax())
        ratio = scores[best] - scores[own]
        if count >= _FEWEST and ratio > max(_RATIO, _RATIO_EACH * count):
            rows.append(i)
            ratios.append(ratio)
            names.append(u.language_names[known[best]])
    flags.add("other-language", np.array(rows, int), np.array(ratios), names.__getitem__)


def _rows(u: Utterances, steps: Sequence[int]) -> Iterator[tuple[str, int, bool]]:
    """Yields text, language, and whether it is one of the texts that are counted: each ``steps``th
    of its language."""
    seen = [0] * len(steps)
    for row, number in zip(u, u.languages.tolist()):
        yield row.text, number, seen[number] % steps[number] == 0
        seen[number] += 1
