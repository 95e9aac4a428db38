"""Word and character error rates of a set, with intervals, and by language or another column."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import kaldialign

from xlsr_transducer.recognition.plain_text import basic, is_cased_or_punctuated

NUM_RESAMPLES = 1000
UNKNOWN = "(unknown)"  # the value of utterances whose manifest names none
LANGUAGE = "language"  # the column that every manifest may have


@dataclass(frozen=True)
class Transcript:
    """One utterance: reference words and recognised words."""

    id: str
    ref: list[str]
    hyp: list[str]


@dataclass(frozen=True)
class ErrorRate:
    """Errors over a set of utterances, with a bootstrap 95 % interval of the rate."""

    insertions: int
    deletions: int
    substitutions: int
    num_ref: int
    """Reference words (or characters)."""
    percent: float
    """Errors per 100 reference units; without any: 0 if there is no error, else infinite."""
    low: float
    high: float

    @property
    def errors(self) -> int:
        """All three kinds together."""
        return self.insertions + self.deletions + self.substitutions

    def __str__(self) -> str:
        return f"{self.percent:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Score:
    """The error rates of one set with one setting."""

    set_name: str
    suffix: str
    num_utterances: int
    wer: ErrorRate
    cer: ErrorRate
    num_unread: int = 0  # of the utterances
    columns: Mapping[str, Mapping[str, Score]] = field(default_factory=dict)
    """Scores by column, such as the language or a dialect, then by value, if any is known."""
    plain_wer: ErrorRate | None = None  # without case and punctuation, where texts have them
    num_identified: int | None = None  # utterances whose language was found; None: not sought

    @property
    def languages(self) -> Mapping[str, Score]:
        """The score of each language, if any is known."""
        return self.columns.get(LANGUAGE, {})


def score(
    set_name: str, suffix: str, transcripts: Iterable[Transcript], num_unread: int = 0
) -> Score:
    """Returns WER and CER, and the WER without case and punctuation where texts have them.

    Characters include one space between words.
    """
    transcripts = list(transcripts)
    words = [(t.ref, t.hyp) for t in transcripts]
    chars = [(list(" ".join(t.ref)), list(" ".join(t.hyp))) for t in transcripts]
    rates = error_rate(words), error_rate(chars)
    plain = None
    if is_cased_or_punctuated(word for pair in words for side in pair for word in side):
        texts = [tuple(basic(" ".join(side)).split() for side in pair) for pair in words]
        plain = error_rate(texts)
    return Score(set_name, suffix, len(transcripts), *rates, num_unread, plain_wer=plain)


def score_values(
    total: Score,
    transcripts: Iterable[Transcript],
    unread: Iterable[str],
    values: Mapping[str, str],
) -> dict[str, Score]:
    """Returns the scores of the parts of a set that have each value of a column; {} without any.

    Args:
      total: the score of the set.
      unread: ids of the utterances that could not be read.
      values: of each utterance by id, as far as they are known.
    """
    unread, parts = set(unread), defaultdict(list)
    for t in transcripts:
        parts[values.get(t.id) or UNKNOWN].append(t)
    if set(parts) <= {UNKNOWN}:
        return {}
    if len(parts) == 1:
        return {name: total for name in parts}
    found = {}
    for name, some in sorted(parts.items()):
        count = sum(t.id in unread for t in some)
        found[name] = score(total.set_name, total.suffix, some, count)
    return found


def error_rate(
    pairs: Sequence[tuple[list[str], list[str]]], num_resamples: int = NUM_RESAMPLES
) -> ErrorRate:
    """Returns the error rate of (reference, hypothesis) pairs. Same input, same interval.

    The interval is the rate with 1.96 standard deviations to both sides, over sets of as many
    utterances drawn with replacement (Bisani and Ney, "Bootstrap estimates for confidence
    intervals in ASR performance evaluation", ICASSP 2004, as in Kaldi's compute-wer-bootci).
    """
    refs, hyps = [ref for ref, _ in pairs], [hyp for _, hyp in pairs]
    counts = kaldialign.batch_error_rate(refs, hyps)
    rate = 100.0 * counts["err_rate"]
    low = high = rate
    if counts["ref_len"]:
        drawn = kaldialign.bootstrap_wer_ci(refs, hyps, replications=num_resamples)
        # Sets with hardly any words: some that are drawn have none, and no rate.
        around = 100.0 * drawn["ci95"] if math.isfinite(drawn["wer"]) else math.inf
        low, high = max(rate - around, 0.0), rate + around
    kinds = counts["ins"], counts["del"], counts["sub"]
    return ErrorRate(*kinds, counts["ref_len"], rate, low, high)
