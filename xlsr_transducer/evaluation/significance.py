"""Whether one decode is better than another on the same utterances, or only luckier."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from xlsr_transducer.evaluation.records import Record

NUM_RESAMPLES = 10_000
METHOD = (
    "Paired bootstrap over utterances with 10,000 resamples: the interval holds the middle 95 % "
    "of the differences in WER; p is twice the share of resamples on the other side of no "
    "difference (two-sided), and no less than 2 / 2^k, where k utterances differ in errors: the "
    "least that exchanging the decodes of utterances could give. Utterances of one speaker are "
    "treated as independent, which makes p too small where there are few speakers. The p-values "
    "are not corrected for the number of comparisons."
)
_ELEMENTS = 2**22  # drawn at a time


@dataclasses.dataclass(frozen=True)
class Difference:
    """A second decode's WER minus a first one's, in percentage points, on the same utterances."""

    points: float
    low: float  # of the 95 % interval
    high: float
    p: float  # two-sided

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``no difference`` at p < 0.05, of the second decode."""
        if not self.p < 0.05:
            return "no difference"
        return "better" if self.points < 0 else "worse"


def compare(first: Sequence[Record], second: Sequence[Record]) -> Difference | None:
    """Returns the difference of two decodes of the same utterances in the same order.

    None if there are no reference words.
    """
    errors = np.array([[r.num_errors for r in records] for records in (first, second)])
    words = np.array([len(r.ref_words) for r in first])
    return paired_bootstrap(errors[0], errors[1], words) if words.sum() else None


def paired_bootstrap(
    first: np.ndarray, second: np.ndarray, words: np.ndarray, seed: int = 0
) -> Difference:
    """Draws as many utterances with replacement, both decodes' errors together. Same input, same
    result.

    M. Bisani and H. Ney, "Bootstrap estimates for confidence intervals in ASR performance
    evaluation", ICASSP 2004. A drawn set without words has no rate and is left out.

    Args:
      first, second: (n,) errors of each utterance.
      words: (n,) reference words, at least one in all.
    """
    gained = np.asarray(second, np.int64) - np.asarray(first, np.int64)
    words = np.asarray(words, np.int64)
    count = len(words)
    # RandomState draws the same in every version of numpy.
    random, drawn = np.random.RandomState(seed), []
    at_a_time = max(_ELEMENTS // count, 1)
    for start in range(0, NUM_RESAMPLES, at_a_time):
        size = min(at_a_time, NUM_RESAMPLES - start)
        rows = random.randint(0, count, (size, count))
        sums = words[rows].sum(1)
        drawn.append(100.0 * gained[rows].sum(1)[sums > 0] / sums[sums > 0])
    values = np.concatenate(drawn)
    low, high = np.quantile(values, (0.025, 0.975)) if len(values) else (-np.inf, np.inf)
    # One is added, as the data themselves are a resample: p is never 0.
    tail = (min((values <= 0).sum(), (values >= 0).sum()) + 1) / (len(values) + 1)
    # Of few utterances all resamples are alike, and would claim too much.
    least = 2.0 ** (1 - int((gained != 0).sum()))
    points = 100.0 * gained.sum() / words.sum()
    return Difference(
        float(points), float(low), float(high), min(max(2.0 * float(tail), least), 1.0)
    )
