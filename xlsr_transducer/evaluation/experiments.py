"""All experiments of a folder in one table: what differs in their settings, and in their WER."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.evaluation.normalizing import Normalizer
from xlsr_transducer.evaluation.records import (
    Record,
    ResultFiles,
    find_results,
    shared,
    slug,
    word_errors,
)
from xlsr_transducer.evaluation.section import Column, Section, Table
from xlsr_transducer.evaluation.significance import METHOD, compare

SETTINGS = "settings.json"
NUM_RESULTS = 100  # rows of a set's table
# Where a run lies and how it is watched is no setting of an experiment.
UNIMPORTANT = ("exp_dir", "tensorboard", "num_workers", "keep", "save_every_n", "resume")


def experiments_in(folder: Path) -> list[Path]:
    """Returns the experiments of a folder: it itself and those below it that have results.

    Raises:
      UserError: there are none.
    """
    found = sorted(p for p in [folder, *folder.glob("*/")] if _is_experiment(p))
    if not found:
        raise UserError(
            f"{folder}: no experiment with results here; decode writes recogs-*.txt into the "
            "folder of the experiment"
        )
    return found


def _is_experiment(folder: Path) -> bool:
    is_made = any((folder / name).is_file() for name in (SETTINGS, "baseline.json"))
    return is_made and next(folder.rglob("recogs-*.txt"), None) is not None


@dataclasses.dataclass(frozen=True)
class Decode:
    """One decode of an experiment."""

    experiment: str
    files: ResultFiles
    records: Sequence[Record]

    @property
    def settings(self) -> str:
        """Method and settings, as folder and file name have them."""
        return f"{self.files.method}: {self.files.suffix}"


def experiments_section(
    exp_dirs: Sequence[Path], set_name: str, normalizer: Normalizer
) -> Section:
    """Returns the section with all decodes of a set, of all experiments, best first."""
    name = "-".join(filter(None, ["experiments", slug(set_name)]))
    section = Section(name, f"All experiments: {set_name}")
    decodes = []
    for exp_dir in exp_dirs:
        for files in find_results(exp_dir, set_name):
            try:
                decodes.append(Decode(exp_dir.name, files, files.read(normalizer)))
            except UserError as e:
                section.notes.append(f"Left out: {e}.")
    decodes = [d for d in decodes if d.records]
    if not decodes:
        section.notes.append(f"No experiment has results of {set_name}.")
        return section
    rates = {id(d): word_errors(d.records) for d in decodes}
    decodes.sort(key=lambda d: (rates[id(d)].percent, d.experiment, d.settings))
    if len(decodes) > NUM_RESULTS:
        section.notes.append(f"The best {NUM_RESULTS} of {len(decodes)} decodes are shown.")
        decodes = decodes[:NUM_RESULTS]
    best = decodes[0]
    columns = [Column("experiment"), Column("decoded with"), Column("utterances", "", 0),
               Column("WER", "%", 2), Column("from", "%", 2), Column("to", "%", 2),
               Column("to the best", "points", 2), Column("p", "", 4)]  # fmt: skip
    rows = []
    for decode in decodes:
        rate = rates[id(decode)]
        difference = None
        if decode is not best:
            difference = compare(*shared([best.records, decode.records]))
        more = [difference.points, difference.p] if difference else [None, None]
        rows.append([decode.experiment, decode.settings, len(decode.records), rate.percent,
                     rate.low, rate.high, *more])  # fmt: skip
    caption = "The difference and its p are those to the first row, on the utterances of both."
    section.tables.append(Table("Word error rates, best first", columns, rows, caption, (0,)))
    section.finding = (
        f"Lowest WER of {len(decodes)} decodes: {rates[id(best)]} %, {best.experiment}, "
        f"{best.settings}."
    )
    section.paragraphs += [
        METHOD,
        "The best of many decodes of one set looks better than it is: choose on another set.",
    ]
    settings = _settings_table(exp_dirs, section)
    if settings:
        section.tables.append(settings)
    keys = [column.title for column in columns[:6]] + ["difference", "p"]
    section.data = {"decodes": [dict(zip(keys, row)) for row in rows]}
    return section


def _settings_table(exp_dirs: Sequence[Path], section: Section) -> Table | None:
    """Returns the settings that are not the same in all experiments."""
    found = {}
    for exp_dir in exp_dirs:
        path = exp_dir / SETTINGS
        if not path.is_file():
            continue
        try:
            found[exp_dir.name] = flat(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, AttributeError) as e:
            section.notes.append(f"{path} is damaged ({e}): its settings are not shown.")
    rows = differing(found)
    if not rows:
        return None
    columns = [Column("setting"), *(Column(name) for name in found)]
    return Table("Settings that differ", columns, rows, "As settings.json of each has them.")


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by their dotted names."""
    found = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found


def differing(settings: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Returns a row for each setting that differs: its name, and its value in each experiment."""
    names = dict.fromkeys(name for values in settings.values() for name in values)
    rows = []
    for name in names:
        values = [values.get(name) for values in settings.values()]
        if name.split(".")[-1] in UNIMPORTANT or all(v == values[0] for v in values):
            continue
        rows.append([name, *("" if value is None else str(value) for value in values)])
    return rows
