"""Recordings with their supervisions, as stage 1 wrote them, and the cuts made of them."""

from __future__ import annotations

import array
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from lhotse import MonoCut, Recording, SupervisionSegment

from local.manifests import manifest_path, read_jsonl_gz
from xlsr_transducer.core.errors import UserError


def read_pairs(data_dir: Path, split: str) -> Iterator[tuple[dict, dict]]:
    """Yields each supervision with its recording, as dictionaries: recording, supervision.

    Recordings stand in the order of their first use. Those of several utterances are kept until
    the last of these; that takes 8 bytes for each utterance of the split.

    Raises:
      UserError: the two manifests do not belong together.
    """
    kinds = ("recordings", "supervisions")
    paths = [manifest_path(data_dir, kind, split) for kind in kinds]
    uses = _repeated(paths[1])
    recordings = read_jsonl_gz(paths[0])
    kept: dict[str, dict] = {}
    for supervision in read_jsonl_gz(paths[1]):
        name = supervision["recording_id"]
        recording = kept[name] if name in kept else next(recordings, None)
        if recording is None or recording["id"] != name:
            raise UserError(f"{paths[0]} and {paths[1]} do not pair: run stage 1 again")
        key = _digest(name)
        if key in uses:
            uses[key] -= 1
            kept[name] = recording
            if not uses[key]:
                del kept[name]
        yield recording, supervision
    if next(recordings, None) is not None:
        raise UserError(f"{paths[0]} and {paths[1]} do not pair: run stage 1 again")


def _repeated(supervisions: Path) -> dict[int, int]:
    """Returns how many utterances the recordings of more than one have, by digest."""
    names = array.array("Q", (_digest(s["recording_id"]) for s in read_jsonl_gz(supervisions)))
    values, counts = np.unique(np.frombuffer(names, np.uint64), return_counts=True)
    several = counts > 1
    return dict(zip(values[several].tolist(), counts[several].tolist()))


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
