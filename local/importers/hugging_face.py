"""Data sets of Hugging Face: on disk, or by name from its hub, read as a stream.

Audio that lies inside the data set is written once, as it is, to DATA/audio/NAME. A journal there
holds the rows, so that an interrupted import resumes where it stopped, and a finished one needs
the data set no more. Code that comes with a data set is never run.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from local.importers.columns import Roles
from local.importers.entry import Corpus, Entry, missing_parts, plain_columns
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import write_bytes

PREFIX = "hf:"
_SPLITS = {
    "train": ("train",), "val": ("validation", "valid", "val", "dev"), "test": ("test",)
}  # fmt: skip
_DICT, _INFO = "dataset_dict.json", "dataset_info.json"
_JOURNAL = "rows.jsonl"
_PER_FOLDER = 10000
_ENDINGS = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"ID3": ".mp3", b"NIST": ".sph"}


def is_folder(path: Path) -> bool:
    """Returns whether a folder is a data set of Hugging Face."""
    return (path / _DICT).is_file() or (path / _INFO).is_file() or bool(_parquet(path))


def _parquet(path: Path) -> list[Path]:
    return sorted([*path.glob("*.parquet"), *path.glob("*/*.parquet")])


@dataclasses.dataclass
class HuggingFace(Corpus):
    """A split of a data set; ``path`` is its folder, or hf:NAME[:CONFIG][:SPLIT]."""

    role: str = "train"
    store: Path = Path("audio")  # holds what is written
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)  # given by the user

    form = "a data set of Hugging Face"

    @property
    def identity(self) -> tuple[str, ...]:
        name = str(self.path)
        of = name if name.startswith(PREFIX) else os.path.realpath(name)
        return (of, self.role) if _has_splits(self.path) else (of,)

    @property
    def place(self) -> Path:
        """The folder of this split in the store."""
        name = re.sub(r"[^\w.-]+", "_", str(self.path).removeprefix(PREFIX)).strip("_")
        return self.store / (f"{name}-{self.role}" if _has_splits(self.path) else name)

    def entries(self) -> Iterator[Entry]:
        journal = _Journal(self.place / _JOURNAL, self._fingerprint())
        count = 0
        for row in journal.rows():
            count += 1
            yield self._entry(count, row)
        if journal.is_complete:
            logging.info("%s: all of its audio is there, in %s", self.path, self.place)
            return
        try:
            for row in self._new_rows(count):
                count += 1
                journal.add(row)
                yield self._entry(count, row)
        except UserError:
            raise
        except Exception as e:  # whatever the library, its parts or the network raise
            reason = (str(e).strip() or type(e).__name__).splitlines()[0][:200]
            state = f"stopped after {count} rows" if count else "cannot be read"
            raise UserError(
                f"{self.path}: {state} ({reason}){'; start again to resume' * bool(count)}"
            ) from e
        journal.complete()

    def _fingerprint(self) -> dict[str, Any]:
        """What the journal is of; changed files on disk make it a new one."""
        files = []
        if not str(self.path).startswith(PREFIX):
            for file in sorted([*self.path.rglob("*.arrow"), *_parquet(self.path)]):
                state = file.stat()
                files.append([str(file), state.st_size, state.st_mtime_ns])
        return {"of": list(self.identity), "columns": dict(self.columns), "files": files}

    def _new_rows(self, start: int) -> Iterator[dict[str, Any]]:
        """Yields the rows from ``start`` on, their audio written to files."""
        library = _library(self.path)
        data = _open(library, self.path, self.role)
        features = data.features or data._resolve_features().features
        roles = Roles.of(features, self.columns, str(self.path))
        logging.info("%s: %s", self.path, roles.describe())
        if isinstance(features[roles.audio], library.Audio):
            data = data.cast_column(roles.audio, library.Audio(decode=False))
        rows: Iterable[dict] = data.skip(start) if start else data
        for number, row in enumerate(rows, start=start + 1):
            yield self._stored(number, row, roles, features)

    def _stored(
        self, number: int, row: dict[str, Any], roles: Roles, features: Mapping[str, Any]
    ) -> dict[str, Any]:
        audio = row[roles.audio]
        audio = {"path": audio} if isinstance(audio, str) else audio or {}
        place, content = audio.get("path") or "", audio.get("bytes")
        found: dict[str, Any] = {"path": place, "audio": place}
        if content:
            ending = os.path.splitext(place)[1]
            ending = ending if re.fullmatch(r"\.\w{1,5}", ending) else _ending(content)
            name = f"{(number - 1) // _PER_FOLDER:04d}/{number:08d}{ending}"
            found = {"path": place or name, "audio": name}
            write_bytes(self.place / name, content)
        values = {name: _named(row.get(name), feature) for name, feature in features.items()}
        for role, column in roles.texts().items():
            found[role] = "" if values[column] is None else str(values[column])
        found["columns"] = plain_columns({n: values[n] for n in roles.others(features)})
        return found

    def _entry(self, number: int, row: dict[str, Any]) -> Entry:
        text = row.get("text", "").strip()
        audio = row["audio"]
        shown = json.dumps({k: v for k, v in row.items() if k != "audio"}, ensure_ascii=False)
        return Entry(
            number, shown, row["path"], os.path.realpath(self.place / audio), text,
            row.get("speaker", "").strip(), row.get("language", "").strip(), row.get("id", ""),
            columns=row["columns"], problem=missing_parts(audio, text),
        )  # fmt: skip


class _Journal:
    """Rows that have been written, a line each; a last line tells that there are no more."""

    def __init__(self, path: Path, of: dict[str, Any]) -> None:
        self._path, self._of = path, of
        self._end = 0  # of what is whole, in bytes
        self.is_complete = False

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the rows that are there."""
        if not self._path.is_file():
            return
        with open(self._path, "rb") as f:
            for line in f:
                try:
                    row = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    row = None
                if row is None or self._end == 0 and row != self._of:
                    break
                self.is_complete = row == {"complete": True}
                if self._end and not self.is_complete:
                    yield row
                self._end += len(line)

    def add(self, row: dict[str, Any]) -> None:
        """Adds a row, whose audio has been written."""
        if self._end == 0:
            self._write(self._of)
        self._write(row)

    def complete(self) -> None:
        """Notes that there are no more rows."""
        self.add({"complete": True})

    def _write(self, row: dict[str, Any]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "r+b" if self._path.is_file() else "wb") as f:
            f.truncate(self._end)
            f.seek(self._end)
            f.write(json.dumps(row).encode("ascii") + b"\n")
            self._end = f.tell()


def _named(value: Any, feature: Any) -> Any:
    """Returns the name of a class in place of its number, of which -1 is none."""
    if hasattr(feature, "int2str") and isinstance(value, int):
        return feature.int2str(value) if value >= 0 else None
    return value


def _ending(content: bytes) -> str:
    found = (ending for magic, ending in _ENDINGS.items() if content.startswith(magic))
    return next(found, ".mp3")


def _library(path: Path) -> Any:
    try:
        import datasets
    except ImportError as e:
        raise UserError(f"{path}: needs the package datasets: pip install datasets") from e
    return datasets


def _open(library: Any, path: Path, role: str) -> Any:
    """Opens a data set for one pass. Never with code of its own: the library has no more way to
    run it, and older ones that have are refused."""
    if int(library.__version__.split(".")[0]) < 4:
        raise UserError(f"{path}: needs datasets 4 or newer, there is {library.__version__}")
    name = str(path)
    if not name.startswith(PREFIX):
        return _open_folder(library, path, role)
    name, *more = name.removeprefix(PREFIX).split(":")
    if not name or len(more) > 2:
        raise UserError(f"{path}: must be hf:NAME[:CONFIG][:SPLIT]")
    config = split = None
    if len(more) == 1:
        is_config = more[0] in library.get_dataset_config_names(name)
        config, split = (more[0], None) if is_config else (None, more[0])
    elif len(more) == 2:
        config, split = (part or None for part in more)
    if split is None:
        present = library.get_dataset_split_names(name, config)
        split = _split_of(present, role, path, f"{PREFIX}NAME:CONFIG:SPLIT")
    return library.load_dataset(name, config, split=split, streaming=True)


def _open_folder(library: Any, path: Path, role: str) -> Any:
    if (path / _DICT).is_file():
        names = json.loads((path / _DICT).read_text(encoding="utf-8"))["splits"]
        return library.load_from_disk(
            str(path / _split_of(names, role, path, "the folder of one of them"))
        )
    if (path / "state.json").is_file():
        return library.load_from_disk(str(path))
    roles = _roles_of(path)
    chosen = [str(f) for f, role_of in roles.items() if role_of in (role, "")]
    if not chosen:
        raise UserError(f"{path}: no parquet file of it is called {', '.join(_SPLITS[role])}")
    return library.load_dataset("parquet", data_files=chosen, split="train", streaming=True)


def _has_splits(path: Path) -> bool:
    """Returns whether a data set holds several splits, of which the role chooses one."""
    name = str(path)
    if not name.startswith(PREFIX):
        return (path / _DICT).is_file() or any(_roles_of(path).values())
    more = name.removeprefix(PREFIX).split(":")[1:]
    words = "|".join(word for names in _SPLITS.values() for word in names)
    return len(more) < 2 and not any(re.match(words, part) for part in more)


def _roles_of(path: Path) -> dict[Path, str]:
    """Returns the roles of parquet files by their names and folders; '' where none has one."""
    words = {word: role for role, names in _SPLITS.items() for word in names}
    found = {}
    for file in _parquet(path):
        names = (re.split(r"[-._]", file.name)[0], file.parent.name)
        found[file] = next((words[name] for name in names if name in words), "")
    has_roles = any(found.values())
    return {file: role or ("none" if has_roles else "") for file, role in found.items()}


def _split_of(present: Iterable[str], role: str, path: Path, how: str) -> str:
    """Returns the split that has the role. Raises UserError if there is none."""
    present = list(present)
    for name in _SPLITS[role]:
        if name in present:
            return name
    raise UserError(
        f"{path}: no split of it is called {' or '.join(_SPLITS[role])}; there are "
        f"{', '.join(present)}: give {how}"
    )
