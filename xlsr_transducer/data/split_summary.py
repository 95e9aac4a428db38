"""What a split has: how many utterances, which of them are left out and why, which groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import write_text
from xlsr_transducer.data.index import Corpus


class Names(Sequence):
    """Ids of utterances, which are read from the manifest when they are asked for."""

    def __init__(self, corpus: Corpus, rows: np.ndarray):
        self.corpus, self.rows = corpus, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Any) -> Any:
        rows = self.rows[which]
        return [self.corpus.id(row) for row in rows] if rows.ndim else self.corpus.id(rows)


@dataclasses.dataclass(frozen=True)
class SplitSummary:
    """How many utterances some splits have, and which of them are left out."""

    utterances: int
    seconds: float  # in an epoch; of pauses that are drawn, what is expected
    left_out: dict[str, Sequence[str]]  # reason -> ids

    def write_left_out(self, path: Path) -> None:
        """Writes the table of all utterances that were left out."""
        rows = [f"{i}\t{reason}\n" for reason, ids in self.left_out.items() for i in ids]
        write_text(path, "utterance\treason\n" + "".join(rows))


def kept_rows(count: int, left_out: dict[str, np.ndarray]) -> np.ndarray:
    """Returns which of ``count`` utterances are not left out, as (N,) bool.

    Args:
      left_out: reason -> rows.
    """
    kept = np.ones(count, dtype=bool)
    for rows in left_out.values():
        kept[rows] = False
    return kept


def groups_of(
    corpus: Corpus, left_out: dict[str, np.ndarray], where: str, group_by: str
) -> list[str]:
    """Returns the groups of the utterances that are not left out, in alphabetical order.

    Args:
      left_out: reason -> rows. where: the splits, for errors. group_by: what the groups are.

    Raises:
      UserError: some of these utterances have no group, or all of a group are left out.
    """
    numbers, names = corpus.numbered("groups")
    kept = kept_rows(len(corpus), left_out)
    nowhere = np.flatnonzero(kept & (numbers == names.index("")))
    if len(nowhere):
        ids = ", ".join(Names(corpus, nowhere)[:5])
        raise UserError(
            f"{where}: {len(nowhere)} utterances have no {group_by}, and so no group that has a "
            f"weight: {ids}; give each list its language, or another --group-by"
        )
    found = {names[n] for n in np.unique(numbers[kept])}
    for name in sorted({names[n] for n in np.unique(numbers)} - found - {""}):
        is_here = numbers == names.index(name)
        reasons = [reason for reason, rows in left_out.items() if is_here[rows].any()]
        raise UserError(
            f"{where}: none of the {is_here.sum()} utterances of the group {name!r} can be used "
            f"({'; '.join(reasons)}): mend its list, or leave it out"
        )
    return sorted(found)
