"""Which words are confused, inserted and deleted, and in which utterances; the worst of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from xlsr_transducer.evaluation.normalizing import Normalizer
from xlsr_transducer.evaluation.records import Record, slug, word_errors
from xlsr_transducer.evaluation.section import Column, Section, Table, Utterances
from xlsr_transducer.evaluation.snippets import shown
from xlsr_transducer.recognition.audio_sets import AudioSet
from xlsr_transducer.recognition.plain_text import basic, is_cased_or_punctuated
from xlsr_transducer.recognition.scoring import ErrorRate, error_rate

NUM_WORST = 50
NUM_ROWS = 100  # of each table
NUM_NAMED = 5  # utterances named beside a word

Pair = tuple[str, str]
KINDS = {
    "substituted": ("Words confused most", ("reference", "recognised")),
    "inserted": ("Words inserted most", ("recognised",)),
    "deleted": ("Words deleted most", ("reference",)),
}


def errors_section(
    records: Sequence[Record],
    normalizer: Normalizer,
    audio: AudioSet | None = None,
    label: str = "",
) -> Section:
    """Returns the section of a decode's errors.

    Args:
      normalizer: with which the records were read, for its description.
      audio: the set, for the snippets; without it there is nothing to hear.
      label: tells several such sections apart, such as the set's name.
    """
    section = Section("-".join(filter(None, ["errors", slug(label)])), f"Errors: {label}")
    if not records:
        section.notes.append("There are no utterances.")
        return section
    rate = word_errors(records)
    section.paragraphs.append(f"Scored: {normalizer.description}.")
    if not rate.num_ref:
        section.notes.append("The references hold no word: there is no WER.")
    kinds = f"{rate.substitutions} substitutions, {rate.insertions} insertions, " \
            f"{rate.deletions} deletions"  # fmt: skip
    section.finding = f"{rate.errors} errors in {rate.num_ref} words: {kinds}."
    by_kind = collect(records)
    section.tables = [_rates_table(records, rate, normalizer)]
    for kind, (heading, sides) in KINDS.items():
        if by_kind[kind]:
            section.tables.append(_pairs_table(heading, sides, by_kind[kind]))
    worst = worst_first(records)[:NUM_WORST]
    if worst:
        utterances, notes = shown(worst, audio)
        heading = f"The {len(worst)} utterances with the most errors"
        section.utterances.append(Utterances(heading, utterances))
        section.notes += notes
    unread = [record for record in records if record.unread]
    if unread:
        section.notes.append(
            f"{len(unread)} utterances could not be read; all of their words count as deleted."
        )
    section.data = {
        "errors": rate.errors,
        "words": rate.num_ref,
        "normalized_by": normalizer.description,
        **{kind: _plain(found) for kind, found in by_kind.items()},
        "worst": [record.id for record in worst],
    }
    return section


def collect(records: Sequence[Record]) -> dict[str, dict[Pair, list[str]]]:
    """Returns for each kind of error the pairs of words, commonest first, with the ids of their
    utterances, one for each time."""
    found: dict[str, dict[Pair, list[str]]] = {kind: defaultdict(list) for kind in KINDS}
    for record in records:
        for word in record.aligned:
            if word.kind in found:
                found[word.kind][word.ref, word.hyp].append(record.id)
    return {
        kind: dict(sorted(pairs.items(), key=lambda item: (-len(item[1]), item[0])))
        for kind, pairs in found.items()
    }


def worst_first(records: Sequence[Record]) -> list[Record]:
    """Returns the utterances that have errors, most errors first; of equally many, the shorter."""
    wrong = [record for record in records if record.num_errors]
    return sorted(wrong, key=lambda r: (-r.num_errors, len(r.ref_words), r.id))


def normalized_again(records: Sequence[Record]) -> ErrorRate | None:
    """Returns the WER by Whisper's basic normalisation; None without case and punctuation."""
    if not is_cased_or_punctuated([t for r in records for t in (r.ref, r.hyp)]):
        return None
    return error_rate([(basic(r.ref).split(), basic(r.hyp).split()) for r in records])


def _rates_table(records: Sequence[Record], rate: ErrorRate, normalizer: Normalizer) -> Table:
    columns = [Column("texts"), Column("WER", "%", 2), Column("from", "%", 2),
               Column("to", "%", 2), Column("words", "", 0), Column("substituted", "", 0),
               Column("inserted", "", 0), Column("deleted", "", 0)]  # fmt: skip

    def row(name: str, r: ErrorRate) -> list:
        return [name, r.percent, r.low, r.high, r.num_ref, r.substitutions, r.insertions,
                r.deletions]  # fmt: skip

    rows = [row(normalizer.description, rate)]
    again = normalized_again(records)
    if again is not None:
        rows.append(row("case and punctuation taken off (Whisper's basic normalisation)", again))
    return Table("Word error rate", columns, rows, "From, to: 95 % bootstrap interval.")


def _pairs_table(heading: str, sides: Sequence[str], pairs: dict[Pair, list[str]]) -> Table:
    columns = [*(Column(side) for side in sides), Column("times", "", 0), Column("utterances")]
    rows = []
    for (ref, hyp), ids in list(pairs.items())[:NUM_ROWS]:
        names = list(dict.fromkeys(ids))
        more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
        words = {"reference": ref, "recognised": hyp}
        named = ", ".join(names[:NUM_NAMED]) + more
        rows.append([*(words[side] for side in sides), len(ids), named])
    left_out = len(pairs) - len(rows)
    caption = f"{left_out} rarer ones are left out." if left_out else ""
    return Table(heading, columns, rows, caption, shown=15)


def _plain(pairs: dict[Pair, list[str]]) -> list[dict]:
    return [
        {"ref": ref.strip("\0"), "hyp": hyp.strip("\0"), "times": len(ids)}
        for (ref, hyp), ids in list(pairs.items())[:NUM_ROWS]
    ]
