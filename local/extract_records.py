"""What the finished shards of an extraction hold: one record a shard, and how they are looked up.

    FEATURES/SPLIT/features.DIGEST.tar     the arrays of a shard, in Lhotse Shar's format
    FEATURES/records/SPLIT/PLAN.json       which audio each array was computed from, and its place

A record appears after its tar file, which is named by its bytes: a shard that two workers computed
is one shard. Ten million utterances fit into some hundred megabytes: of each, a hash of its id
and its place are in memory, and records are read again when they are needed.
"""

from __future__ import annotations

import array
import contextlib
import dataclasses
import functools
import json
import logging
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from local.audio_identity import content_digest, file_state
from xlsr_transducer.core.files import UNFINISHED

RECORDS = "records"
_ROW_BITS = 32
_IN_MEMORY = 256  # records: a list in another order than the shards reads them again and again


@dataclasses.dataclass(frozen=True, slots=True)
class Stored:
    """One utterance of a shard: an array, or the reason why there is none."""

    id: str
    settings: str  # digest of what the manifest holds about the audio
    file: str  # size and time of change of the audio file
    content: str  # digest of the audio file
    key: str = ""  # place of the array in the tar file, as OFFSET:SIZE
    shape: Sequence[int] = (0, 0)  # of the array: frames, width
    samples: int = 0  # at 16 kHz, where there are too few
    unreadable: str = ""  # the reason

    def fits(self, cut: dict, settings: str) -> bool:
        """Returns whether it was computed from the audio that the cut has now."""
        if self.settings != settings:
            return False
        state = file_state(cut)
        if self.file == state:
            return True
        if self.unreadable:  # it may have been repaired since
            return False
        # The features of a file that has been removed stay.
        return not state or self.content == content_digest(cut)


@dataclasses.dataclass(frozen=True)
class Record:
    """A finished shard."""

    tar: str  # below the folder of the features; empty if no utterance gave an array
    size: int  # of the tar file, in bytes
    utterances: tuple[Stored, ...]  # in the order of the tar file

    def write(self, path: Path) -> None:
        """Puts the record in place."""
        rows = [dataclasses.asdict(row) for row in self.utterances]
        content = json.dumps({"tar": self.tar, "size": self.size, "utterances": rows})
        with name_of_its_own(path.parent) as temporary:
            temporary.write_text(content, encoding="ascii")
            os.replace(temporary, path)


def record_path(folder: Path, split: str, name: str) -> Path:
    """Returns where the record of a shard lies."""
    return folder / RECORDS / split / f"{name}.json"


@contextlib.contextmanager
def name_of_its_own(folder: Path) -> Iterator[Path]:
    """The name of a temporary file that no other process uses; gone at the end if still there."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{uuid.uuid4().hex}{UNFINISHED}"
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _read(folder: Path, path: Path) -> Record | None:
    """Returns a record; None if it or its tar file is damaged, so that it is computed again."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(Stored(**row) for row in values["utterances"])
        record = Record(values["tar"], values["size"], rows)
        whole = not record.tar or (folder / record.tar).stat().st_size == record.size
        return record if whole else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


class Records:
    """The finished shards of a split.

    The place of an utterance is a number: that of its shard, then that of its row.
    """

    def __init__(self, folder: Path, split: str):
        self._folder = folder
        self.paths = sorted((folder / RECORDS / split).glob("*.json"))
        self._cached = functools.lru_cache(maxsize=_IN_MEMORY)(self._read)
        hashes, places = array.array("q"), array.array("q")
        for shard, path in enumerate(self.paths):
            record = _read(folder, path)
            if record is None:
                logging.warning("%s: damaged, or its tar file is; it is computed again", path)
                continue
            for row, stored in enumerate(record.utterances):
                hashes.append(hash(stored.id))
                places.append(shard << _ROW_BITS | row)
        order = np.argsort(hashes, kind="stable")
        self._hashes = np.asarray(hashes, dtype=np.int64)[order]
        self._places = np.asarray(places, dtype=np.int64)[order]

    def find(self, name: str) -> Iterator[tuple[int, Stored]]:
        """Yields all that is stored of an utterance, by its id: places and entries."""
        value = hash(name)
        first, last = (np.searchsorted(self._hashes, value, side) for side in ("left", "right"))
        for place in self._places[first:last].tolist():
            stored = self[place]
            if stored.id == name:
                yield place, stored

    def __getitem__(self, place: int) -> Stored:
        return self.shard(self.number_of(place)).utterances[place & ((1 << _ROW_BITS) - 1)]

    @staticmethod
    def number_of(place: int) -> int:
        """Returns the number of the shard."""
        return place >> _ROW_BITS

    def shard(self, number: int) -> Record:
        """Returns the record of a shard."""
        return self._cached(number)

    def _read(self, number: int) -> Record:
        record = _read(self._folder, self.paths[number])
        if record is None:
            raise OSError(f"{self.paths[number]}: damaged meanwhile")
        return record

    def counts(self, places: Iterable[int]) -> np.ndarray:
        """Returns how many of some places each shard has."""
        numbers = np.fromiter(places, dtype=np.int64) >> _ROW_BITS
        return np.bincount(numbers, minlength=len(self.paths))
