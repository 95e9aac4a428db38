"""Rates of speech that cannot be, or that stand out from their language."""

from __future__ import annotations

import math

import numpy as np

from local.checks.flags import Flags
from local.checks.utterances import Utterances

# Slowest and fastest per second. The encoder has a frame each 40 ms; nobody speaks 40 letters.
TOKEN_BOUNDS = (0.2, 25.0)
LETTER_BOUNDS = (0.4, 40.0)
_DEVIATIONS = 4.0  # of the logarithm: one of 16,000 in a normal distribution
_SMALLEST = math.log(1.15)  # deviation: recordings of one synthesizer are all alike
_ENOUGH = 50  # utterances of a language, to find outliers


def flag_rates(u: Utterances, flags: Flags) -> None:
    """Flags utterances with too few or too many tokens, or letters, for their duration.

    Outliers: more than 4 standard deviations from the median of the language, both of the
    logarithm of the rate, the deviation estimated by the median absolute deviation.
    """
    slowest, fastest = TOKEN_BOUNDS if u.has_tokens else LETTER_BOUNDS
    rates = u.units / u.seconds
    logs = np.log(np.maximum(rates, 1e-3))
    lower, upper = (np.full(len(u.language_names), bound) for bound in (slowest, fastest))
    for number in range(len(u.language_names)):
        some = logs[u.languages == number]
        if len(some) >= _ENOUGH:
            median = np.median(some)
            deviation = max(1.4826 * np.median(np.abs(some - median)), _SMALLEST)
            lower[number] = max(slowest, np.exp(median - _DEVIATIONS * deviation))
            upper[number] = min(fastest, np.exp(median + _DEVIATIONS * deviation))
    for kind, bounds, is_odd, word in (
        ("fast", upper, rates > upper[u.languages], "above"),
        ("slow", lower, rates < lower[u.languages], "below"),
    ):
        rows = np.flatnonzero(is_odd)
        flags.add(kind, rows, rates[rows], _Bound(u, rows, bounds, word))


class _Bound:
    """The detail: the bound of the utterance's language."""

    def __init__(self, u: Utterances, rows: np.ndarray, bounds: np.ndarray, word: str) -> None:
        self.u, self.rows, self.bounds, self.word = u, rows, bounds, word

    def __call__(self, place: int) -> str:
        language = self.u.languages[self.rows[place]]
        return f"{self.word} {self.bounds[language]:.2f}"
