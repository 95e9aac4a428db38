"""The index of a manifest: what planning needs to know of each utterance, in mapped arrays.

A folder ``cuts_X.index`` beside ``cuts_X.jsonl`` or ``cuts_X.jsonl.gz`` holds

    about.json        what it was made from; names of groups and of reasons
    offsets.npy       (N + 1,) int64: where each line begins
    seconds.npy       (N,) float64: of audio; 0 if the utterance cannot be used
    frames.npy        (N,) int32: of the encoder
    reasons.npy       (N,) int32: why it cannot be used; 0 if it can
    groups.npy        (N,) int32: custom field ``group`` of the supervision, or its language
    groups-HASH.npy   (N,) int32: the same by another field, with names in groups-HASH.json
    shards.npy        (N,) int32: counts the tar files of Lhotse Shar in their order
    tokens-HASH.npy   (2, N) int32: tokens of a tokenizer, and frames that CTC needs for them
    cuts.jsonl        the lines of a .gz, which cannot be read from the middle

One pass over the manifest makes it. It is made again when the manifest has changed. One process
makes it and the others wait. Letter: N lines.
"""

from __future__ import annotations

import array
import functools
import gzip
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from operator import eq
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item
from tqdm import tqdm

from xlsr_transducer.core.files import (
    UNFINISHED,
    alone_in,
    disk_errors_named,
    replacing,
    write_text,
)
from xlsr_transducer.core.geometry import SUBSAMPLING, encoder_frames
from xlsr_transducer.data.audio import audio_duration
from xlsr_transducer.data.cuts import first_channel, group_of
from xlsr_transducer.data.flaws import damage_named, flaw
from xlsr_transducer.data.plan import Utterances, load_array
from xlsr_transducer.data.shar import tar_of
from xlsr_transducer.data.sources import utterance_bytes
from xlsr_transducer.data.tokenizer import LanguageFirst, Tokenizer, require_language, targets

VERSION = 3
ABOUT, LINES = "about.json", "cuts.jsonl"
GROUPS = "groups.npy"
ARRAYS = ("offsets", "seconds", "frames", "reasons", "groups", "shards")
DECIDE_PLANS = ("seconds.npy", "reasons.npy", GROUPS, "shards.npy")


class Index:
    """The utterances of one manifest, by the number of their line."""

    def __init__(
        self,
        folder: Path,
        manifest: Path,
        tokens: str,
        features: Path | None,
        groups: str = GROUPS,
    ):
        """
        Args:
          folder: that of the index.
          tokens: name of the file with the numbers of tokens. groups: of that with the groups.
          features: where the paths of stored features begin.
        """
        self._arguments = (folder, manifest, tokens, features, groups)
        self.manifest, self.features = manifest, features
        about = _read_about(folder)
        self.digest: str = about["digest"]  # of all that a plan depends on, but tokens
        self.texts = {name: about[name] for name in ("reasons", "groups")}  # of each number
        self.arrays = {name: load_array(folder / f"{name}.npy") for name in ARRAYS}
        if groups != GROUPS:
            self.arrays["groups"] = load_array(folder / groups)
            names = (folder / groups).with_suffix(".json").read_text(encoding="utf-8")
            self.texts["groups"] = json.loads(names)
        lines = folder / LINES
        # Stays open: the file that the offsets belong to, even if another gets its name.
        self._lines = open(lines if lines.is_file() else manifest, "rb")

    @functools.cached_property
    def tokens(self) -> np.ndarray:
        """(2, N) tokens, and frames that CTC needs for them."""
        return load_array(self._arguments[0] / self._arguments[2])

    def __len__(self) -> int:
        return len(self.arrays["seconds"])

    def __reduce__(self) -> tuple[Any, ...]:  # for processes that are not forked
        return Index, self._arguments

    def __getitem__(self, row: int) -> Cut:
        """Reads one utterance.

        Raises:
          UserError: the manifest has changed since it was opened.
        """
        with damage_named(self.manifest):
            cut = first_channel(deserialize_item(self._item(row)))
        return cut.with_features_path_prefix(self.features) if self.features else cut

    def id(self, row: int) -> str:
        """Returns the id of an utterance."""
        with damage_named(self.manifest):
            return self._item(row)["id"]

    def _item(self, row: int) -> dict:
        begin, end = self.arrays["offsets"][row : row + 2].tolist()
        return json.loads(os.pread(self._lines.fileno(), end - begin, begin))


class Corpus:
    """The utterances of several manifests: rows of the first one, then of the next."""

    def __init__(self, indexes: Sequence[Index]):
        self.indexes = list(indexes)
        self._starts = np.cumsum([0, *map(len, indexes)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> Cut:
        """Reads one utterance."""
        index, place = self._place(row)
        return index[place]

    def id(self, row: int) -> str:
        """Returns the id of an utterance."""
        index, place = self._place(row)
        return index.id(place)

    def _place(self, row: int) -> tuple[Index, int]:
        i = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.indexes[i], int(row - self._starts[i])

    def utterances(self, has_ctc: bool, subsampling: int = SUBSAMPLING) -> Utterances:
        """Returns what a plan needs.

        Args:
          has_ctc: for a training with CTC, which needs frames for blanks too.
          subsampling: XLSR frames per encoder frame.
        """
        seconds = _joined(self._arrays("seconds"))
        frames = _joined(self._arrays("frames"))
        if subsampling != SUBSAMPLING:
            frames = encoder_frames(seconds, subsampling).astype(np.int32)
        tokens = _joined([index.tokens[0] for index in self.indexes])
        return Utterances(
            seconds=seconds,
            frames=frames,
            tokens=tokens,
            needed=_joined([index.tokens[1] for index in self.indexes]) if has_ctc else tokens,
            usable=_joined(self._arrays("reasons")) == 0,
            groups=self.numbered("groups")[0],
            shards=_joined(_apart(self._arrays("shards"))),
        )

    def numbered(self, name: str) -> tuple[np.ndarray, list[str]]:
        """Returns groups or reasons: a number of each utterance (N,) and a text of each number."""
        texts = [index.texts[name] for index in self.indexes]
        if len(texts) == 1:
            return self.indexes[0].arrays[name], texts[0]
        common = sorted({text for some in texts for text in some})
        tables = [np.array([common.index(t) for t in some], dtype=np.int32) for some in texts]
        return _joined([table[x] for table, x in zip(tables, self._arrays(name))]), common

    def _arrays(self, name: str) -> list[np.ndarray]:
        return [index.arrays[name] for index in self.indexes]


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _apart(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the numbers changed so that no two parts have one in common."""
    counts = [int(part.max(initial=-1)) + 1 for part in parts]
    return [part + sum(counts[:i]) if i else part for i, part in enumerate(parts)]


def open_index(
    manifest: Path,
    tokenizer: Tokenizer,
    features: Path | None = None,
    spare: Path | None = None,
    group_by: str = "",
) -> Index:
    """Opens the index of a manifest, and makes it first if there is none of the file as it is.

    Args:
      features: the folder of the stored features that the manifest lists; None: audio is used.
      spare: where the index goes if it cannot be written beside the manifest.
      group_by: what the groups are, as in ``group_of``.

    Raises:
      UserError: the manifest is damaged, or the index can be written nowhere.
    """
    kind = b"language" if isinstance(tokenizer, LanguageFirst) else b""
    tokens = f"tokens-{_short_hash(tokenizer.to_bytes() + kind)}.npy"
    groups = f"groups-{_short_hash(group_by.encode())}.npy" if group_by else GROUPS
    name = manifest.name.split(".")[0] + ".index"
    folders = [manifest.parent / name, *([spare / name] if spare else [])]
    for folder in folders:
        has_all = all((folder / name).is_file() for name in (tokens, groups))
        if has_all and _is_current(folder, manifest, features):
            return Index(folder, manifest, tokens, features, groups)
    folder = folders[0 if os.access(manifest.parent, os.W_OK) else -1]
    with disk_errors_named(folder), alone_in(folder.parent):
        if not _is_current(folder, manifest, features):
            _make(folder, manifest, tokens, tokenizer, features)
        index = Index(folder, manifest, tokens, features)
        if not (folder / tokens).is_file():
            _count_tokens(index, folder / tokens, tokenizer)
        if not (folder / groups).is_file():
            _number_groups(index, folder / groups, group_by)
        return Index(folder, manifest, tokens, features, groups)


def _read_about(folder: Path) -> dict[str, Any]:
    """Returns what an index was made from; empty if there is none."""
    try:
        return json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _is_current(folder: Path, manifest: Path, features: Path | None) -> bool:
    """Returns whether a folder holds the index of the manifest as it is now."""
    about = _read_about(folder)
    return about.items() >= _identity(manifest, features).items()


def _identity(manifest: Path, features: Path | None) -> dict[str, Any]:
    stat = manifest.stat()
    return {
        "version": VERSION,
        "has_features": features is not None,
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
    }


def _make(
    folder: Path, manifest: Path, tokens: str, tokenizer: Tokenizer, features: Path | None
) -> None:
    """Writes the index of a manifest; of one that was only copied or touched, notes the time."""
    before, identity = _read_about(folder), _identity(manifest, features)
    identity["sha256"] = _sha256(manifest)
    same = {key: value for key, value in identity.items() if key != "mtime_ns"}
    if before.items() >= same.items():
        write_text(folder / ABOUT, json.dumps({**before, **identity}) + "\n")
        return
    logging.info(f"{manifest}: its index is made, in {folder}")
    unfinished = folder.with_name(folder.name + UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    columns, digest = _Columns(), hashlib.sha256()
    with open(unfinished / LINES, "wb") as copy:
        for line, identity_of_line, cut in _read(manifest):
            digest.update(identity_of_line)
            fields = [s.custom for s in cut.supervisions]  # any of them may decide groups
            digest.update(json.dumps(fields, default=str).encode())
            columns.add(len(line), cut, features, tokenizer)
            if manifest.suffix == ".gz":
                copy.write(line)
    if manifest.suffix != ".gz":
        (unfinished / LINES).unlink()
    for name, values in columns.arrays(tokens).items():
        np.save(unfinished / name, values)
        digest.update(values.tobytes() if name in DECIDE_PLANS else b"")
    about = {**identity, "digest": digest.hexdigest(), **columns.texts()}
    write_text(unfinished / ABOUT, json.dumps(about) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(unfinished, folder)


def _read(manifest: Path) -> Iterator[tuple[bytes, bytes, Cut]]:
    """Yields the line of each utterance, its identity as in ``utterance_bytes``, and its cut."""
    with (
        damage_named(manifest),
        (gzip.open if manifest.suffix == ".gz" else open)(manifest, "rb") as lines,
    ):
        for line in tqdm(lines, desc=f"{manifest.name}: indexed", unit=" lines", disable=None):
            item = json.loads(line)
            yield line, utterance_bytes(item), first_channel(deserialize_item(item))


class _Columns:
    """The arrays of an index while they grow."""

    def __init__(self) -> None:
        self.offsets, self.seconds = array.array("q", [0]), array.array("d")
        self.reasons, self.groups, self.shards = (array.array("i") for _ in range(3))
        self.tokens, self.needed = array.array("i"), array.array("i")
        self._reasons: dict[str, int] = {"": 0}  # text -> number
        self._groups: dict[str, int] = {"": 0}
        self._tar, self._shard = "", 0

    def add(self, length: int, cut: Cut, features: Path | None, tokenizer: Tokenizer) -> None:
        """Adds an utterance, whose line has ``length`` bytes."""
        reason = flaw(cut, from_waveform=features is None)
        group, tokens, tar = _group_of(cut), [], ""
        if not reason:
            [supervision] = cut.supervisions
            tokens = _tokens_of(cut, tokenizer)
            tar = tar_of(cut)
        if tar and tar != self._tar:
            self._tar, self._shard = tar, self._shard + 1
        self.offsets.append(self.offsets[-1] + length)
        self.seconds.append(0.0 if reason else audio_duration(cut))
        self.reasons.append(self._reasons.setdefault(reason, len(self._reasons)))
        self.groups.append(self._groups.setdefault(group, len(self._groups)))
        self.shards.append(self._shard)
        self.tokens.append(len(tokens))
        self.needed.append(_frames_of_ctc(tokens))

    def arrays(self, tokens: str) -> dict[str, np.ndarray]:
        """Returns the arrays by the names of their files."""
        columns = {name: np.array(getattr(self, name)) for name in ARRAYS if name != "frames"}
        columns["frames"] = encoder_frames(columns["seconds"]).astype(np.int32)
        found = {f"{name}.npy": column for name, column in columns.items()}
        return {**found, tokens: np.stack([np.array(self.tokens), np.array(self.needed)])}

    def texts(self) -> dict[str, list[str]]:
        """Returns the texts of numbered reasons and groups."""
        return {"reasons": list(self._reasons), "groups": list(self._groups)}


def _group_of(cut: Cut, group_by: str = "") -> str:
    """The group of an utterance, also of one that cannot be used."""
    return group_of(cut.supervisions[0], group_by) if len(cut.supervisions) == 1 else ""


def _tokens_of(cut: Cut, tokenizer: Tokenizer) -> list[int]:
    """Returns what a model learns to emit. Raises UserError if it is to know the language, and
    has no token of it."""
    [supervision] = cut.supervisions
    language = supervision.language or ""
    require_language(tokenizer, language, cut.id)
    return targets(tokenizer, [supervision.text], [language])[0]


def _frames_of_ctc(tokens: list[int]) -> int:
    """Returns how many frames CTC needs: one for each token, and blanks between equal ones."""
    return len(tokens) + sum(map(eq, tokens, tokens[1:]))


def _count_tokens(index: Index, path: Path, tokenizer: Tokenizer) -> None:
    """Writes the numbers of tokens of another tokenizer."""
    counts = np.zeros((2, len(index)), dtype=np.int32)
    for row in np.flatnonzero(index.arrays["reasons"] == 0):
        tokens = _tokens_of(index[row], tokenizer)
        counts[:, row] = len(tokens), _frames_of_ctc(tokens)
    with replacing(path) as [temporary], open(temporary, "wb") as f:
        np.save(f, counts)


def _number_groups(index: Index, path: Path, group_by: str) -> None:
    """Writes the groups by another field: their names, then a number of each utterance."""
    numbers: dict[str, int] = {"": 0}  # name -> number
    groups = np.zeros(len(index), dtype=np.int32)
    for row in range(len(index)):
        groups[row] = numbers.setdefault(_group_of(index[row], group_by), len(numbers))
    write_text(path.with_suffix(".json"), json.dumps(list(numbers)) + "\n")
    with replacing(path) as [temporary], open(temporary, "wb") as f:
        np.save(f, groups)


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
