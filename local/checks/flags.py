"""Flags: what is odd about utterances, counted by kind and named in DATA/flagged_SPLIT.tsv."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from local.checks.utterances import Utterances
from xlsr_transducer.core.files import replacing
from xlsr_transducer.core.tables import text_table

# kind -> what the value is, or how many decimals it has.
TEXT_KINDS = {
    "fast": "tokens or letters per second",
    "slow": "tokens or letters per second",
    "other-script": "% of the letters",
    "other-language": "log-likelihood ratio",
    "text-in-train": "",
    "text-and-speaker-in-train": "",
    "overlap": "seconds",
}
AUDIO_KINDS = {
    "unreadable": "",
    "silent": "dBFS",
    "quiet": "dBFS",
    "leading-silence": "seconds",
    "trailing-silence": "seconds",
    "constant": "seconds",
    "clipped": "% of the samples",
    "dc-offset": "% of full scale",
    "repeated": "",
}
KINDS = {**TEXT_KINDS, **AUDIO_KINDS}
_HEADING = ("utterance", "kind", "value", "detail", "list", "line")


@dataclasses.dataclass(frozen=True)
class _Found:
    """Flags of one kind; memory: 12 bytes for each."""

    kind: str
    rows: np.ndarray  # (n,) int64
    values: np.ndarray  # (n,) float32
    detail: Callable[[int], str]  # of a place in the arrays


class Flags:
    """The flags of a corpus."""

    def __init__(self, utterances: Utterances) -> None:
        self.utterances = utterances
        self._found: list[_Found] = []

    def add(
        self,
        kind: str,
        rows: np.ndarray,
        values: np.ndarray | None = None,
        detail: Callable[[int], str] = lambda i: "",
    ) -> None:
        """Flags rows.

        Args:
          kind: one of ``KINDS``. values: (n,) what ``KINDS`` says.
          detail: called with a place in ``rows`` when the table is written.
        """
        if kind not in KINDS:
            raise ValueError(f"no kind of flags: {kind}")
        if values is None:
            values = np.full(len(rows), np.nan)
        self._found.append(_Found(kind, np.asarray(rows), values.astype(np.float32), detail))

    def add_pairs(
        self, kind: str, rows: np.ndarray, others: np.ndarray, values: np.ndarray | None = None
    ) -> None:
        """Flags rows because of ``others``, which the detail names."""
        name = self.utterances.name
        self.add(kind, rows, values, lambda i: name(int(others[i]), beside=int(rows[i])))

    def count(self, kind: str, split: str) -> int:
        """Returns how many utterances of a split have a flag."""
        is_here = self.utterances.rows_of([split])
        rows = [found.rows for found in self._found if found.kind == kind]
        return int(is_here[np.unique(np.concatenate(rows))].sum()) if rows else 0

    def write(self, data_dir: Path) -> None:
        """Writes the table of each split, in the order of its utterances."""
        calls = np.repeat(np.arange(len(self._found)), [len(f.rows) for f in self._found])
        rows = np.concatenate([np.zeros(0, np.int64), *(f.rows for f in self._found)])
        places = np.concatenate([np.zeros(0, np.int64), *(_places(f) for f in self._found)])
        order = np.argsort(rows, kind="stable")
        for split in self.utterances.splits:
            is_here = self.utterances.rows_of([split])
            with replacing(flagged_path(data_dir, split)) as [temporary]:
                with open(temporary, "w", encoding="utf-8") as f:
                    f.write("\t".join(_HEADING) + "\n")
                    for k in order[is_here[rows[order]]]:
                        f.write(self._line(self._found[calls[k]], int(places[k])))

    def _line(self, found: _Found, place: int) -> str:
        row = self.utterances[int(found.rows[place])]
        value = found.values[place]
        number = "" if np.isnan(value) else f"{value:.2f}"
        cells = [row.id, found.kind, number, found.detail(place), row.list, str(row.line or "")]
        return "\t".join(" ".join(cell.split()) for cell in cells) + "\n"


def _places(found: _Found) -> np.ndarray:
    return np.arange(len(found.rows))


def flagged_path(data_dir: Path, split: str) -> Path:
    """Returns the table of a split's flags."""
    return data_dir / f"flagged_{split}.tsv"


def flag_table(
    flags: Flags, num_read: dict[str, int], more: Sequence[tuple[str, dict[str, str]]]
) -> str:
    """Returns a table of the kinds by split.

    Args:
      num_read: of each split, the utterances whose audio was read, of which those of
        ``AUDIO_KINDS`` are.
      more: further rows: a label, and the cell of each split.
    """
    u = flags.utterances
    cells = [["flagged utterances", *u.splits]]
    totals = {split: int(u.rows_of([split]).sum()) for split in u.splits}
    for kind in KINDS:
        of = num_read if kind in AUDIO_KINDS else totals
        counts = [(flags.count(kind, split), of[split]) for split in u.splits]
        cells.append([kind, *(_share(n, total) for n, total in counts)])
    cells += [[label, *(values[split] for split in u.splits)] for label, values in more]
    table = text_table(cells, is_right=True, is_ruled=False)
    return f"{table}\nnamed in flagged_SPLIT.tsv; docs/corpus_checks.md explains the kinds\n"


def _share(count: int, total: int) -> str:
    if not total:
        return "-"
    return f"{count} ({100 * count / total:.2f} %)" if count else "0"
