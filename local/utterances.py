"""Recordings with their supervisions, as stage 1 wrote them, and the cuts made of them."""

from __future__ import annotations

import array
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from lhotse import MonoCut, Recording, SupervisionSegment

from local.manifests import manifest_path, read_jsonl_gz
from xlsr_transducer.core.errors import UserError


def read_pairs(data_dir: Path, split: str) -> Iterator[tuple[dict, dict]]:
    """Yields each supervision with its recording, as dictionaries: recording, supervision.

    Raises:
      UserError: the two manifests do not belong together.
    """
    kinds = ("recordings", "supervisions")
    paths = [manifest_path(data_dir, kind, split) for kind in kinds]
    names = (supervision["recording_id"] for supervision in read_jsonl_gz(paths[1]))
    pool = RecordingPool(read_jsonl_gz(paths[0]), names)
    for supervision in read_jsonl_gz(paths[1]):
        recording = pool.take(supervision["recording_id"])
        if recording is None:
            break
        yield recording, supervision
    else:
        if pool.is_used_up():
            return
    raise UserError(f"{paths[0]} and {paths[1]} do not pair: run stage 1 again")


class RecordingPool:
    """Recordings that are read as they are wanted, and kept as long as they are wanted again.

    Memory: 8 bytes for each utterance, and the recordings that are kept; few, if recordings stand
    in the order of their first use.
    """

    def __init__(self, recordings: Iterator[dict], names: Iterable[str]) -> None:
        """``names``: the recording of each utterance that will be taken."""
        self._unread = recordings
        self._kept: dict[str, dict] = {}
        digests = np.frombuffer(array.array("Q", map(_digest, names)), np.uint64)
        values, counts = np.unique(digests, return_counts=True)
        several = counts > 1
        self._uses = dict(zip(values[several].tolist(), counts[several].tolist()))  # to come

    def take(self, name: str) -> dict | None:
        """Returns the recording for the next utterance of it; None if there is none."""
        while name not in self._kept:
            recording = next(self._unread, None)
            if recording is None:
                return None
            self._kept[recording["id"]] = recording
        key = _digest(name)
        self._uses[key] = left = self._uses.get(key, 1) - 1
        if left <= 0:
            del self._uses[key]
            return self._kept.pop(name)
        return self._kept[name]

    def is_used_up(self) -> bool:
        """Returns whether all recordings were taken as often as they were to be."""
        return not self._kept and next(self._unread, None) is None


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def read_utterances(data_dir: Path, split: str) -> Iterator[tuple[Recording, SupervisionSegment]]:
    """Recordings with their supervisions, one at a time. Raises UserError if they do not pair."""
    for recording, supervision in read_pairs(data_dir, split):
        # lhotse takes a dictionary apart, and a recording may come again.
        yield Recording.from_dict({**recording}), SupervisionSegment.from_dict(supervision)


def make_cut(recording: Recording, supervision: SupervisionSegment, text: str) -> MonoCut:
    """Returns the part of a recording that is an utterance, with the normalized ``text``."""
    supervision.custom = {**(supervision.custom or {}), "original_text": supervision.text}
    supervision.text = text
    start, supervision.start = supervision.start, 0.0
    return MonoCut(
        id=supervision.id,
        start=start,
        duration=supervision.duration,
        channel=supervision.channel,
        recording=recording,
        supervisions=[supervision],
    )
