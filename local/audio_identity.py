"""Whether the audio of a cut is still the audio that its features were computed from.

A file of the same size and time of change is taken to be the same. Otherwise its content decides,
so that a corpus may be copied to another place, and a replaced file of the same length is noticed.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator

from xlsr_transducer.data.shar import read_member

_KEYS = ("start", "duration", "channel")
_RECORDING_KEYS = ("sampling_rate", "num_samples", "channel_ids", "transforms")


def settings_digest(cut: dict) -> str:
    """Returns a digest of all that the manifest holds about a cut's audio, but not its place.

    Args:
      cut: the dictionary of a MonoCut.
    """
    recording = cut["recording"]
    channels = [(s["type"], s["channels"]) for s in recording["sources"]]
    relevant = [[cut[key] for key in _KEYS], [recording.get(k) for k in _RECORDING_KEYS], channels]
    return _digest([json.dumps(relevant).encode("ascii")])


def file_state(cut: dict) -> str:
    """Size and time of change of each file of a cut, empty if one is missing."""
    try:
        states = [os.stat(_file(source)[0]) for source in cut["recording"]["sources"]]
    except (OSError, ValueError, TypeError):
        return ""
    return " ".join(f"{s.st_size} {s.st_mtime_ns}" for s in states)


def content_digest(cut: dict) -> str:
    """Returns a digest of the bytes of a cut's audio, empty if they cannot be read."""
    sources = tuple(_file(source) for source in cut["recording"]["sources"])
    try:
        return _content_digest(sources, file_state(cut))
    except (OSError, ValueError, TypeError):
        return ""


@functools.lru_cache(maxsize=256)  # a recording may hold many utterances
def _content_digest(sources: tuple[tuple[str, str], ...], state: str) -> str:
    return _digest(itertools.chain.from_iterable(_read(*source) for source in sources))


def _file(source: dict) -> tuple[str, str]:
    """Returns the path, and the place in a tar file."""
    if source["type"] != "shar":
        return source["source"], ""
    path, offset, size = source["source"].rsplit(":", 2)
    return path, f"{offset}:{size}"


def _read(path: str, place: str) -> Iterator[bytes]:
    """Yields the bytes in pieces: a recording may last for hours."""
    if place:
        yield read_member(path, place)
        return
    with open(path, "rb") as file:
        yield from iter(lambda: file.read(1 << 20), b"")


def _digest(pieces: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()
