"""What occurs more than once: ids and audio (faults), overlapping segments and texts (flags)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from local.checks.flags import Flags
from local.checks.utterances import Utterances

_TOLERANCE = 1e-3  # seconds: times of segments are rounded


def repeated_rows(u: Utterances) -> Iterator[tuple[int, int, str]]:
    """Yields rows whose id, or whose part of a recording, an earlier row has too.

    Yields:
      row, the first row that has it, and what they share: "id" or "audio".
    """
    for row, first in _equal(u.ids):
        yield row, first, "id"
    times = [np.round(values * 1e4).astype(np.int64) for values in (u.starts, u.seconds)]
    for row, first in _equal(u.sources, u.channels, *times):
        yield row, first, "audio"


def _equal(*columns: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yields the rows that equal an earlier one in all columns, with the first such row."""
    order = np.lexsort(columns[::-1])  # which keeps equal rows in their order
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = np.logical_or.reduce([np.diff(column[order]) != 0 for column in columns])
    firsts = order[np.maximum.accumulate(np.where(is_new, np.arange(len(order)), 0))]
    for place in np.flatnonzero(~is_new):
        yield int(order[place]), int(firsts[place])


def flag_overlaps(u: Utterances, flags: Flags) -> None:
    """Flags segments that begin before an earlier one of the same channel has ended.

    Of each, the value is how long it is part of the earlier segment that lasts longest.
    """
    order = np.lexsort((u.starts, u.channels, u.sources))
    is_shared, same = np.zeros(len(order), dtype=bool), ~_changes(u, order)
    is_shared[1:] |= same
    is_shared[:-1] |= same
    order = order[is_shared]  # most recordings have one utterance
    rows, others, amounts = [], [], []
    for group in np.split(order, 1 + np.flatnonzero(_changes(u, order))):
        longest = -1
        for row in group.tolist():
            start, end = u.starts[row], u.starts[row] + u.seconds[row]
            if longest >= 0:
                shared = min(end, u.starts[longest] + u.seconds[longest]) - start
                if shared > _TOLERANCE:
                    rows.append(row)
                    others.append(longest)
                    amounts.append(shared)
            if longest < 0 or end > u.starts[longest] + u.seconds[longest]:
                longest = row
    flags.add_pairs("overlap", np.array(rows, int), np.array(others, int), np.array(amounts))


def _changes(u: Utterances, order: np.ndarray) -> np.ndarray:
    """Returns where the next row is of another recording or channel, as (n - 1,) bool."""
    sources, channels = u.sources[order], u.channels[order]
    return (sources[1:] != sources[:-1]) | (channels[1:] != channels[:-1])


def flag_shared_texts(u: Utterances, flags: Flags, train: Sequence[str]) -> None:
    """Flags utterances of other splits whose text, or text and speaker, training has too."""
    is_train = u.rows_of(train)
    _flag_in_train("text-in-train", u.texts, is_train, np.ones(len(u), bool), flags)
    # An odd factor mixes the bits of a small number into the 64 of a hash; overflow is meant.
    speakers = (u.speakers + 1).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    both = u.texts ^ speakers
    _flag_in_train("text-and-speaker-in-train", both, is_train, u.speakers >= 0, flags)


def _flag_in_train(
    kind: str, keys: np.ndarray, is_train: np.ndarray, has_key: np.ndarray, flags: Flags
) -> None:
    known, rows = np.flatnonzero(is_train & has_key), np.flatnonzero(~is_train & has_key)
    if not len(known):
        return
    order = known[np.argsort(keys[known], kind="stable")]
    others = order[np.minimum(np.searchsorted(keys[order], keys[rows]), len(order) - 1)]
    found = keys[others] == keys[rows]
    flags.add_pairs(kind, rows[found], others[found])


def speakers_in_train(u: Utterances, train: Sequence[str]) -> dict[str, str]:
    """Returns, for each split, how many of its speakers training has: "3 of 10"; "-" for training
    itself and where no speakers are known."""
    known = _speakers(u, train)
    cells = {}
    for split in u.splits:
        here = _speakers(u, [split])
        has_figure = split not in train and len(here)
        cells[split] = f"{np.isin(here, known).sum()} of {len(here)}" if has_figure else "-"
    return cells


def _speakers(u: Utterances, splits: Sequence[str]) -> np.ndarray:
    found = np.unique(u.speakers[u.rows_of(splits)])
    return found[found >= 0]
