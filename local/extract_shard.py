"""One shard of an extraction: a part of a split, computed and stored as one tar file.

A shard is a group of utterances that are computed together, in batches of their own: consecutive
ones of those that were not there yet. Neither depends on the workers. The tar file appears whole
and holds no times or names of users, so that the same audio gives the same bytes; a killed
extraction leaves whole shards only. It holds no text either.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import itertools
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from lhotse import Features, MonoCut

from local.audio_identity import content_digest, file_state, settings_digest
from local.extract_records import Record, Stored, name_of_its_own, record_path
from local.extractors import Extractor
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import disk_errors_named
from xlsr_transducer.core.geometry import FRAME_SHIFT, RECEPTIVE_FIELD, SAMPLING_RATE
from xlsr_transducer.data.audio import num_samples, read_audio
from xlsr_transducer.data.shar import FEATURES_TYPE, members

SHARD_BYTES = 200e6  # of a tar file
LEAST_SECONDS = 60.0  # of audio in a shard
SHARDS_OF_SPLIT = 64  # at least, so that a small corpus keeps several workers busy
READ_AHEAD = 3  # batches of audio in memory, beside the one that is computed
ARRAY_SUFFIX = ".npy"
_FLOAT16 = 2  # bytes


@dataclasses.dataclass(frozen=True)
class Shard:
    """A group of cuts, as dictionaries of lhotse's manifest."""

    split: str
    cuts: tuple[dict, ...]

    @property
    def name(self) -> str:
        """Tells what it holds."""
        content = [[cut["id"], settings_digest(cut)] for cut in self.cuts]
        return hashlib.sha256(json.dumps(content).encode("ascii")).hexdigest()[:16]

    @property
    def seconds(self) -> float:
        return sum(cut["duration"] for cut in self.cuts)

    def __str__(self) -> str:
        first, last = self.cuts[0]["id"], self.cuts[-1]["id"]
        return f"{self.split}: the {len(self.cuts)} utterances from {first} to {last}"


def shard_seconds(seconds: float, width: int) -> float:
    """Returns how long a shard lasts.

    Args:
      seconds: of audio in the split. width: of its features.
    """
    largest = SHARD_BYTES / _FLOAT16 / width * FRAME_SHIFT
    return min(max(seconds / SHARDS_OF_SPLIT, LEAST_SECONDS), largest)


def plan_shards(split: str, cuts: Iterable[dict], seconds: float) -> Iterator[Shard]:
    """Groups consecutive cuts until they last ``seconds`` together."""
    group: list[dict] = []
    total = 0.0
    for cut in cuts:
        group.append(cut)
        total += cut["duration"]
        if total >= seconds:
            yield Shard(split, tuple(group))
            total, group = 0.0, []
    if group:
        yield Shard(split, tuple(group))


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


def extract_shard(
    shard: Shard,
    root: Path,
    extractor: Extractor,
    max_duration: float,
    on_batch: Callable[[float], None],
) -> None:
    """Computes a shard and puts its tar file and record in place.

    Args:
      root: the folder of the features.
      on_batch: told the seconds of audio of each batch when it is done.

    Raises:
      UserError: features that float16 cannot hold, or a disk that takes no more.
    """
    record = record_path(root, shard.split, shard.name)
    with disk_errors_named(root / shard.split, record, shown=(root / shard.split,)):
        # Taken before the audio is read: what changes from here on is noticed the next time.
        files = [(file_state(cut), content_digest(cut)) for cut in shard.cuts]
        cuts = [MonoCut.from_dict(copy.deepcopy(cut)) for cut in shard.cuts]
        arrays, unreadable = _compute_all(cuts, extractor, max_duration, on_batch)
        tar, size, places = _put(shard.split, root, record.parent, cuts, arrays)
        entries = []
        for i, (cut, values) in enumerate(zip(cuts, shard.cuts)):
            samples = num_samples(cut)
            entry = Stored(
                id=cut.id,
                settings=settings_digest(values),
                file=files[i][0],
                content=files[i][1],
                key=places.get(i, ""),
                shape=arrays[i].shape if i in arrays else (0, 0),
                samples=samples if samples < RECEPTIVE_FIELD else 0,
                unreadable=unreadable.get(i, ""),
            )
            entries.append(entry)
        Record(tar, size, tuple(entries)).write(record)


def _compute_all(
    cuts: list[MonoCut],
    extractor: Extractor,
    max_duration: float,
    on_batch: Callable[[float], None],
) -> tuple[dict[int, np.ndarray], dict[int, str]]:
    """Returns arrays (T, D) float16, and reasons why there is none, by the cuts' positions.

    A thread reads while a batch is computed.
    """
    arrays: dict[int, np.ndarray] = {}
    unreadable: dict[int, str] = {}
    lengths = {i: num_samples(cut) for i, cut in enumerate(cuts)}
    batches = make_batches(
        {i: n for i, n in lengths.items() if n >= RECEPTIVE_FIELD}, max_duration
    )

    def read(batch: list[int]) -> dict[int, np.ndarray]:
        waves = {}
        for position in batch:
            try:
                waves[position] = read_audio(cuts[position])
            except UserError as e:
                unreadable[position] = str(e)
        return waves

    with ThreadPoolExecutor(1) as reading:
        for waves in filter(None, _ahead(reading, read, batches)):
            names = ", ".join(cuts[position].id for position in waves)
            for position, array in zip(waves, _compute(extractor, list(waves.values()), names)):
                arrays[position] = np.ascontiguousarray(array)  # not a part of a padded batch
            on_batch(sum(map(len, waves.values())) / SAMPLING_RATE)
    return arrays, unreadable


def _ahead(pool: ThreadPoolExecutor, function: Callable, items: Iterable) -> Iterator:
    """Returns what ``function`` returns for each item; some are computed in advance."""
    left = iter(items)
    waiting: list[Future] = []
    while True:
        for item in itertools.islice(left, READ_AHEAD + 1 - len(waiting)):
            waiting.append(pool.submit(function, item))
        if not waiting:
            return
        yield waiting.pop(0).result()


def _compute(extractor: Extractor, waves: list[np.ndarray], names: str) -> list[np.ndarray]:
    try:
        return extractor(waves)
    except OverflowError as e:
        raise UserError(f"{e}; the batch holds {names}") from e


def _put(
    split: str, root: Path, beside: Path, cuts: list[MonoCut], arrays: dict[int, np.ndarray]
) -> tuple[str, int, dict[int, str]]:
    """Puts a tar file of arrays in place; returns its path below ``root``, its size, and places.

    Args:
      beside: the folder in which it is written.
    """
    if not arrays:
        return "", 0, {}
    with name_of_its_own(beside) as temporary:
        places = _write_tar(temporary, cuts, arrays)
        size = temporary.stat().st_size
        tar = f"{split}/features.{_file_digest(temporary)}.tar"
        (root / split).mkdir(parents=True, exist_ok=True)
        os.replace(temporary, root / tar)
    return tar, size, places


def _write_tar(path: Path, cuts: list[MonoCut], arrays: dict[int, np.ndarray]) -> dict[int, str]:
    """Writes arrays in the order of the cuts; returns their places by the cuts' positions."""
    positions = sorted(arrays)
    with tarfile.open(path, "w") as tar:
        for position in positions:
            cut, array, content = cuts[position], arrays[position], io.BytesIO()
            np.save(content, array, allow_pickle=False)
            description = features_of(cut, array.shape).to_dict()
            _add(tar, f"{cut.id}{ARRAY_SUFFIX}", content.getvalue())
            _add(tar, f"{cut.id}.json", json.dumps(description).encode("ascii") + b"\n")
    return dict(zip(positions, (place for _, place in members(path, ARRAY_SUFFIX)), strict=True))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # without time and user
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def features_of(cut: MonoCut, shape: Iterable[int], tar: str = "", place: str = "") -> Features:
    """Returns lhotse's description of an array (T, D): of one in Shar, where ``tar`` is empty.

    Args:
      place: ``OFFSET:SIZE`` in the tar file.
    """
    frames, width = shape
    return Features(
        type="xlsr",
        num_frames=frames,
        num_features=width,
        frame_shift=FRAME_SHIFT,
        sampling_rate=SAMPLING_RATE,
        start=cut.start if tar else 0,
        duration=round(frames * FRAME_SHIFT, 2),
        storage_type=FEATURES_TYPE if tar else "shar",
        storage_path=tar,
        storage_key=place,
        recording_id=cut.recording_id if cut.has_recording else None,
        channels=cut.channel,
    )


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()[:16]
