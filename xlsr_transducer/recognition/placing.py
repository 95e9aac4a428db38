"""Finds which stretches of a long transcript were spoken where in a long recording.

Both are words: those of the transcript in units (sentences, say), and those that a model
recognised. A unit is placed on a stretch of recognised words, at a price for each word that
differs, or nowhere, for nothing; the order is kept, and recognised words that belong to no unit
are skipped at a small price. The best of all such placements is found by dynamic programming
over units and words, so that text that is missing, or that nobody spoke, leads nothing astray.

Time grows with the product of both lengths, memory with words times the root of units.
Letters: H recognised words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MATCH = 10  # a word that is recognised as it is written
WRONG = -10  # one that is missing, or more, or another
SKIPPED = -1  # a recognised word between units: less than WRONG, so that units have their edges

# A score and the word at which the unit began are one number, so that one maximum keeps both.
_ONE = 1 << 32


class Stretch(NamedTuple):
    """Recognised words from ``first`` up to, but not including, ``end``."""

    first: int
    end: int


class _Choices(NamedTuple):
    """How the best placement up to each of H + 1 words came about, after one unit."""

    stop: np.ndarray  # int32, up to where words belong to this unit or those before it
    first: np.ndarray  # int32, where the unit begins that ends here; -1: the unit is nowhere


def place(units: Sequence[Sequence[str]], recognised: Sequence[str]) -> list[Stretch | None]:
    """Returns the stretch of ``recognised`` that each unit was placed on; None: on none.

    Stretches are in the order of the units and do not overlap. Of equally good placements units
    have later and shorter stretches, and a unit of which half of the words differ is nowhere.
    """
    numbers: dict[str, int] = {}
    words = [np.array([numbers.setdefault(w, len(numbers)) for w in u], np.int64) for u in units]
    recognised = np.array([numbers.get(w, -1) for w in recognised], np.int64)
    size = math.isqrt(len(units)) + 1
    # Scores before each block of units; inside a block they are computed again on the way back.
    score, before = SKIPPED * np.arange(len(recognised) + 1), []
    for k, unit in enumerate(words):
        if k % size == 0:
            before.append(score)
        score, _ = _placed(score, unit, recognised)

    found: list[Stretch | None] = [None] * len(words)
    at = len(recognised)
    for number, score in reversed(list(enumerate(before))):
        choices = []
        for unit in words[number * size : (number + 1) * size]:
            score, choice = _placed(score, unit, recognised)
            choices.append(choice)
        for k, choice in reversed(list(enumerate(choices, number * size))):
            at = int(choice.stop[at])
            first = int(choice.first[at])
            if first >= 0:
                found[k] = Stretch(first, at)
                at = first
    return found


def _placed(
    before: np.ndarray, unit: np.ndarray, recognised: np.ndarray
) -> tuple[np.ndarray, _Choices]:
    """Places one unit: scores (H + 1,) up to each word before and after it."""
    ends = _ends(before, unit, recognised)
    score, column = ends >> 32, np.arange(len(before))
    is_used = score > before
    chosen = np.where(is_used, score, before)
    after = np.maximum.accumulate(chosen - SKIPPED * column) + SKIPPED * column
    stop = np.maximum.accumulate(np.where(after == chosen, column, 0))
    first = np.where(is_used, ends & (_ONE - 1), -1)
    return after, _Choices(stop.astype(np.int32), first.astype(np.int32))


def _ends(before: np.ndarray, unit: np.ndarray, recognised: np.ndarray) -> np.ndarray:
    """Returns the best score of the unit ending at each word, with where it begins (H + 1,)."""
    column = np.arange(len(before))
    row, ramp = before * _ONE + column, column * (-WRONG * _ONE)
    for word in unit:
        new = row + WRONG * _ONE  # the word was not recognised
        fits = np.where(recognised == word, MATCH * _ONE, WRONG * _ONE)
        np.maximum(new[1:], row[:-1] + fits, out=new[1:])
        row = np.maximum.accumulate(new + ramp) - ramp  # words more were recognised
    return row
