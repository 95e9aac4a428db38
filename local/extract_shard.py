"""One shard of an extraction: some ten minutes of a split, computed and stored as one folder.

A shard is a group of utterances that were computed together: consecutive ones of those that were
not there yet, whatever the number of workers. Its folder appears with all of its content at once,
so a killed extraction leaves whole shards only. shard.json records which audio each array was
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
RESULT_FILE = "shard.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A group of cuts, as dictionaries of lhotse's manifest, and the folder of its features."""

    split: str
    cuts: tuple[dict, ...]

    @property
    def path(self) -> str:
        """The folder below that of the features, named by what it holds."""
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
    """One utterance of a shard: an array, or the reason why there is none."""

    id: str
    settings: str  # digest of what the manifest holds about the audio
    file: str  # size and time of change of the audio file
    content: str  # digest of the audio file
    shard: str  # below the folder of the features
    key: str = ""  # of the array, below the shard
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
    """Writes the arrays of a shard into ``folder``; returns the entries of shard.json.

    Threads read and write while a batch is computed; a shard's audio is small enough for that.
    """
    # Taken before the audio is read: what changes from here on is noticed the next time.
    files = [(file_state(cut), content_digest(cut)) for cut in shard.cuts]
    cuts = {i: MonoCut.from_dict(copy.deepcopy(cut)) for i, cut in enumerate(shard.cuts)}
    lengths = {i: num_samples(cut) for i, cut in cuts.items()}
    batches = make_batches(
        {i: n for i, n in lengths.items() if n >= RECEPTIVE_FIELD}, max_duration
    )
    storage = NumpyFilesWriter(folder)
    unreadable: dict[int, str] = {}  # position -> reason
    written: dict[int, tuple[Future, Sequence[int]]] = {}  # position -> key and shape

    def read(batch: list[int]) -> dict[int, np.ndarray]:
        waves = {}
        for position in batch:
            try:
                waves[position] = read_audio(cuts[position])
            except UserError as e:
                unreadable[position] = str(e)
        return waves

    with ThreadPoolExecutor(1) as reading, ThreadPoolExecutor(1) as writing:
        for waves in filter(None, reading.map(read, batches)):
            names = ", ".join(cuts[position].id for position in waves)
            for position, array in zip(waves, _compute(extractor, list(waves.values()), names)):
                key = writing.submit(storage.write, f"{position:06d}", array)
                written[position] = key, array.shape
            on_batch(sum(map(len, waves.values())) / SAMPLING_RATE)
    entries = []
    for i, cut in enumerate(shard.cuts):
        key, shape = (written[i][0].result(), written[i][1]) if i in written else ("", (0, 0))
        samples = lengths[i] if lengths[i] < RECEPTIVE_FIELD else 0
        reason = unreadable.get(i, "")
        entry = Stored(cut["id"], settings_digest(cut), *files[i], "", key, shape, samples, reason)
        entries.append(dataclasses.asdict(entry))
    return entries


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _compute(extractor: Extractor, waves: list[np.ndarray], names: str) -> list[np.ndarray]:
    try:
        return extractor(waves)
    except OverflowError as e:
        raise UserError(f"{e}; the batch holds {names}") from e
