"""The tables of what normalisation changed: DATA/manifests/text_changes*.tsv, text_undecided*.tsv.

text_changes has a row for each utterance that changed: split, utterance, kinds of change, text
before and after. text_undecided has one for each piece of a text that has several correct
readings. Both are bounded; what lies beyond is counted in the log.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from xlsr_transducer.core.files import replacing
from xlsr_transducer.core.tables import text_table
from xlsr_transducer.data.normalizers import Report

MOST_ROWS = 100_000  # of each table, and of changes of mere characters
_CHANGES = ("split", "utterance", "kinds", "before", "after")
_UNDECIDED = ("split", "utterance", "kind", "before", "after", "text")


class ChangeTables:
    """Two tables that are being written, and the counts of all that belongs into them."""

    def __init__(self, changes: TextIO, undecided: TextIO) -> None:
        self._changes, self._undecided = changes, undecided
        self._rows: Counter[str] = Counter()
        self.utterances: Counter[tuple[str, str]] = Counter()  # (split, kind)
        self.unsure: Counter[tuple[str, str]] = Counter()
        _write(changes, _CHANGES)
        _write(undecided, _UNDECIDED)

    def add(self, split: str, utterance: str, before: str, after: str, report: Report) -> None:
        """Takes an utterance's text before and after, with the report of its normalisation."""
        kinds = report.kinds
        self.utterances.update((split, kind) for kind in kinds)
        if kinds and self._has_room("words" if report.changes else "characters"):
            _write(self._changes, (split, utterance, ", ".join(kinds), before, after))
        for change in report.changes:
            if not change.is_sure:
                self.unsure[split, change.kind] += 1
                if self._has_room("undecided"):
                    row = (split, utterance, change.kind, change.before, change.after, before)
                    _write(self._undecided, row)

    def _has_room(self, table: str) -> bool:
        self._rows[table] += 1
        return self._rows[table] <= MOST_ROWS

    def log(self, changes: Path, undecided: Path) -> None:
        """Logs how many utterances have each kind of change, and where the tables lie."""
        rows = [("split", "change", "utterances", "undecided")]
        for (split, kind), count in sorted(self.utterances.items()):
            unsure = self.unsure[split, kind]
            rows.append((split, kind, str(count), str(unsure) if unsure else ""))
        if len(rows) > 1:
            logging.info("changes of the text, in %s:\n%s", changes, text_table(rows))
        if self.unsure:
            logging.warning(
                "%d pieces of text have several correct readings: look at %s",
                self.unsure.total(), undecided,
            )  # fmt: skip
        for table, count in self._rows.items():
            if count > MOST_ROWS:
                logging.warning("changes (%s): %d more than the table holds", table,
                                count - MOST_ROWS)  # fmt: skip


@contextlib.contextmanager
def change_tables(folder: Path, suffix: str = "") -> Iterator[ChangeTables]:
    """Inside, the tables are written; they get their names, and are logged, if all went well.

    Args:
      suffix: of the names, before ``.tsv``.
    """
    paths = [folder / f"text_{name}{suffix}.tsv" for name in ("changes", "undecided")]
    with replacing(*paths) as temporary, contextlib.ExitStack() as files:
        opened = [files.enter_context(open(path, "w", encoding="utf-8")) for path in temporary]
        tables = ChangeTables(*opened)
        yield tables
    tables.log(*paths)


def _write(table: TextIO, cells: tuple[str, ...]) -> None:
    table.write("\t".join(" ".join(cell.split()) for cell in cells) + "\n")
