"""Files of DATA/manifests that several stages share: where they lie, how they are written."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import replacing
from xlsr_transducer.data.flaws import damage_named
from xlsr_transducer.data.splits import load_splits


class Rejected(NamedTuple):
    """A line of a list that cannot be used."""

    line: int
    reason: str
    content: str  # the line as it stood
    list: str = ""  # its file, where a split has several


def manifest_path(data_dir: Path, kind: str, split: str) -> Path:
    """``kind``: recordings or supervisions (stage 1), cuts (stage 2)."""
    return data_dir / "manifests" / f"{kind}_{split}.jsonl.gz"


def rejected_path(data_dir: Path, split: str) -> Path:
    """Returns the table of list lines that were not used."""
    return data_dir / "manifests" / f"rejected_{split}.tsv"


def split_names(data_dir: Path) -> list[str]:
    """Returns all splits, training first."""
    splits = load_splits(data_dir)
    return [*splits["train"], *splits["val"], *splits["test"]]


class JsonlGzWriter:
    """Writes lhotse's ``.jsonl.gz``, one item at a time; the same items give the same bytes."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")
        # No file name and no time in the header, or equal manifests would differ.
        self._gzip = gzip.GzipFile(filename="", mode="wb", fileobj=self._file, mtime=0)

    def write(self, item: Any) -> None:
        """``item``: a lhotse manifest item, or its dictionary."""
        values = item if isinstance(item, dict) else item.to_dict()
        # ASCII: lhotse reads with the locale's encoding, which may be anything.
        self._gzip.write(json.dumps(values).encode("ascii") + b"\n")

    def __enter__(self) -> JsonlGzWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._gzip.close()
        finally:
            self._file.close()


def read_jsonl_gz(path: Path) -> Iterator[dict]:
    """The items of a ``.jsonl.gz`` file, one at a time. Raises UserError if it is damaged."""
    if not path.is_file():
        raise UserError(f"{path} is missing: run the earlier stages of ./prepare.sh first")
    with damage_named(path), gzip.open(path, "rt", encoding="utf-8") as f:
        for line in f:
            yield json.loads(line)


def write_rejected(path: Path, rows: Iterable[Rejected]) -> None:
    """Writes the table of rejected lines."""
    with replacing(path) as [temporary], open(temporary, "w", encoding="utf-8") as f:
        f.write("\t".join(Rejected._fields) + "\n")
        for row in rows:
            f.write(f"{row.line}\t" + "\t".join(map(_cell, row[1:])) + "\n")


def read_rejected(path: Path) -> Iterator[Rejected]:
    """Yields the rows that ``write_rejected`` wrote; older tables do not name the list."""
    if path.is_file():
        with open(path, encoding="utf-8", newline="\n") as f:
            for row in itertools.islice(f, 1, None):
                line, *cells = row.rstrip("\n").split("\t")
                yield Rejected(int(line), *cells)


def _cell(text: str) -> str:
    return " ".join(text.split())


def check_rejected(name: str, rejected: int, accepted: int, limit: float, path: Path) -> None:
    """Raises UserError if more than ``limit`` percent of a list's lines were rejected.

    Args:
      name: of the split, and of the list where it has several.
      path: the table of rejected lines.
    """
    total = rejected + accepted
    if not total:
        raise UserError(f"{name}: the list is empty")
    if not accepted:
        raise UserError(f"{name}: none of {total} lines can be used; {path} has the reasons")
    percent = 100 * rejected / total
    if percent > limit:
        raise UserError(
            f"{name}: {rejected} of {total} lines ({percent:.1f} %) were rejected, more than "
            f"--max-rejected {limit:g} percent allows; {path} has the reason of each"
        )
