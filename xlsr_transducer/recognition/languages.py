"""Error rates by language, or by another column of the corpus, such as the dialect: of each value,
the worst, their mean, and the gap from worst to best."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xlsr_transducer.core.tables import text_table
from xlsr_transducer.recognition.error_rates import LANGUAGE, UNKNOWN, Score, Transcript
from xlsr_transducer.recognition.share import Accuracy

MAX_VALUES = 20  # of a column that is compared


@dataclass(frozen=True)
class Spread:
    """How unequal the error rates of several languages, or other values, are, in percent."""

    worst: str  # the one with the highest rate
    highest: float
    mean: float  # each counting the same
    gap: float  # from the lowest to the highest rate

    @classmethod
    def of(cls, rates: Mapping[str, float]) -> Spread:
        """``rates``: of each value; of equal ones the first in the alphabet is the worst."""
        worst = max(sorted(rates), key=lambda language: rates[language])
        highest = rates[worst]
        gap = highest - min(rates.values())
        return cls(worst, highest, sum(rates.values()) / len(rates), gap if gap > 0 else 0.0)

    def __str__(self) -> str:
        return f"worst {self.worst} {self.highest:.2f}, mean {self.mean:.2f}, gap {self.gap:.2f}"


def spreads(values: Mapping[str, Score]) -> tuple[Spread, Spread]:
    """Returns the spread of WER and of CER over values; utterances without one are left out."""
    known = {name: one for name, one in values.items() if name != UNKNOWN}
    rates = (
        {n: s.wer.percent for n, s in known.items()},
        {n: s.cer.percent for n, s in known.items()},
    )
    return Spread.of(rates[0]), Spread.of(rates[1])


def value_rows(set_name: str, values: Mapping[str, Score]) -> list[tuple[str, ...]]:
    """Returns the cells of a table: a row of each value, then worst, mean and gap."""
    rows = [
        (set_name, name, str(s.wer), str(s.cer), str(s.wer.num_ref), str(s.num_utterances),
         str(s.num_unread))
        for name, s in values.items()
    ]  # fmt: skip
    both = spreads(values)
    rates = {
        "worst": [f"{s.highest:.2f} {s.worst}" for s in both],
        "mean": [f"{s.mean:.2f}" for s in both],
        "gap": [f"{s.gap:.2f}" for s in both],
    }
    return [*rows, *((set_name, name, *cells, "", "", "") for name, cells in rates.items())]


def value_table(scores: Sequence[Score], column: str = LANGUAGE) -> str:
    """Returns the table of every set that has several values of a column; '' if there is none.

    Sets of one value each, all different ones, are compared as if they were one set.
    """
    found = [(s.set_name, s.columns.get(column, {})) for s in scores]
    parts = {name: values for name, values in found if has_several(values)}
    rest = [values.items() for _, values in found if not has_several(values)]
    single = [(name, s) for items in rest for name, s in items if name != UNKNOWN]
    alone = dict(single)
    if len(alone) == len(single) and has_several(alone):
        parts["+".join(s.set_name for s in alone.values())] = alone
    if not parts:
        return ""
    heading = ("set", column, "WER % [95 %]", "CER % [95 %]", "words", "utts", "unread")
    return text_table([heading, *(row for p in parts.items() for row in value_rows(*p))])


def value_tables(scores: Sequence[Score]) -> list[str]:
    """Returns the tables of all columns, the language first."""
    columns = dict.fromkeys([LANGUAGE, *(name for s in scores for name in s.columns)])
    return [table for table in (value_table(scores, name) for name in columns) if table]


def has_several(values: Iterable[str]) -> bool:
    """Returns whether there is more than one known value."""
    return len({name for name in values if name != UNKNOWN}) > 1


def columns_of(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Returns the values of each column by utterance: of the language, and of the columns of the
    corpus that are neither numbers nor nearly as many as the utterances.

    Args:
      facts: what is known of an utterance, by id (see ``facts_of``).
    """
    found: dict[str, dict[str, str]] = {LANGUAGE: {}}
    for utterance, known in facts.items():
        found[LANGUAGE][utterance] = known.get(LANGUAGE, "")
        for name, value in known.get("columns", {}).items():
            if name != LANGUAGE:
                found.setdefault(name, {})[utterance] = value
    return {n: values for n, values in found.items() if n == LANGUAGE or _is_shown(values)}


def _is_shown(values: Mapping[str, str]) -> bool:
    different = set(values.values())
    return len(different) <= MAX_VALUES and not all(map(_is_number, different))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def with_identified(
    total: Score, transcripts: Iterable[Transcript], facts: Mapping[str, Mapping[str, Any]]
) -> Score:
    """Returns the score of a set with how many utterances the model named the language of.

    A model that names none in the whole set does not seek languages. An utterance that could not
    be read is not identified; of those without a language in the manifest nothing is known.
    """
    if not any(known.get("language_found") for known in facts.values()):
        return total
    right: Counter[str] = Counter()
    for known in (facts.get(t.id, {}) for t in transcripts):
        language = known.get("language") or UNKNOWN
        right[language] += known.get("language_found") == language
    parts = {name: replace(s, num_identified=right[name]) for name, s in total.languages.items()}
    return replace(total, columns={**total.columns, LANGUAGE: parts})


def identified_table(scores: Sequence[Score]) -> str:
    """Returns in how many utterances of each set and language the language was found, with a 95 %
    interval (E. B. Wilson, 1927); '' if no model sought it."""
    rows = [("set", "language", "found % [95 %]", "found", "utts")]
    for score in scores:
        counts = {
            name: (s.num_identified, s.num_utterances)
            for name, s in score.languages.items()
            if name != UNKNOWN and s.num_identified is not None
        }
        if len(counts) > 1:
            counts["all"] = tuple(map(sum, zip(*counts.values())))
        for name, (right, total) in counts.items():
            low, high = Accuracy(right, total).interval
            percent = f"{100 * right / total:.2f} [{low:.2f}, {high:.2f}]"
            rows.append((score.set_name, name, percent, str(right), str(total)))
    return text_table(rows) if len(rows) > 1 else ""
