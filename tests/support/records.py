"""Records of utterances for the tests of analyses."""

from __future__ import annotations

from typing import Any

from xlsr_transducer.evaluation.records import Record
from xlsr_transducer.recognition.spans import Span


def record(name: str, ref: str, hyp: str, confidence: float | None = None, **more: Any) -> Record:
    """An utterance as scored; with a confidence, every recognised word has it."""
    spans = []
    if confidence is not None:
        spans = [Span(word, i, i + 1.0, confidence) for i, word in enumerate(hyp.split())]
    return Record(name, ref, hyp, ref.split(), hyp.split(), spans, **more)
