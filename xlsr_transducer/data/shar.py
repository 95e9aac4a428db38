"""Corpora in Lhotse Shar: a few large tar files in place of millions of small ones.

The extraction of features and ``local.make_shar`` write them, and manifests with the tar file and
position of each utterance: ``tar_member`` features, and recordings whose source is of type
``shar``. So batches are planned from the manifests as ever, and each process reads of the tar
files what its own batches need, by position. The plan takes a few tar files at a time.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Optional

import numpy as np
from lhotse import AudioSource, Recording
from lhotse.cut import Cut
from lhotse.features.io import FeaturesReader, register_reader
from lhotse.utils import fastcopy

FEATURES_TYPE = "tar_member"


def members(tar: Path, suffix: str) -> list[tuple[str, str]]:
    """Name without suffix, and place as ``OFFSET:SIZE``, of the files in a tar file."""
    with tarfile.open(tar) as archive:
        found = [(m.name, f"{m.offset_data}:{m.size}") for m in archive if m.isfile()]
    return [(name[: -len(suffix)], place) for name, place in found if name.endswith(suffix)]


def read_member(tar: str | Path, place: str) -> bytes:
    """The bytes at ``OFFSET:SIZE`` of a tar file.

    Raises:
      OSError: there is no such file, or it ends before.
    """
    offset, size = (int(number) for number in place.split(":"))
    with open(tar, "rb") as f:
        f.seek(offset)
        data = f.read(size)
    if len(data) < size:
        raise OSError(f"{tar}: truncated, ends before byte {offset + size}")
    return data


@register_reader
class TarMember(FeaturesReader):
    """Arrays in Shar's ``features.NNNNNN.tar``; the key is ``OFFSET:SIZE``."""

    name = FEATURES_TYPE

    def __init__(self, storage_path: str, *args: object, **kwargs: object) -> None:
        super().__init__()
        self.storage_path = storage_path

    def read(
        self, key: str, left_offset_frames: int = 0, right_offset_frames: Optional[int] = None
    ) -> np.ndarray:
        """Frames of one utterance."""
        values = np.load(io.BytesIO(read_member(self.storage_path, key)), allow_pickle=False)
        return values[left_offset_frames:right_offset_frames]


def tar_of(cut: Cut) -> str:
    """Returns the tar file that holds a cut's features or audio; empty if none does."""
    if cut.has_features and cut.features.storage_type == FEATURES_TYPE:
        return cut.features.storage_path
    sources = cut.recording.sources if cut.has_recording else []
    return sources[0].source.rsplit(":", 2)[0] if sources and sources[0].type == "shar" else ""


def source_in_tar(tar: Path, place: str) -> AudioSource:
    """An audio source that ``with_audio`` can read."""
    return AudioSource(type="shar", channels=[0], source=f"{tar}:{place}")


def with_audio(recording: Recording) -> Recording:
    """The recording, with its compressed audio in memory where it lies in a tar file."""
    source = recording.sources[0]
    if source.type != "shar":
        return recording
    tar, offset, size = source.source.rsplit(":", 2)
    data = read_member(tar, f"{offset}:{size}")
    return fastcopy(recording, sources=[fastcopy(source, type="memory", source=data)])
