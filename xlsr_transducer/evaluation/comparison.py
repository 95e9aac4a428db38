"""Experiments side by side on the same utterances: what got better and what got worse."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.evaluation.curves import draw_curves, read_history
from xlsr_transducer.evaluation.records import Record, shared, slug, word_errors
from xlsr_transducer.evaluation.section import (
    Column,
    Figure,
    Section,
    Table,
    Utterance,
    Utterances,
)
from xlsr_transducer.evaluation.significance import METHOD, Difference, compare
from xlsr_transducer.evaluation.snippets import MEDIA_TYPE, snippets
from xlsr_transducer.recognition.audio_sets import AudioSet
from xlsr_transducer.recognition.scoring import GAP

NUM_WORDS = 60  # rows of a table of words
NUM_CHANGED = 20  # utterances shown for each pair of experiments

Decodes = Mapping[str, Sequence[Record]]


def comparison_section(
    decodes: Decodes, audio: AudioSet | None = None, label: str = ""
) -> Section:
    """Returns the section that compares decodes of one set with the first of them.

    Args:
      decodes: by the name of the experiment or baseline.
    """
    section = Section("-".join(filter(None, ["comparison", slug(label)])), f"Comparison: {label}")
    if len(decodes) < 2:
        section.notes.append("There is one experiment: nothing to compare with.")
        return section
    decodes, notes = same_utterances(decodes)
    section.notes += notes
    first, *others = decodes
    if not decodes[first]:
        section.notes.append("The experiments have no utterance in common.")
        return section
    differences = {name: compare(decodes[first], decodes[name]) for name in others}
    section.paragraphs.append(METHOD)
    section.tables.append(_rates(decodes, differences))
    section.finding = _finding(first, differences)
    section.data = {"method": METHOD, "first": first, "experiments": _plain(decodes, differences)}
    for name in others:
        _add_changes(section, (first, decodes[first]), (name, decodes[name]), audio)
    return section


def same_utterances(decodes: Decodes) -> tuple[dict[str, list[Record]], list[str]]:
    """Returns the utterances that all decodes have with the same reference; notes on the rest."""
    common = shared(list(decodes.values()))
    is_same = [len({" ".join(r.ref_words) for r in records}) == 1 for records in zip(*common)]
    kept = [[r for r, same in zip(records, is_same) if same] for records in common]
    notes = []
    most = max(map(len, decodes.values()))
    if common and len(common[0]) < most:
        notes.append(
            f"{len(common[0])} of {most} utterances are in all experiments; the others are left "
            "out of the comparison."
        )
    if not all(is_same):
        notes.append(
            f"{is_same.count(False)} utterances have other references in one experiment than in "
            "another, and are left out of the comparison."
        )
    return dict(zip(decodes, kept)), notes


def curves_section(exp_dirs: Sequence[Path]) -> Section:
    """Returns the section of training curves of the experiments that have any."""
    section = Section("training", "Training curves")
    histories = {}
    for exp_dir in exp_dirs:
        name = exp_dir.name if exp_dir.name not in histories else str(exp_dir)
        try:
            histories[name] = read_history(exp_dir)
        except UserError as e:
            section.notes.append(f"No curves of {exp_dir.name}: {e}.")
    try:
        drawing = draw_curves(histories)
    except (KeyError, TypeError) as e:
        section.notes.append(f"No curves: a history.json lacks {e}.")
        return section
    if histories:
        best = {name: min(r["wer"] for r in records) for name, records in histories.items()}
        found = ", ".join(f"{name} {wer:.2f} %" for name, wer in best.items())
        section.finding = f"Best validation WER: {found}."
        section.figures.append(
            Figure("training", drawing, "Loss and WER by epoch.", section.finding)
        )
        section.data = {"best_validation_wer": best}
    return section


def changed_words(
    first: Sequence[Record], second: Sequence[Record]
) -> tuple[Counter[str], Counter[str], dict[str, list[str]]]:
    """Returns how often each reference word was mended and broken by the second decode of the same
    utterances; the ids of the utterances where either happened.

    Words that were inserted have no place in the reference and do not count here.
    """
    mended: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    where: dict[str, list[str]] = defaultdict(list)
    for a, b in zip(first, second):
        places = [[w for w in record.aligned if w.ref != GAP] for record in (a, b)]
        for before, after in zip(*places):
            was_right, is_right = before.kind == "correct", after.kind == "correct"
            if was_right == is_right:
                continue
            (mended if is_right else broken)[before.ref] += 1
            where[before.ref].append(a.id)
    return mended, broken, where


def _rates(decodes: Decodes, differences: Mapping[str, Difference | None]) -> Table:
    columns = [Column("experiment"), Column("WER", "%", 2), Column("from", "%", 2),
               Column("to", "%", 2), Column("difference", "points", 2),
               Column("from", "points", 2), Column("to", "points", 2), Column("p", "", 4),
               Column("at p < 0.05")]  # fmt: skip
    rows = []
    for name, records in decodes.items():
        rate, d = word_errors(records), differences.get(name)
        more = [d.points, d.low, d.high, d.p, d.verdict] if d else [None] * 5
        rows.append([name, rate.percent, rate.low, rate.high, *more])
    caption = f"Differences from {next(iter(decodes))}; below 0 is better."
    return Table("Word error rates on the same utterances", columns, rows, caption)


def _finding(first: str, differences: Mapping[str, Difference | None]) -> str:
    known = {name: d for name, d in differences.items() if d}
    if not known:
        return "The references hold no word: there is no WER."
    parts = []
    for name, d in known.items():
        if d.verdict == "no difference":
            parts.append(f"{name} does not differ significantly from {first} (p = {d.p:.3f})")
        else:
            parts.append(f"{name} is {d.verdict} than {first} by {abs(d.points):.2f} points "
                         f"(p = {d.p:.4f})")  # fmt: skip
    return "; ".join(parts) + "."


def _plain(decodes: Decodes, differences: Mapping[str, Difference | None]) -> list[dict]:
    found = []
    for name, records in decodes.items():
        rate, d = word_errors(records), differences.get(name)
        entry = {"name": name, "utterances": len(records), "errors": rate.errors,
                 "words": rate.num_ref}  # fmt: skip
        if d:
            entry.update(difference=d.points, low=d.low, high=d.high, p=d.p)
        found.append(entry)
    return found


def _add_changes(
    section: Section,
    first: tuple[str, Sequence[Record]],
    second: tuple[str, Sequence[Record]],
    audio: AudioSet | None,
) -> None:
    """Adds the words and the utterances that a second decode mended and broke."""
    (a_name, a), (b_name, b) = first, second
    mended, broken, where = changed_words(a, b)
    words = sorted(where, key=lambda w: (-abs(mended[w] - broken[w]), -mended[w] - broken[w], w))
    columns = [Column("word"), Column("mended", "", 0), Column("broken", "", 0),
               Column("net", "", 0), Column("utterances")]  # fmt: skip
    rows = [
        [w, mended[w], broken[w], mended[w] - broken[w], ", ".join(dict.fromkeys(where[w][:5]))]
        for w in words[:NUM_WORDS]
    ]
    title = f"Words that {b_name} mended and broke, against {a_name}"
    totals = f"{mended.total()} mended and {broken.total()} broken in all; insertions aside."
    if rows:
        section.tables.append(Table(title, columns, rows, totals, shown=15))
    pairs = [(x, y) for x, y in zip(a, b) if x.num_errors != y.num_errors]
    pairs.sort(key=lambda p: (-abs(p[0].num_errors - p[1].num_errors), p[0].id))
    pairs = pairs[:NUM_CHANGED]
    if not pairs:
        return
    heard, notes = snippets(audio, {x.id for x, _ in pairs}) if audio else ({}, [])
    section.notes += notes
    shown = []
    for x, y in pairs:
        sound = heard.get(x.id, b"")
        shown.append(Utterance(x.id, x.aligned, f"{a_name}: {x.about}", sound, MEDIA_TYPE))
        shown.append(Utterance(y.id, y.aligned, f"{b_name}: {y.about}"))
    section.utterances.append(Utterances(f"Changed most: {a_name}, then {b_name}", shown))
