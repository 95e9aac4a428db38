"""The accuracy of a classifier, and its result files.

For a test set and a suffix that names the settings, ``write_results`` leaves

    accuracy-<set>-<suffix>.txt      accuracy of all, by duration and by label
    labels-<set>-<suffix>.jsonl      one JSON object per utterance: reference, label found, its
                                     probability, seconds until it was, and facts of the utterance
    confusions-<set>-<suffix>.tsv    how often which label was found for which
    confusions-<set>-<suffix>.png    the same as a picture

An utterance that could not be read, or whose label the model does not have, counts as wrong.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xlsr_transducer.core.files import replacing
from xlsr_transducer.core.tables import text_table
from xlsr_transducer.recognition.classifying import Decisions
from xlsr_transducer.recognition.share import Accuracy

# Durations in seconds, and their names: those of XLS-R's evaluation on VoxLingua107.
DURATIONS = ((0.0, 5.0, "0 to 5 s"), (5.0, 20.0, "5 to 20 s"), (20.0, math.inf, "above 20 s"))
NONE = "(unread)"  # in the place of a label
MOST_SHOWN, MOST_PRINTED, MOST_NAMED = 60, 25, 5  # labels in a picture, a table, a warning


@dataclass(frozen=True)
class Outcome:
    """Reference and label found of an utterance."""

    id: str
    ref: str
    hyp: str  # NONE if it could not be read
    seconds: float


def outcomes(decisions: Decisions) -> list[Outcome]:
    """Returns the outcome of every utterance of a set, by id."""
    found = []
    for name, ref in sorted(decisions.references.items()):
        hyp = decisions.found[name].label if name in decisions.found else NONE
        found.append(Outcome(name, ref, hyp, decisions.seconds(name)))
    return found


def accuracy(of: Iterable[Outcome]) -> Accuracy:
    """Counts outcomes."""
    right = [outcome.ref == outcome.hyp for outcome in of]
    return Accuracy(sum(right), len(right))


def by_duration(of: Sequence[Outcome]) -> list[tuple[str, Accuracy]]:
    """Returns the accuracy of all, and of the durations that there are."""
    parts = [("all", accuracy(of))]
    for above, up_to, name in DURATIONS:
        chosen = [o for o in of if above < o.seconds <= up_to or (o.seconds == above == 0.0)]
        if chosen:
            parts.append((name, accuracy(chosen)))
    return parts


def unknown_labels(of: Iterable[Outcome], labels: Sequence[str]) -> Counter[str]:
    """Counts the utterances of reference labels that the model does not have."""
    known = set(labels)
    return Counter(o.ref for o in of if o.ref not in known)


def duration_table(of: Sequence[Outcome], decisions: Decisions) -> str:
    """Returns the accuracy by duration; of early decisions, also how long they took."""
    heading = ["utterances of", "number", "correct", "accuracy % [95 %]"]
    rows = [[name, str(a.total), str(a.correct), str(a)] for name, a in by_duration(of)]
    table = text_table([heading, *rows])
    if decisions.by_chunk and decisions.found:
        early = sum(d.is_sure for d in decisions.found.values())
        mean = sum(d.seconds for d in decisions.found.values()) / len(decisions.found)
        table += (
            f"\n{early} of {len(decisions.found)} were sure enough before they ended; mean time "
            f"to a decision {mean:.2f} s"
        )
    return table


def label_table(of: Sequence[Outcome]) -> str:
    """Returns the accuracy of each reference label, the worst first, and its usual confusion."""
    rows = []
    for label in {o.ref for o in of}:
        own = [o for o in of if o.ref == label]
        wrong = Counter(o.hyp for o in own if o.hyp != label).most_common(1)
        confusion = f"{wrong[0][0]} ({wrong[0][1]})" if wrong else ""
        rows.append((accuracy(own), label, confusion))
    rows.sort(key=lambda row: (row[0].percent, row[1]))
    cells = [(label, str(a.total), str(a.correct), str(a), c) for a, label, c in rows]
    return text_table([("label", "number", "correct", "accuracy % [95 %]", "taken for"), *cells])


def report(name: str, decisions: Decisions, labels: Sequence[str]) -> str:
    """Returns the tables of a set for the terminal; warns of labels that the model does not have.

    Args:
      labels: of the model.
    """
    found = outcomes(decisions)
    unknown = unknown_labels(found, labels)
    if unknown:
        few = ", ".join(f"{label!r} ({n})" for label, n in unknown.most_common(MOST_NAMED))
        more = ", ..." if len(unknown) > MOST_NAMED else ""
        logging.warning(f"{name}: labels the model does not have, counted as wrong: {few}{more}")
    tables = [f"{name}:", duration_table(found, decisions)]
    if len({o.ref for o in found}) <= MOST_PRINTED:
        tables += ["", label_table(found)]
    return "\n".join(tables) + "\n"


def write_results(folder: Path, name: str, suffix: str, decisions: Decisions) -> Accuracy:
    """Writes the result files of a set; returns its accuracy.

    Args:
      name: of the set, in ``folder`` (see ``name_in_results``). suffix: names the settings.
    """
    found = outcomes(decisions)
    counts = Counter((o.ref, o.hyp) for o in found)
    texts = {
        f"accuracy-{name}-{suffix}.txt": _summary(found, decisions),
        f"labels-{name}-{suffix}.jsonl": _lines(name, found, decisions),
        f"confusions-{name}-{suffix}.tsv": _confusions(counts),
    }
    picture = f"confusions-{name}-{suffix}.png"
    with replacing(*(folder / file for file in (*texts, picture))) as temporary:
        for path, text in zip(temporary, texts.values()):
            path.write_text(text, encoding="utf-8")
        draw_confusions(counts, temporary[-1])
    return accuracy(found)


def _summary(found: Sequence[Outcome], decisions: Decisions) -> str:
    parts = [duration_table(found, decisions), label_table(found)]
    if decisions.unread:
        reasons = (f"{i}: {' '.join(u.reason.split())}" for i, u in decisions.unread.items())
        parts.append("\n".join(["could not be read, and count as wrong:", *sorted(reasons)]))
    return "\n\n".join(parts) + "\n"


def _lines(name: str, found: Sequence[Outcome], decisions: Decisions) -> str:
    lines = []
    for outcome in found:
        entry = {"set": name, "id": outcome.id, "ref": outcome.ref, "hyp": outcome.hyp}
        decision = decisions.found.get(outcome.id)
        if decision is not None:
            entry["probability"] = round(decision.probability, 6)
            entry["decided"] = round(decision.seconds, 3)
        entry.update(decisions.facts.get(outcome.id, {}))
        if outcome.id in decisions.unread:
            entry["unread"] = decisions.unread[outcome.id].reason
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    return "".join(lines)


def _confusions(counts: Counter[tuple[str, str]]) -> str:
    """One line per pair that occurs: reference, label found, utterances; the wrong ones first."""
    pairs = sorted(counts.items(), key=lambda x: (x[0][0] == x[0][1], -x[1], x[0]))
    lines = [f"{_cell(ref)}\t{_cell(hyp)}\t{count}\n" for (ref, hyp), count in pairs]
    return "".join(["reference\tfound\tutterances\n", *lines])


def _cell(label: str) -> str:
    return " ".join(label.split())


def draw_confusions(counts: Counter[tuple[str, str]], path: Path) -> None:
    """Draws which share of each reference label was found as which label, as PNG.

    Of many labels, those with the most errors are shown.
    """
    from matplotlib.figure import Figure

    labels = sorted({label for pair in counts for label in pair})
    title = "share of each label's utterances"
    if len(labels) > MOST_SHOWN:
        errors: Counter[str] = Counter()
        for (ref, hyp), count in counts.items():
            errors.update({ref: count, hyp: count} if ref != hyp else {})
        worst = sorted(labels, key=lambda label: (-errors[label], label))
        title += f"; the {MOST_SHOWN} of {len(labels)} labels with the most errors"
        labels = sorted(worst[:MOST_SHOWN])
    place = {label: i for i, label in enumerate(labels)}
    totals: Counter[str] = Counter()
    shares = np.zeros((len(labels), len(labels)))
    for (ref, hyp), count in counts.items():
        totals[ref] += count
        if ref in place and hyp in place:
            shares[place[ref], place[hyp]] = count
    shares /= np.array([max(totals[label], 1) for label in labels])[:, None]
    side = min(max(3.5, 1.5 + 0.22 * len(labels)), 16.0)
    figure = Figure(figsize=(side + 1, side), layout="tight")
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    size = 8 if len(labels) <= 25 else 6
    axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size)
    axes.set_yticks(range(len(labels)), labels, fontsize=size)
    axes.set(xlabel="found", ylabel="reference")
    axes.set_title(title, fontsize=9)
    if len(labels) <= 12:
        for row, column in zip(*np.nonzero(shares)):
            share = shares[row, column]
            axes.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=size,
                      color="white" if share > 0.5 else "black")  # fmt: skip
    figure.colorbar(image, fraction=0.046)
    figure.savefig(path, dpi=120, format="png")
