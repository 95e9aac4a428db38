"""One shard of an extraction: some ten minutes of a split, computed and stored as one folder.

A shard is a group of utterances that were computed together: consecutive ones of those that were
not there yet, whatever the number of workers. Its folder appears with all of its content at once,
so a killed extraction leaves whole shards only. shard.json says which audio each array was
computed from; it holds no text.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import MonoCut, NumpyFilesWriter

from local.audio_identity import content_digest, file_state, settings_digest
from local.extractors import Extractor
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import UNFINISHED, disk_errors_named, write_text
from xlsr_transducer.core.geometry import RECEPTIVE_FIELD, SAMPLING_RATE
from xlsr_transducer.data.audio import num_samples, read_audio

SHARD_SECONDS = 600.0
READ_AHEAD = 2  # batches
RESULT_FILE = "shard.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A group of cuts, as dictionaries of lhotse's manifest, and the folder of its features."""

    split: str
    cuts: tuple[dict, ...]

    @property
    def path(self) -> str:
        """Where it lies below the folder of the features, by what it holds."""
        content = [[cut["id"], settings_digest(cut)] for cut in self.cuts]
        digest = hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()
        return f"{self.split}/shard_{digest[:16]}"

    @property
    def seconds(self) -> float:
        return sum(cut["duration"] for cut in self.cuts)


def plan_shards(split: str, cuts: Iterable[dict]) -> Iterator[Shard]:
    """Groups consecutive cuts until they last ``SHARD_SECONDS`` together."""
    group: list[dict] = []
    seconds = 0.0
    for cut in cuts:
        group.append(cut)
        seconds += cut["duration"]
        if seconds >= SHARD_SECONDS:
            yield Shard(split, tuple(group))
            seconds, group = 0.0, []
    if group:
        yield Shard(split, tuple(group))


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a shard has of one utterance: an array, or the reason why there is none."""

    id: str
    settings: str  # digest of what the manifest says of the audio
    file: str  # size and time of change of the audio file
    content: str  # digest of the audio file
    shard: str  # below the folder of the features
    key: str = ""  # of the array, below the shard
    shape: Sequence[int] = (0, 0)  # of the array: frames, width
    samples: int = 0  # at 16 kHz, where there are too few
    unreadable: str = ""  # the reason

    def fits(self, cut: dict, settings: str) -> bool:
        """Whether it was computed from the audio that the cut has now."""
        if self.settings != settings:
            return False
        state = file_state(cut)
        if self.file == state:
            return True
        if self.unreadable:  # it may have been repaired since
            return False
        # The features of a file that has been removed stay.
        return not state or self.content == content_digest(cut)


def load_stored(folder: Path, split: str) -> dict[str, list[Stored]]:
    """Returns what the finished shards of a split hold, by the utterances' ids."""
    found: dict[str, list[Stored]] = {}
    for path in sorted((folder / split).glob(f"shard_*/{RESULT_FILE}")):
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))["utterances"]
            shard = f"{split}/{path.parent.name}"
            entries = [dataclasses.replace(Stored(**row), shard=shard) for row in rows]
        except (OSError, ValueError, TypeError, KeyError):
            continue  # damaged, or of an older version: computed again
        for entry in entries:
            found.setdefault(entry.id, []).append(entry)
    return found


def make_batches(lengths: dict[int, int], max_duration: float) -> list[list[int]]:
    """Groups cuts of like length into batches of ``max_duration`` seconds, padding included.

    Args:
      lengths: position -> samples. A longer cut than ``max_duration`` is a batch by itself.

    Returns:
      Positions, the longest first.
    """
    batches: list[list[int]] = []
    for position in sorted(lengths, key=lambda p: (-lengths[p], p)):
        longest = lengths[batches[-1][0]] if batches else 0
        fits = batches and (len(batches[-1]) + 1) * longest <= max_duration * SAMPLING_RATE
        if fits:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


class _Reader:
    """Reads batches ahead of the computation, in a thread of its own."""

    def __init__(self, batches: Sequence[list[int]], cuts: dict[int, MonoCut]):
        self.batches = batches
        self.cuts = cuts
        self.unreadable: dict[int, str] = {}  # position -> reason

    def __iter__(self) -> Iterator[tuple[list[int], list[np.ndarray]]]:
        """Positions and samples of each batch, without what could not be read."""
        with ThreadPoolExecutor(1) as pool:
            pending: list[Future] = []
            todo = iter(self.batches)
            while True:
                for batch in todo:
                    pending.append(pool.submit(self._read, batch))
                    if len(pending) > READ_AHEAD:
                        break
                if not pending:
                    return
                positions, waves = pending.pop(0).result()
                if positions:
                    yield positions, waves

    def _read(self, batch: list[int]) -> tuple[list[int], list[np.ndarray]]:
        positions, waves = [], []
        for position in batch:
            try:
                waves.append(read_audio(self.cuts[position]))
                positions.append(position)
            except UserError as e:
                self.unreadable[position] = str(e)
        return positions, waves


class _Writer:
    """Stores the arrays of a batch, in a thread of its own, while the next is computed."""

    def __init__(self, folder: Path):
        self.storage = NumpyFilesWriter(folder)
        self.arrays: dict[int, tuple[str, tuple[int, int]]] = {}  # position -> key and shape
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future | None = None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown()

    def write(self, positions: list[int], arrays: list[np.ndarray]) -> None:
        """Starts writing a batch when the one before is written."""
        self.finish()
        self._pending = self._pool.submit(self._write, positions, arrays)

    def finish(self) -> None:
        """Waits until everything is written; raises the error if something was not."""
        if self._pending is not None:
            self._pending.result()

    def _write(self, positions: list[int], arrays: list[np.ndarray]) -> None:
        for position, array in zip(positions, arrays):
            key = self.storage.write(f"{position:06d}", array)
            self.arrays[position] = (key, array.shape)


def extract_shard(
    shard: Shard,
    root: Path,
    extractor: Extractor,
    max_duration: float,
    on_batch: Callable[[float], None],
) -> None:
    """Computes a shard and puts its folder in place.

    Args:
      root: the folder of the features.
      on_batch: told the seconds of audio of each batch when it is done.

    Raises:
      UserError: features that float16 cannot hold, or a disk that takes no more.
    """
    folder = root / shard.path
    temporary = folder.with_name(folder.name + UNFINISHED)
    with disk_errors_named(folder, temporary, shown=(folder,)):
        _remove(temporary)
        if folder.exists():  # with audio that has been replaced or repaired since
            os.replace(folder, temporary)  # never a folder that looks whole and is not
            _remove(temporary)
        temporary.mkdir(parents=True)
        entries = _fill(temporary, shard, extractor, max_duration, on_batch)
        write_text(temporary / RESULT_FILE, json.dumps({"utterances": entries}))
        os.replace(temporary, folder)


def _fill(
    folder: Path,
    shard: Shard,
    extractor: Extractor,
    max_duration: float,
    on_batch: Callable[[float], None],
) -> list[dict[str, Any]]:
    """Writes the arrays of a shard into ``folder``; returns the entries of shard.json."""
    # Taken before the audio is read: what changes from here on is noticed the next time.
    files = [(file_state(cut), content_digest(cut)) for cut in shard.cuts]
    cuts = {i: MonoCut.from_dict(copy.deepcopy(cut)) for i, cut in enumerate(shard.cuts)}
    lengths = {i: num_samples(cut) for i, cut in cuts.items()}
    batches = make_batches(
        {i: n for i, n in lengths.items() if n >= RECEPTIVE_FIELD}, max_duration
    )
    reader = _Reader(batches, cuts)
    with _Writer(folder) as writer:
        for positions, waves in reader:
            writer.write(positions, _compute(extractor, waves, positions, cuts))
            on_batch(sum(len(wave) for wave in waves) / SAMPLING_RATE)
        writer.finish()
    entries = []
    for i, cut in enumerate(shard.cuts):
        key, shape = writer.arrays.get(i, ("", (0, 0)))
        samples = lengths[i] if lengths[i] < RECEPTIVE_FIELD else 0
        reason = reader.unreadable.get(i, "")
        entry = Stored(cut["id"], settings_digest(cut), *files[i], "", key, shape, samples, reason)
        entries.append(dataclasses.asdict(entry))
    return entries


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _compute(
    extractor: Extractor, waves: list[np.ndarray], positions: list[int], cuts: dict[int, MonoCut]
) -> list[np.ndarray]:
    try:
        return extractor(waves)
    except OverflowError as e:
        names = ", ".join(cuts[p].id for p in positions)
        raise UserError(f"{e}; the batch holds {names}") from e
