"""The utterances of all splits in columns: 60 bytes of memory for each.

Ids and texts are in a temporary file, which has no name and goes with the process.
"""

from __future__ import annotations

import array
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Type codes of the module ``array``.
_COLUMNS = {
    "seconds": "d",
    "units": "i",  # tokens, or letters where there are no tokens
    "languages": "H",  # numbers, names in ``language_names``
    "speakers": "i",  # numbers; -1: none
    "ids": "Q",  # hashes, as those below
    "texts": "Q",
    "sources": "Q",  # of the files of a recording
    "starts": "d",  # seconds into the recording
    "channels": "h",
}


class Row(NamedTuple):
    """What is read of an utterance when it is asked for."""

    id: str
    text: str
    list: str  # its file; empty where the split has one alone
    line: int  # in that list; 0: unknown


class Utterances:
    """Rows of utterances, those of the first split first.

    Attributes:
      seconds, units, languages, speakers, ids, texts, sources, starts, channels: (N,) columns,
        as in ``_COLUMNS``; there after ``close``.
    """

    def __init__(self, folder: Path, has_tokens: bool) -> None:
        """``folder`` has room for the ids and texts."""
        self.has_tokens = has_tokens
        self.splits: list[str] = []
        self.first_rows: list[int] = []  # of each split
        self.language_names: list[str] = []
        self._file = tempfile.TemporaryFile(dir=folder)
        self._offsets = array.array("q", [0])
        self._columns = {name: array.array(code) for name, code in _COLUMNS.items()}
        self._languages: dict[str, int] = {}
        self._speakers: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def begin(self, split: str) -> None:
        """What is added from now on belongs to ``split``."""
        self.splits.append(split)
        self.first_rows.append(len(self))

    def add(self, cut: dict, num_tokens: int | None) -> None:
        """Adds a cut without faults, as lhotse's dictionary."""
        [supervision] = cut["supervisions"]
        text, custom = supervision["text"], supervision.get("custom") or {}
        language, speaker = supervision.get("language") or "", supervision.get("speaker")
        letters = sum(map(len, text.split()))
        values = {
            "seconds": cut["duration"],
            "units": letters if num_tokens is None else num_tokens,
            "languages": self._languages.setdefault(language, len(self._languages)),
            "speakers": self._speakers.setdefault(speaker, len(self._speakers)) if speaker else -1,
            "ids": short_hash(cut["id"]),
            "texts": short_hash(text),
            "sources": short_hash("\0".join(_sources(cut))),
            "starts": cut["start"],
            "channels": cut["channel"],
        }
        for name, value in values.items():
            self._columns[name].append(value)
        row = [cut["id"], text, str(custom.get("list", "")), custom.get("line", 0)]
        written = self._file.write(json.dumps(row).encode() + b"\n")
        self._offsets.append(self._offsets[-1] + written)

    def close(self) -> None:
        """Ends the adding."""
        self._file.flush()
        self.language_names = list(self._languages)
        for name, values in self._columns.items():
            setattr(self, name, np.frombuffer(values, dtype=values.typecode))

    def __getitem__(self, row: int) -> Row:
        begin, end = self._offsets[row], self._offsets[row + 1]
        return Row(*json.loads(os.pread(self._file.fileno(), end - begin, begin)))

    def __iter__(self) -> Iterator[Row]:
        self._file.seek(0)
        for line in self._file:
            yield Row(*json.loads(line))

    def split_of(self, row: int) -> str:
        """Returns the name of a row's split."""
        return self.splits[int(np.searchsorted(self.first_rows, row, side="right")) - 1]

    def rows_of(self, splits: Sequence[str]) -> np.ndarray:
        """Returns which rows belong to some splits, as (N,) bool."""
        chosen = np.zeros(len(self), dtype=bool)
        for split, first, end in zip(self.splits, self.first_rows, self._ends):
            chosen[first:end] = split in splits
        return chosen

    @property
    def _ends(self) -> list[int]:
        return [*self.first_rows[1:], len(self)]

    def name(self, row: int, beside: int) -> str:
        """Returns the id of a row, with its split if it is another than that of ``beside``."""
        split = self.split_of(row)
        return self[row].id + (f" in {split}" if split != self.split_of(beside) else "")


def short_hash(text: str) -> int:
    """Returns 64 bits: two of ten million texts have the same by a chance of 1 in 300,000."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _sources(cut: dict) -> list[str]:
    """Returns the files of a recording; its id where it has none."""
    sources = cut["recording"].get("sources") or [{"source": cut["recording"]["id"]}]
    return [os.fspath(source["source"]) for source in sources]
