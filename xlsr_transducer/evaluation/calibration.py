"""Whether the confidence of a recognised word is how often such words are right."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from xlsr_transducer.evaluation.drawing import FAINT, drawing, styled
from xlsr_transducer.evaluation.records import Record, slug
from xlsr_transducer.evaluation.section import Column, Figure, Section, Table
from xlsr_transducer.recognition.scoring import GAP

NUM_BINS = 10


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Words in bins of confidence, equally wide from 0 to 1."""

    counts: np.ndarray  # (NUM_BINS,) words
    confidence: np.ndarray  # (NUM_BINS,) their mean; nan without words
    accuracy: np.ndarray  # (NUM_BINS,) share of them that are right; nan without words

    @property
    def expected_error(self) -> float:
        """Expected calibration error: mean of |accuracy - confidence| over all words.

        C. Guo et al., "On calibration of modern neural networks", ICML 2017.
        """
        gaps = np.abs(self.accuracy - self.confidence)
        return float(np.nansum(gaps * self.counts) / max(self.counts.sum(), 1))

    @property
    def bias(self) -> float:
        """Mean confidence minus accuracy: above 0 is too confident."""
        gaps = self.confidence - self.accuracy
        return float(np.nansum(gaps * self.counts) / max(self.counts.sum(), 1))


def calibrate(confidence: Sequence[float], is_right: Sequence[bool]) -> Calibration:
    """Returns the calibration of words, each with its confidence in [0, 1]."""
    p, right = np.asarray(confidence, float), np.asarray(is_right, float)
    bins = np.minimum((p * NUM_BINS).astype(int), NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bins, values, NUM_BINS) / counts for values in (p, right)]
    return Calibration(counts, *means)


def confident_words(record: Record) -> list[tuple[float, bool]]:
    """Returns confidence and correctness of the words of an utterance.

    Empty if it has no confidences, or if normalisation changed how many words there are, so that
    they cannot be told apart.
    """
    if len(record.spans) != len(record.hyp_words):
        return []
    recognised = [word for word in record.aligned if word.hyp != GAP]
    return [(s.confidence, w.kind == "correct") for s, w in zip(record.spans, recognised)]


def calibration_section(records: Sequence[Record], label: str = "") -> Section:
    """Returns the section of the confidences of recognised words."""
    name = "-".join(filter(None, ["calibration", slug(label)]))
    section = Section(name, f"Can the confidence be believed: {label}")
    words = [pair for record in records for pair in confident_words(record)]
    unknown = sum(bool(r.hyp_words) and not confident_words(r) for r in records)
    if unknown:
        section.notes.append(
            f"{unknown} utterances have no confidences: their tokens file lacks words, or "
            "normalisation joined or divided them."
        )
    if not words:
        section.notes.append("There is no recognised word with a confidence.")
        return section
    found = calibrate(*zip(*words))
    tendency = "too confident" if found.bias > 0 else "not confident enough"
    section.finding = (
        f"Expected calibration error {found.expected_error:.3f} over {len(words)} words; on "
        f"average the model is {tendency} by {abs(found.bias):.3f}."
    )
    section.paragraphs.append(
        "The confidence of a word is the mean probability of its tokens. A calibrated model is "
        "right for nine in ten of the words that it gives 0.9."
    )
    columns = [Column("confidence"), Column("words", "", 0), Column("mean confidence", "", 3),
               Column("right", "", 3)]  # fmt: skip
    rows = [
        [f"{i / NUM_BINS:.1f} to {(i + 1) / NUM_BINS:.1f}", int(found.counts[i]),
         float(found.confidence[i]), float(found.accuracy[i])]
        for i in range(NUM_BINS) if found.counts[i]
    ]  # fmt: skip
    section.tables.append(Table("Words by confidence", columns, rows))
    section.figures.append(_diagram(found, name))
    section.data = {
        "words": len(words),
        "expected_calibration_error": found.expected_error,
        "bias": found.bias,
        "bins": [{"words": n, "confidence": c, "accuracy": a} for _, n, c, a in rows],
    }
    return section


@styled
def _diagram(found: Calibration, name: str) -> Figure:
    figure, [[curve], [counts]] = drawing(5, 4.2, 2, 1, sharex=True, height_ratios=(3, 1))
    has_words = found.counts > 0
    curve.plot([0, 1], [0, 1], ":", color=FAINT, label="calibrated")
    curve.plot(found.confidence[has_words], found.accuracy[has_words], "o-", ms=4, label="model")
    curve.set(ylabel="share of words right", xlim=(0, 1), ylim=(0, 1.02))
    curve.legend()
    centres = (np.arange(NUM_BINS) + 0.5) / NUM_BINS
    counts.bar(centres, found.counts, width=0.9 / NUM_BINS, color="C0", alpha=0.6)
    counts.set(xlabel="confidence of the word", ylabel="words", yscale="symlog")
    alt = f"Reliability diagram, expected calibration error {found.expected_error:.3f}"
    return Figure(
        name, figure, "Reliability diagram: how often words of a confidence are right.", alt
    )
