"""Reads the audio of a corpus, or of an even sample of it, and flags what is odd about it.

The measures of each utterance are kept in DATA/audio_checks.bin: a second run reads only files
that are new or have changed, and an interrupted one continues.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
from lhotse import MonoCut

from local.audio_identity import file_state, settings_digest
from local.checks.copies import likely_copies, numbered_cuts
from local.checks.flags import Flags
from local.checks.signal import INAUDIBLE, MEASURES, measure
from local.checks.utterances import Utterances, short_hash
from local.extract_progress import Progress
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import disk_errors_named
from xlsr_transducer.core.options import Options, option
from xlsr_transducer.data.audio import read_native
from xlsr_transducer.data.datamodule import belong_to_the_parent

ALL = -1
CACHE_FILE = "audio_checks.bin"
_RECORD = np.dtype([("key", "u8"), *[(name, MEASURES[name]) for name in MEASURES.names]])
_MAGIC = b"XLSR audio checks 1\n"
_PER_TASK = 16  # utterances
_TASKS_PER_WORKER = 4  # bounds what is read ahead, and with it memory

_QUIET = -45.0  # dBFS, of the loudest tenth of a second
_CONSTANT = 0.5  # seconds of one value
_CLIPPED = 0.001  # share of the samples
_OFFSET = 0.01  # share of full scale


@dataclasses.dataclass(frozen=True)
class AudioOptions(Options):
    """Checks of the audio."""

    audio_checks: float = option(
        50.0,
        "hours of audio that are read, an even sample of what there is; -1: all of it; 0: none",
        at_least=0,
        also=ALL,
    )
    max_silence: float = option(
        2.0, "seconds; utterances with more before or after the speech are flagged", above=0
    )


class Cache:
    """The measures of earlier runs, by a key of the file and the part of it.

    Memory: 16 bytes for each.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not self._is_whole():
            path.write_bytes(_MAGIC)
        self.load()

    def _is_whole(self) -> bool:
        """Returns whether the file is there; cuts off what a killed run left unfinished."""
        if not self.path.is_file():
            return False
        with open(self.path, "r+b") as f:
            size = os.fstat(f.fileno()).st_size - len(_MAGIC)
            if f.read(len(_MAGIC)) != _MAGIC:
                return False
            f.truncate(len(_MAGIC) + size // _RECORD.itemsize * _RECORD.itemsize)
        return True

    def load(self) -> None:
        """Reads what has been written."""
        count = (self.path.stat().st_size - len(_MAGIC)) // _RECORD.itemsize
        self.records = np.zeros(0, _RECORD)
        if count:
            self.records = np.memmap(self.path, _RECORD, "r", offset=len(_MAGIC), shape=(count,))
        keys = np.array(self.records["key"])
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def find(self, key: int) -> int:
        """Returns the number of the record with a key, or -1."""
        place = int(np.searchsorted(self._keys, np.uint64(key)))
        has_key = place < len(self._keys) and int(self._keys[place]) == key
        return int(self._order[place]) if has_key else -1


def key_of(cut: dict) -> int:
    """Returns 64 bits of what decides a cut's samples: part, path, size and time of change."""
    sources = [os.fspath(source["source"]) for source in cut["recording"]["sources"]]
    return short_hash("\0".join([*sources, settings_digest(cut), file_state(cut)]))


@dataclasses.dataclass
class Measured:
    """The measures of rows; ``unreadable``: the reasons of those that have none."""

    rows: np.ndarray  # (n,) int64
    values: np.ndarray  # (n,) of ``MEASURES``
    unreadable: dict[int, str]

    def num_read(self, u: Utterances) -> dict[str, int]:
        """Returns how many utterances of each split were read, or found to be unreadable."""
        is_read = np.zeros(len(u), dtype=bool)
        is_read[[*self.rows, *self.unreadable]] = True
        return {split: int((is_read & u.rows_of([split])).sum()) for split in u.splits}

    def by_split(self, u: Utterances) -> dict[str, dict[str, np.ndarray]]:
        """Returns what histograms show: the label of a measure -> its values in each split."""
        shown = {
            "level of the loudest tenth of a second, dBFS": self.values["level"],
            "seconds of silence, before and after": self.values["leading"]
            + self.values["trailing"],
        }
        places = {split: u.rows_of([split])[self.rows] for split in u.splits}
        return {
            label: {split: values[is_here] for split, is_here in places.items()}
            for label, values in shown.items()
        }


def choose(u: Utterances, hours: float) -> np.ndarray:
    """Returns which rows are read, as (N,) bool.

    Splits get equal hours, and what small ones leave goes to the others. An utterance's id decides
    whether it belongs to the sample, so that another run reads the same.
    """
    left, chosen = hours * 3600, np.zeros(len(u), dtype=bool)
    totals = {split: float(u.seconds[u.rows_of([split])].sum()) for split in u.splits}
    for i, split in enumerate(sorted(totals, key=totals.__getitem__)):
        here, total = u.rows_of([split]), totals[split]
        budget = total if hours == ALL else min(total, left / (len(totals) - i))
        left -= budget
        limit = 1.0 if budget >= total else budget / total
        chosen |= here & (u.ids / 2.0**64 < limit if limit < 1 else True)
    return chosen


def measure_all(data_dir: Path, u: Utterances, options: AudioOptions, num_jobs: int) -> Measured:
    """Reads the audio of a sample, and all that may be repeated, by ``num_jobs`` processes.

    Raises:
      UserError: the measures cannot be written.
    """
    chosen, unreadable = choose(u, options.audio_checks), {}
    if not chosen.all():
        chosen |= likely_copies(data_dir, u)
    cache, path = Cache(data_dir / CACHE_FILE), data_dir / CACHE_FILE
    numbers = np.full(len(u), -1, dtype=np.int32)  # of records in the cache
    count = len(cache.records)
    progress = Progress("audio checks", float(u.seconds[chosen].sum()))
    with disk_errors_named(path), open(path, "ab") as f, progress:
        for results in _results(
            _new_cuts(data_dir, u, chosen, cache, numbers, progress), num_jobs
        ):
            for row, record, reason in results:
                if record is None:
                    unreadable[row] = reason
                else:
                    f.write(record)
                    numbers[row], count = count, count + 1
            f.flush()
            progress.add(float(sum(u.seconds[row] for row, *_ in results)))
    cache.load()
    rows = np.flatnonzero(numbers >= 0)
    return Measured(rows, cache.records[numbers[rows]], unreadable)


def _new_cuts(
    data_dir: Path,
    u: Utterances,
    chosen: np.ndarray,
    cache: Cache,
    numbers: np.ndarray,
    progress: Progress,
) -> Iterator[tuple[int, int, dict]]:
    """Yields row, key and cut of what has to be read; notes the numbers of what has not."""
    for row, cut in numbered_cuts(data_dir, u, chosen):
        key = key_of(cut)
        numbers[row] = cache.find(key)
        if numbers[row] < 0:
            yield row, key, cut
        else:
            progress.total -= u.seconds[row]


_Result = tuple[int, "bytes | None", str]  # row, record, why there is none


def _results(cuts: Iterator[tuple[int, int, dict]], num_jobs: int) -> Iterator[list[_Result]]:
    """Measures cuts in tasks, whose results come in order.

    Raises:
      UserError: a process was killed.
    """
    tasks = iter(lambda: list(itertools.islice(cuts, _PER_TASK)), [])
    pending: collections.deque[tuple[str, Future]] = collections.deque()
    with ProcessPoolExecutor(num_jobs, initializer=belong_to_the_parent) as pool:
        for task in tasks:
            pending.append((task[0][2]["id"], pool.submit(_measure_task, task)))
            if len(pending) >= num_jobs * _TASKS_PER_WORKER:
                yield _result(*pending.popleft())
        while pending:
            yield _result(*pending.popleft())


def _result(first: str, task: Future) -> list[_Result]:
    """Returns the result of a task, whose first utterance is ``first``."""
    try:
        return task.result()
    except BrokenProcessPool as e:
        raise UserError(
            f"a process that reads audio was killed, with the {_PER_TASK} utterances from {first} "
            "on or soon after; if memory ran out, give fewer --num-jobs. What is done is kept"
        ) from e


def _measure_task(task: list[tuple[int, int, dict]]) -> list[_Result]:
    results: list[_Result] = []
    for row, key, cut in task:
        try:
            samples, rate = read_native(MonoCut.from_dict(cut))
            if not len(samples):
                raise UserError(f"{cut['id']}: holds no audio")
        except UserError as e:
            results.append((row, None, str(e)))
            continue
        values, record = measure(samples, rate), np.zeros((), dtype=_RECORD)
        record["key"] = key
        for name in MEASURES.names:
            record[name] = values[name]
        results.append((row, record.tobytes(), ""))
    return results


def flag_audio(measured: Measured, flags: Flags, max_silence: float) -> None:
    """Flags utterances by their measures."""
    rows, values = measured.rows, measured.values
    reasons = list(measured.unreadable.values())
    flags.add("unreadable", np.array([*measured.unreadable], int), None, reasons.__getitem__)
    level = values["level"]
    is_silent = level <= INAUDIBLE
    for kind, shown, is_odd in (
        ("silent", level, is_silent),
        ("quiet", level, ~is_silent & (level < _QUIET)),
        ("leading-silence", values["leading"], values["leading"] > max_silence),
        ("trailing-silence", values["trailing"], values["trailing"] > max_silence),
        ("constant", values["constant"], ~is_silent & (values["constant"] > _CONSTANT)),
        ("clipped", 100 * values["clipped"], values["clipped"] > _CLIPPED),
        ("dc-offset", 100 * values["offset"], np.abs(values["offset"]) > _OFFSET),
    ):
        flags.add(kind, rows[is_odd], shown[is_odd])
    _flag_repeated(rows[~is_silent], values["digest"][~is_silent], flags)


def _flag_repeated(rows: np.ndarray, digests: np.ndarray, flags: Flags) -> None:
    """Flags rows with the same samples as an earlier row."""
    _, firsts, numbers = np.unique(digests, return_index=True, return_inverse=True)
    others = rows[firsts[numbers]]
    is_later = others != rows
    flags.add_pairs("repeated", rows[is_later], others[is_later])
