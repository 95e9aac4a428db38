"""WER by speaker, language, duration, speaking rate, level, and any custom field of the
manifest."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.evaluation.drawing import drawing, styled
from xlsr_transducer.evaluation.records import Record, slug, word_errors
from xlsr_transducer.evaluation.section import Column, Figure, Section, Table
from xlsr_transducer.recognition.audio_sets import AudioSet
from xlsr_transducer.recognition.scoring import ErrorRate

NUM_GROUPS = 30  # shown of each kind
MAX_VALUES = 10  # of a numeric field; more are put into quarters
DURATIONS = (2.0, 5.0, 10.0, 20.0)  # seconds: edges of the groups
LEVELS = (-50.0, -40.0, -30.0, -20.0)  # dBFS
FEWEST_UTTERANCES, FEWEST_ERRORS = 20, 5  # of a group that may be called hard, and of the rest
SILENCE = -120.0  # dBFS of audio that is all zeros


@dataclasses.dataclass(frozen=True)
class Group:
    """Utterances that have something in common."""

    name: str
    records: Sequence[Record]
    rate: ErrorRate

    @classmethod
    def of(cls, name: str, records: Sequence[Record]) -> Group:
        return cls(name, records, word_errors(records))


def groups_section(
    records: Sequence[Record],
    audio: AudioSet | None = None,
    by: Sequence[str] = (),
    label: str = "",
) -> Section:
    """Returns the section of WER by group.

    Args:
      audio: the set, whose level is measured; without it there are no groups of level.
      by: custom fields.
    """
    name = "-".join(filter(None, ["groups", slug(label)]))
    section = Section(name, f"Who and what is hard: {label}")
    if not records:
        section.notes.append("There are no utterances.")
        return section
    levels, notes = levels_of(audio) if audio else ({}, [])
    section.notes += notes
    wanted: dict[str, Callable[[], list[Group]]] = {
        "speaker": lambda: by_value(records, {r.id: r.speaker for r in records if r.speaker}),
        "duration": lambda: by_edges(
            records, {r.id: r.seconds for r in records if r.seconds}, DURATIONS, "s"
        ),
        "speaking rate": lambda: by_quarters(records, speaking_rates(records), "words/s"),
        "level": lambda: by_edges(records, levels, LEVELS, "dBFS"),
    }
    languages = {r.id: r.language for r in records if r.language}
    if len(set(languages.values())) > 1:
        wanted["language"] = lambda: by_value(records, languages)
    for field in (name for name in by if name not in wanted):
        values = {r.id: r.custom[field] for r in records if field in r.custom}
        wanted[field] = lambda values=values: by_field(records, values)
    found: dict[str, list[Group]] = {}
    for what, make in wanted.items():
        groups = make()
        if not groups:
            section.notes.append(_missing(what, what in by, audio is not None))
            continue
        if len(groups) > max(NUM_GROUPS, len(records) / 2):
            section.notes.append(f"WER by {what}: nearly every utterance has a value of its own.")
            continue
        found[what] = groups
        _add(section, what, groups, len(records))
    section.finding = _hardest(found) or "No group is harder than the rest beyond the intervals."
    return section


def speaking_rates(records: Sequence[Record]) -> dict[str, float]:
    """Returns words of the reference per second, by id."""
    return {r.id: len(r.ref_words) / r.seconds for r in records if r.seconds and r.ref_words}


def levels_of(audio: AudioSet) -> tuple[dict[str, float], list[str]]:
    """Returns the level of each utterance in dB of full scale (rms, without its mean); notes."""
    found, num_unread = {}, 0
    for cut in audio.cuts:
        try:
            found[cut.id] = level(read_audio(cut))
        except UserError:
            num_unread += 1
    notes = [f"The level of {num_unread} utterances that cannot be read is unknown."]
    return found, notes if num_unread else []


def level(samples: np.ndarray) -> float:
    """Returns the rms of (n,) samples in dB, where 0 is a square wave of full scale."""
    power = float(np.var(samples.astype(np.float64))) if len(samples) else 0.0
    return max(10 * math.log10(power), SILENCE) if power else SILENCE


def by_value(records: Sequence[Record], values: Mapping[str, Any]) -> list[Group]:
    """Returns a group for each value, highest WER first; utterances without one are left out."""
    members = defaultdict(list)
    for record in records:
        if record.id in values:
            members[str(values[record.id])].append(record)
    groups = [Group.of(name, found) for name, found in members.items()]
    return sorted(groups, key=lambda g: (-g.rate.percent, g.name))


def by_field(records: Sequence[Record], values: Mapping[str, Any]) -> list[Group]:
    """Returns the groups of a custom field: by value, or by quarters if it has many numbers."""
    kinds = {type(value) for value in values.values()}
    if kinds and kinds <= {int, float} and len(set(values.values())) > MAX_VALUES:
        return by_quarters(records, values, "")
    return by_value(records, values)


def by_quarters(records: Sequence[Record], values: Mapping[str, float], unit: str) -> list[Group]:
    """Returns four groups of as many utterances each, by the quartiles of the values."""
    if not values:
        return []
    edges = np.quantile(list(values.values()), (0.25, 0.5, 0.75))
    return by_edges(records, values, sorted(set(edges.tolist())), unit)


def by_edges(
    records: Sequence[Record], values: Mapping[str, float], edges: Sequence[float], unit: str
) -> list[Group]:
    """Returns the groups between edges, lowest values first; an edge belongs to those above it."""
    members: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        if record.id in values:
            members[int(np.searchsorted(edges, values[record.id], side="right"))].append(record)
    shown = [f"{edge:.3g}" for edge in edges]
    names = [f"below {shown[0]}"] if edges else ["all"]
    names += [f"{low} to {high}" for low, high in zip(shown, shown[1:])]
    names += [f"{shown[-1]} and more"] if edges else []
    return [Group.of(f"{names[i]} {unit}".strip(), members[i]) for i in sorted(members)]


def _missing(what: str, is_custom: bool, has_audio: bool) -> str:
    if is_custom:
        return f"No utterance of the manifest has the custom field {what!r}."
    if what == "level" and not has_audio:
        return "WER by level: the audio is not at hand."
    return f"WER by {what}: no utterance tells its {what}."


def _add(section: Section, what: str, groups: Sequence[Group], num_records: int) -> None:
    """Adds the table, the picture and the values of one kind of group."""
    columns = [Column(what), Column("utterances", "", 0), Column("words", "", 0),
               Column("WER", "%", 2), Column("from", "%", 2), Column("to", "%", 2),
               Column("substituted", "", 0), Column("inserted", "", 0),
               Column("deleted", "", 0)]  # fmt: skip
    rows = [
        [g.name, len(g.records), g.rate.num_ref, g.rate.percent, g.rate.low, g.rate.high,
         g.rate.substitutions, g.rate.insertions, g.rate.deletions]
        for g in groups
    ]  # fmt: skip
    single = sum(len(g.records) == 1 for g in groups)
    caption = "From, to: 95 % bootstrap interval over the group's utterances."
    if single:
        caption += f" Groups of one utterance, which have no interval: {single}."
    left_out = num_records - sum(len(g.records) for g in groups)
    if left_out:
        section.notes.append(f"WER by {what}: {left_out} utterances without one are left out.")
    if any(g.rate.num_ref and not g.rate.errors for g in groups):
        caption += " Of a group without errors the interval is too narrow: none can be drawn."
    section.tables.append(Table(f"WER by {what}", columns, rows, caption, shown=NUM_GROUPS))
    if len(groups) > 1:
        section.figures.append(_picture(section.name, what, groups[:NUM_GROUPS]))
    section.data[what] = [
        {"group": g.name, "utterances": len(g.records), "words": g.rate.num_ref,
         "wer": _finite(g.rate.percent), "low": _finite(g.rate.low),
         "high": _finite(g.rate.high)}
        for g in groups
    ]  # fmt: skip


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


@styled
def _picture(name: str, what: str, groups: Sequence[Group]) -> Figure:
    """Points with their intervals, a line for each group."""
    figure, [[axis]] = drawing(5, 0.9 + 0.28 * len(groups))
    for row, group in enumerate(groups):
        rate = group.rate
        if math.isfinite(rate.percent):
            axis.plot(rate.percent, row, "o", ms=5, color="C0")
        if math.isfinite(rate.high) and len(group.records) > 1:
            axis.plot([rate.low, rate.high], [row, row], color="C0", lw=1.5)
    axis.set_yticks(range(len(groups)), [g.name for g in groups])
    axis.set(xlabel="WER (%)", ylim=(len(groups) - 0.5, -0.5), xlim=(0, None))
    axis.grid(axis="y", visible=False)
    shown = ", ".join(f"{g.name}: {g.rate.percent:.1f} %" for g in groups[:8])
    caption, alt = f"WER by {what}, with 95 % intervals.", f"WER by {what}: {shown}"
    return Figure(f"{name}-{slug(what) or 'field'}", figure, caption, alt)


def _hardest(found: Mapping[str, Sequence[Group]]) -> str:
    """Names the group whose WER lies farthest above that of all other utterances, if there is one
    that does so beyond both intervals, with enough utterances and errors on both sides."""
    harder: list[tuple[float, str]] = []
    for what, groups in found.items():
        for group in groups:
            rest = [r for g in groups if g is not group for r in g.records]
            sides = (group.rate, word_errors(rest))
            sizes = (len(group.records), len(rest))
            if min(sizes) < FEWEST_UTTERANCES or min(s.errors for s in sides) < FEWEST_ERRORS:
                continue
            if sides[0].low > sides[1].high:
                text = (
                    f"By {what}, {group.name} is harder: {sides[0]} % WER, {sides[1]} % elsewhere."
                )
                harder.append((sides[0].percent - sides[1].percent, text))
    return max(harder)[1] if harder else ""
