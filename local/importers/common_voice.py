"""Common Voice: a TSV with its clips beside it, or the folder of a language."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from local.importers.entry import Corpus, Entry, missing_parts, plain_columns
from local.importers.text_list import all_lines
from xlsr_transducer.core.errors import UserError

_NEEDED = ("client_id", "path", "sentence")
_FILES = {"train": "train.tsv", "val": "dev.tsv", "test": "test.tsv"}  # by role
_ALL = "validated.tsv"
CLIPS = "clips"


def is_table(path: Path) -> bool:
    """Returns whether a file begins with Common Voice's header."""
    _, first = next(all_lines(path), (1, b""))
    return set(_NEEDED) <= set(first.decode("utf-8", "replace").split("\t"))


def is_folder(path: Path) -> bool:
    """Returns whether a folder is that of a language of Common Voice."""
    names = {*_FILES.values(), _ALL}
    return (path / CLIPS).is_dir() and any((path / name).is_file() for name in names)


def table_of(folder: Path, role: str) -> Path:
    """Returns the official table of a role in the folder of a language.

    Raises:
      UserError: there is none.
    """
    path = folder / _FILES[role]
    if not path.is_file():
        raise UserError(f"{folder}: Common Voice without {path.name}: give one of its tables")
    return path


@dataclasses.dataclass
class CommonVoice(Corpus):
    """A table of Common Voice; the speaker is its client_id.

    Of ``validated.tsv`` as training, what the official dev.tsv and test.tsv hold is left out:
    their clips, and other clips with a sentence of theirs.
    """

    role: str = "train"
    form = "Common Voice"

    def entries(self) -> Iterator[Entry]:
        held_out = self._held_out()
        clips, sentences = ({row[key] for row in held_out} for key in ("path", "sentence"))
        for line, row, content in _rows(self.path):
            if isinstance(row, str):
                yield Entry(line, content, problem=row)
                continue
            if row["path"] in clips:
                self.left_out["they are in the official dev.tsv or test.tsv"] += 1
                continue
            if row["sentence"] in sentences:
                self.left_out["their sentence is in the official dev.tsv or test.tsv"] += 1
                continue
            path, text = row["path"].strip(), row["sentence"].strip()
            yield Entry(
                line, content, path, self.locate(path), text, row["client_id"].strip(),
                language=row.get("locale", "").strip(), problem=missing_parts(path, text),
                columns=plain_columns({n: v for n, v in row.items() if n not in _NEEDED}),
            )  # fmt: skip

    def _held_out(self) -> list[dict[str, str]]:
        """Returns the rows of the official dev and test tables, where this one holds them too."""
        if self.role != "train" or self.path.name != _ALL:
            return []
        tables = [self.path.parent / _FILES[role] for role in ("val", "test")]
        present = [table for table in tables if table.is_file()]
        return [row for t in present for _, row, _ in _rows(t) if not isinstance(row, str)]


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str] | str, str]]:
    """Yields line number, the fields by name or what is wrong with the line, and the line.

    Quotation marks mean nothing in these tables.
    """
    lines = all_lines(path)
    names = next(lines)[1].decode("utf-8", "replace").split("\t")
    for number, line in lines:
        if not line.strip():
            continue
        content = line.decode("utf-8", "replace")
        fields = content.split("\t")
        if "\ufffd" in content and not _is_utf8(line):
            yield number, "not UTF-8", content
        elif len(fields) != len(names):
            yield number, f"fields: {len(fields)} in place of {len(names)}", content
        else:
            yield number, dict(zip(names, fields)), content


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def clips_of(table: Path) -> Path:
    """Returns the folder of the clips of a table."""
    return Path(os.path.realpath(table.parent)) / CLIPS
