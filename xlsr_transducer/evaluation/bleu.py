"""BLEU of models that translate, whose references are in another language: ``--metric bleu``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.evaluation.records import Record, slug
from xlsr_transducer.evaluation.section import Column, Section, Table

NUM_RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Bleu:
    """BLEU with its 95 % bootstrap interval, from 0 to 100, and how it was computed."""

    score: float
    low: float
    high: float
    signature: str  # sacrebleu's, which belongs beside every figure

    def __str__(self) -> str:
        return f"{self.score:.2f} [{self.low:.2f}, {self.high:.2f}]"


def bleu(pairs: Sequence[tuple[str, str]]) -> Bleu:
    """Returns the BLEU of (reference, translation) texts with case and punctuation, by sacrebleu.

    M. Post, "A call for clarity in reporting BLEU scores", WMT 2018.

    Raises:
      UserError: sacrebleu is not installed, or there is no text.
    """
    metric = _metric()
    if not pairs:
        raise UserError("--metric bleu: there are no texts to compare")
    references, translations = [ref for ref, _ in pairs], [hyp for _, hyp in pairs]
    if len(pairs) == 1:  # no interval
        found = metric.corpus_score(translations, [references])
        return Bleu(found.score, found.score, found.score, str(metric.get_signature()))
    found = metric.corpus_score(translations, [references], n_bootstrap=NUM_RESAMPLES)
    low, high = found._mean - found._ci, found._mean + found._ci  # it has no public name
    return Bleu(found.score, max(low, 0.0), min(high, 100.0), str(metric.get_signature()))


def bleu_section(decodes: Mapping[str, Sequence[Record]], label: str = "") -> Section:
    """Returns the section of BLEU, by the name of the experiment or baseline.

    Texts count as they are, with case and punctuation.
    """
    section = Section("-".join(filter(None, ["bleu", slug(label)])), f"Translation: {label}")
    columns = [Column("experiment"), Column("BLEU", "", 2), Column("from", "", 2),
               Column("to", "", 2), Column("utterances", "", 0)]  # fmt: skip
    rows, signatures = [], []
    for name, records in decodes.items():
        if not records:
            section.notes.append(f"{name}: there are no utterances.")
            continue
        found = bleu([(r.ref, r.hyp) for r in records])
        rows.append([name, found.score, found.low, found.high, len(records)])
        signatures.append(found.signature)
        section.data[name] = dataclasses.asdict(found)
    if rows:
        best = max(rows, key=lambda row: row[1])
        section.finding = f"Highest BLEU: {best[1]:.2f}, {best[0]}."
        caption = f"From, to: 95 % bootstrap interval. {signatures[0]}"
        section.tables.append(Table("BLEU", columns, rows, caption))
    return section


def require_bleu() -> None:
    """Raises UserError if sacrebleu is not installed, before anything is computed."""
    _metric()


def _metric() -> Any:
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as e:
        raise UserError("--metric bleu needs sacrebleu; pip install sacrebleu") from e
    return BLEU()
