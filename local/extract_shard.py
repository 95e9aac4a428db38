"""One shard of an extraction: some ten minutes of a split, computed and stored as one folder.

A shard is a fixed group of consecutive cuts, whatever the number of workers. Its folder
appears with all of its content at once, so a killed extraction leaves whole shards only.
It holds no text: when the text of a manifest changes, its features stay valid.
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
from lhotse import Features, MonoCut, NumpyFilesWriter

from local.extractors import Extractor
from xlsr_transducer.data.audio import num_samples, read_audio
from xlsr_transducer.data.features import FRAME_SHIFT, SAMPLING_RATE
from xlsr_transducer.errors import UserError

SHARD_SECONDS = 600.0
SHORTEST = 400  # samples that the first frame needs
READ_AHEAD = 2  # batches
RESULT_FILE = "shard.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A group of cuts, as dictionaries of lhotse's manifest, and the folder of its features."""

    split: str
    index: int
    cuts: tuple[dict, ...]

    @property
    def path(self) -> str:
        """Where it lies below the folder of the features."""
        return f"{self.split}/shard_{self.index:05d}"

    @property
    def seconds(self) -> float:
        return sum(cut["duration"] for cut in self.cuts)

    def digest(self) -> str:
        """Of everything in the cuts that decides their features."""
        keys = ("id", "start", "duration", "channel", "recording")
        relevant = [[cut[key] for key in keys] for cut in self.cuts]
        return hashlib.sha256(json.dumps(relevant).encode("ascii")).hexdigest()


def plan_shards(split: str, cuts: Iterable[dict]) -> Iterator[Shard]:
    """Groups consecutive cuts until they last ``SHARD_SECONDS`` together."""
    group: list[dict] = []
    index, seconds = 0, 0.0
    for cut in cuts:
        group.append(cut)
        seconds += cut["duration"]
        if seconds >= SHARD_SECONDS:
            yield Shard(split, index, tuple(group))
            index, seconds, group = index + 1, 0.0, []
    if group:
        yield Shard(split, index, tuple(group))


@dataclasses.dataclass(frozen=True)
class ShardResult:
    """What shard.json in a shard's folder says."""

    digest: str
    features: dict[str, dict]  # position of the cut in the shard -> lhotse's Features
    short: dict[str, int]  # position -> samples at 16 kHz
    unreadable: dict[str, dict]  # position -> {"reason": ..., "file": size and time}

    @classmethod
    def load(cls, folder: Path, shard: Shard) -> ShardResult | None:
        """The result of a finished shard; None if it must be computed (again)."""
        try:
            result = cls(**json.loads((folder / RESULT_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        if result.digest != shard.digest():
            return None
        # A file that could not be read may have been repaired since.
        for position, entry in result.unreadable.items():
            if entry["file"] != _file_state(shard.cuts[int(position)]):
                return None
        return result


def _file_state(cut: dict) -> str:
    """Size and time of change of the cut's file, empty if it is missing."""
    try:
        status = os.stat(cut["recording"]["sources"][0]["source"])
    except (OSError, ValueError):
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


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

    def __init__(self, shard: Shard, batches: Sequence[list[int]], cuts: dict[int, MonoCut]):
        self.shard = shard
        self.batches = batches
        self.cuts = cuts
        self.unreadable: dict[str, dict] = {}

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
                wave = read_audio(self.cuts[position])
            except UserError as e:
                state = _file_state(self.shard.cuts[position])
                self.unreadable[str(position)] = {"reason": str(e), "file": state}
                continue
            positions.append(position)
            waves.append(wave)
        return positions, waves


class _Writer:
    """Stores the arrays of a batch, in a thread of its own, while the next is computed."""

    def __init__(self, folder: Path, shard: Shard, cuts: dict[int, MonoCut]):
        self.storage = NumpyFilesWriter(folder)
        self.shard = shard
        self.cuts = cuts
        self.features: dict[str, dict] = {}
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
            features = self._describe(self.cuts[position], array, key)
            self.features[str(position)] = features.to_dict()

    def _describe(self, cut: MonoCut, array: np.ndarray, key: str) -> Features:
        return Features(
            type="xlsr",
            num_frames=array.shape[0],
            num_features=array.shape[1],
            frame_shift=FRAME_SHIFT,
            sampling_rate=SAMPLING_RATE,
            start=cut.start,
            duration=round(array.shape[0] * FRAME_SHIFT, 2),
            storage_type=self.storage.name,
            storage_path=self.shard.path,  # below the folder of the features
            storage_key=key,
            recording_id=cut.recording_id,
            channels=cut.channel,
        )


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
      UserError: features that float16 cannot hold.
    """
    folder = root / shard.path
    temporary = folder.with_name(folder.name + ".tmp")
    _remove(temporary)
    if folder.exists():  # of other cuts, or with audio that has been repaired since
        os.replace(folder, temporary)  # never a folder that looks whole and is not
        _remove(temporary)
    temporary.mkdir(parents=True)
    cuts = {i: MonoCut.from_dict(copy.deepcopy(cut)) for i, cut in enumerate(shard.cuts)}
    lengths = {i: num_samples(cut) for i, cut in cuts.items()}
    short = {str(i): n for i, n in lengths.items() if n < SHORTEST}
    batches = make_batches({i: n for i, n in lengths.items() if n >= SHORTEST}, max_duration)
    reader = _Reader(shard, batches, cuts)
    with _Writer(temporary, shard, cuts) as writer:
        for positions, waves in reader:
            writer.write(positions, _compute(extractor, waves, positions, cuts))
            on_batch(sum(len(wave) for wave in waves) / SAMPLING_RATE)
        writer.finish()
    features, unreadable = _by_position(writer.features), _by_position(reader.unreadable)
    result = ShardResult(shard.digest(), features, short, unreadable)
    _write_result(temporary, result)
    os.replace(temporary, folder)


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


def _by_position(entries: dict[str, dict]) -> dict[str, dict]:
    return {key: entries[key] for key in sorted(entries, key=int)}


def _write_result(folder: Path, result: ShardResult) -> None:
    values: dict[str, Any] = dataclasses.asdict(result)
    (folder / RESULT_FILE).write_text(json.dumps(values), encoding="utf-8")
