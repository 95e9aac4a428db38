"""References that look wrong: a text that does not belong to its audio, or not to all of it.

Nothing here proves that a text is wrong. Each rule names what is suspicious, and a person decides
by listening. The rules know the model's view alone, so that a poor model flags good references.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from xlsr_transducer.evaluation.records import Record, slug, word_errors
from xlsr_transducer.evaluation.section import Column, Section, Table, Utterances
from xlsr_transducer.evaluation.snippets import shown
from xlsr_transducer.recognition.audio_sets import AudioSet

CONFIDENT = 0.9  # mean confidence of recognised words from which on the model is sure
MOSTLY_WRONG = 0.5  # errors per reference word
LONGEST_RUN = 4  # reference words in a row that have no recognised word
FASTEST = 30.0  # characters a second: nobody speaks so fast
NUM_DEVIATIONS = 5.0  # of the median absolute deviation, scaled to a standard deviation
NUM_FEWEST = 20  # utterances below which there is no telling what is usual
NUM_SHOWN = 30

RULES = {
    "other words": f"at least {100 * MOSTLY_WRONG:.0f} % of the words wrong, while the recognised "
    f"words have a mean confidence of {CONFIDENT} or more",
    "words without sound": f"{LONGEST_RUN} or more reference words in a row for which nothing was "
    f"recognised, while the recognised words have a mean confidence of {CONFIDENT} or more",
    "too fast": f"more than {FASTEST:.0f} characters a second",
    "poor alignment": "on the best path of the reference, the mean logarithm of its words' "
    f"probabilities lies more than {NUM_DEVIATIONS:.0f} robust standard deviations (from the "
    "median absolute deviation) below the set's median",
}


@dataclasses.dataclass(frozen=True)
class Flagged:
    """An utterance with the names of the rules that flag its reference."""

    record: Record
    rules: list[str]


def references_section(
    records: Sequence[Record],
    alignment: Mapping[str, float] | None = None,
    audio: AudioSet | None = None,
    label: str = "",
) -> Section:
    """Returns the section of references that look wrong.

    Args:
      alignment: mean log of the words' probabilities on the best path of each reference, by id;
        without it that rule is left out.
    """
    name = "-".join(filter(None, ["references", slug(label)]))
    section = Section(name, f"References to check: {label}")
    readable = [record for record in records if not record.unread]
    if not readable:
        section.notes.append("There are no utterances.")
        return section
    section.notes += _left_out(readable, alignment)
    flagged = flag(readable, alignment or {})
    share = len(flagged) / len(readable)
    section.finding = (
        f"{len(flagged)} of {len(readable)} references ({100 * share:.1f} %) look wrong."
    )
    section.paragraphs.append(
        "They are flagged by what the model recognises, which proves nothing: listen before you "
        "correct or leave out."
    )
    counts = {rule: [f for f in flagged if rule in f.rules] for rule in RULES}
    columns = [Column("rule"), Column("utterances", "", 0), Column("what it says")]
    rows = [[rule, len(counts[rule]), text] for rule, text in RULES.items()]
    section.tables.append(Table("Why", columns, rows))
    if flagged:
        others = [r for r in readable if r.id not in {f.record.id for f in flagged}]
        if others:
            rates = word_errors(readable).percent, word_errors(others).percent
            section.paragraphs.append(
                f"WER {rates[0]:.2f} % with them, {rates[1]:.2f} % without. The second is no "
                "better estimate: utterances were left out by how they were recognised."
            )
        section.tables.append(_flagged_table(flagged))
        utterances, notes = shown([f.record for f in flagged[:NUM_SHOWN]], audio)
        section.utterances.append(Utterances("Flagged references", utterances))
        section.notes += notes
    section.data = {
        "utterances": len(readable),
        "flagged": {f.record.id: f.rules for f in flagged},
        "rules": RULES,
    }
    return section


def flag(records: Sequence[Record], alignment: Mapping[str, float]) -> list[Flagged]:
    """Returns the utterances whose reference looks wrong, those of most rules first."""
    lowest = usual_least(list(alignment.values()))
    found = []
    for record in records:
        applies = {
            "other words": _is_sure(record) and _share_wrong(record) >= MOSTLY_WRONG,
            "words without sound": _is_sure(record) and longest_gap(record) >= LONGEST_RUN,
            "too fast": bool(record.seconds)
            and len("".join(record.ref.split())) > FASTEST * record.seconds,
            "poor alignment": alignment.get(record.id, lowest) < lowest,
        }
        rules = [rule for rule, is_true in applies.items() if is_true]
        if rules:
            found.append(Flagged(record, rules))
    return sorted(found, key=lambda f: (-len(f.rules), -f.record.num_errors, f.record.id))


def usual_least(values: Sequence[float]) -> float:
    """Returns the bound below which a value is an outlier; -inf where there are too few."""
    if len(values) < NUM_FEWEST:
        return -float("inf")
    middle = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(np.asarray(values) - middle)))
    return middle - NUM_DEVIATIONS * spread


def longest_gap(record: Record) -> int:
    """Returns the most reference words in a row that have no recognised word beside them."""
    longest = run = 0
    for word in record.aligned:
        run = run + 1 if word.kind == "deleted" else 0
        longest = max(longest, run)
    return longest


def _is_sure(record: Record) -> bool:
    spans = record.spans
    return bool(spans) and statistics.fmean(s.confidence for s in spans) >= CONFIDENT


def _share_wrong(record: Record) -> float:
    return record.num_errors / len(record.ref_words) if record.ref_words else 0.0


def _left_out(records: Sequence[Record], alignment: Mapping[str, float] | None) -> list[str]:
    notes = []
    if not any(record.spans for record in records):
        notes.append("No confidences are known, so that two of the rules flag nothing.")
    if alignment is None:
        notes.append("There is no forced alignment, so that its rule flags nothing.")
    elif len(alignment) < NUM_FEWEST:
        notes.append(
            f"Only {len(alignment)} utterances could be aligned: too few to tell what is usual, "
            "so that the rule of alignment flags nothing."
        )
    empty = sum(not record.ref_words for record in records)
    if empty:
        notes.append(f"{empty} references hold no word.")
    return notes


def _flagged_table(flagged: Sequence[Flagged]) -> Table:
    columns = [Column("utterance"), Column("rules"), Column("errors", "", 0),
               Column("words", "", 0), Column("duration", "s", 1), Column("speaker")]  # fmt: skip
    rows = [
        [f.record.id, ", ".join(f.rules), f.record.num_errors, len(f.record.ref_words),
         f.record.seconds, f.record.speaker]
        for f in flagged
    ]  # fmt: skip
    return Table("Flagged references", columns, rows, shown=NUM_SHOWN)
