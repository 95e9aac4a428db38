"""Faults of a corpus: manifests and features that contradict each other or themselves."""

from __future__ import annotations

import collections
import logging
import math
from collections.abc import Iterator
from pathlib import Path

from lhotse.utils import compute_num_samples

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import SAMPLING_RATE, num_frames
from xlsr_transducer.data.audio import AUDIO_DURATION
from xlsr_transducer.data.shar import FEATURES_TYPE
from xlsr_transducer.model.feature_info import FeatureInfo

_SHOWN_PER_KIND = 5
_TOLERANCE = 1e-3  # seconds: durations are rounded to samples here and there
_ITEM_SIZE = 2  # bytes of a float16


class Problems:
    """Counts what is wrong by kind, and logs the first cases of each."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()

    def add(self, kind: str, where: str) -> None:
        """``where``: file and cut."""
        self.counts[kind] += 1
        if self.counts[kind] <= _SHOWN_PER_KIND:
            logging.error("%s: %s", where, kind)

    def add_stale(self, reason: str) -> None:
        """``reason``: which file was made from other data, and the command that makes it again."""
        self.counts["files that were not made from the manifests as they are now"] += 1
        logging.error("%s", reason)

    def raise_if_any(self) -> None:
        """Raises UserError with the number of cases of each kind."""
        if self.counts:
            kinds = "; ".join(f"{kind} ({n})" for kind, n in self.counts.most_common())
            raise UserError(f"the manifests are not in order: {kinds}")


def cut_problems(cut: dict) -> Iterator[str]:
    """Yields the faults of a cut, seen alone. ``cut``: a lhotse cut's dictionary."""
    if cut.get("type") != "MonoCut":
        yield f"it is a {cut.get('type')}, not a MonoCut"
        return
    for part in ("recording", "supervisions", "duration"):
        if cut.get(part) is None:
            yield f"there is no {part}"
            return
    duration = cut["duration"]
    if not (math.isfinite(duration) and duration > 0):
        yield "the duration is not a positive number"
        return
    recording = cut["recording"]
    if cut["start"] < 0 or cut["start"] + duration > recording["duration"] + _TOLERANCE:
        yield "the cut reaches beyond its recording"
    if len(cut["supervisions"]) != 1:
        yield "there is not exactly one supervision"
        return
    [supervision] = cut["supervisions"]
    if not (supervision["text"] or "").strip():
        yield "the text is empty"
    end = supervision["start"] + supervision["duration"]
    if not (supervision["start"] >= -_TOLERANCE and end <= duration + _TOLERANCE):
        yield "the supervision reaches beyond the recording"
    if supervision["recording_id"] != recording["id"]:
        yield "the supervision belongs to another recording"


def feature_problems(cut: dict, info: FeatureInfo, folder: Path) -> Iterator[str]:
    """Yields the faults of a cut's features."""
    features = cut.get("features")
    if features is None:
        yield "there are no features"
        return
    if features["num_frames"] != num_frames(_num_samples(cut)):
        yield "the number of frames is not floor((samples - 400) / 320) + 1"
    if features["num_features"] != info.feature_dim:
        yield "the feature dimension differs from features.json"
    if features["storage_type"] == "numpy_files":
        path = folder / features["storage_path"] / features["storage_key"]
        size = path.stat().st_size if path.is_file() else 0
        if size < features["num_frames"] * features["num_features"] * _ITEM_SIZE:
            yield "the array is missing or too short"
    elif features["storage_type"] == FEATURES_TYPE:
        path = folder / features["storage_path"]
        size = path.stat().st_size if path.is_file() else 0
        if size < sum(map(int, features["storage_key"].split(":"))):  # where it begins, and bytes
            yield "the tar file of the array is missing or too short"


def _num_samples(cut: dict) -> int:
    """Returns the samples at 16 kHz that features were computed from."""
    seconds = (cut.get("custom") or {}).get(AUDIO_DURATION)
    if seconds is None:
        return cut["recording"]["num_samples"]
    return compute_num_samples(seconds, SAMPLING_RATE)
