"""Names recordings and utterances, and knows which part of which audio was used where."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from local.importers.entry import Entry
from local.importers.parts import Part
from local.lists import Place
from xlsr_transducer.core.errors import UserError


class Use(NamedTuple):
    """The names of an utterance and of its recording."""

    utterance: str
    recording: str
    is_new: bool  # the split has not had this recording yet


class _Lone(NamedTuple):
    """A recording of one utterance, as most are; flat, to be small."""

    recording: str
    start: int
    end: int
    channel: int
    split: str
    line: int
    list: str

    @property
    def parts(self) -> dict[Part, Place]:
        return {Part(*self[1:4]): Place(*self[4:])}


class _Shared(NamedTuple):
    """A recording of several utterances."""

    recording: str
    parts: dict[Part, Place]


class Uses:
    """What the splits use so far.

    Memory: some 200 bytes for each recording or segment, besides the names.
    """

    def __init__(self) -> None:
        self._of: dict[bytes, _Lone | _Shared] = {}  # by digest of the audio's path
        self._utterances: set[str] = set()
        self._recordings: set[str] = set()  # names that no utterance of the recording has
        self._in_several: dict[bytes, set[str]] = {}  # splits

    def first(self, audio: str, part: Part) -> Place | None:
        """Returns where this part of this audio was used before."""
        known = self._of.get(_digest(audio))
        return known.parts.get(part) if known else None

    def add(self, entry: Entry, part: Part, place: Place, suffix: str = "") -> Use:
        """Notes that an utterance uses a part of its audio, and names it.

        Args:
          suffix: of the name, where one line gives several utterances.
        """
        known = self._of.get(_digest(entry.audio))
        if known is None:
            recording = self._free(entry.recording or _stem(entry.path), entry.path)
        else:
            recording = known.recording
        is_whole = part.start == 0 and part.end == entry.info.num_samples
        if entry.id:
            wanted = entry.id
        elif is_whole:
            wanted = recording
        else:
            wanted = f"{recording}-{round(1000 * part.start / entry.info.sampling_rate):08d}"
        utterance = self._free(wanted + suffix, entry.path, own=recording)
        is_new = self.note(entry.audio, part, place, utterance, recording)
        return Use(utterance, recording, is_new)

    def note(self, audio: str, part: Part, place: Place, utterance: str, recording: str) -> bool:
        """Notes a use under names that are known; returns whether the recording is new in the
        split."""
        self._utterances.add(utterance)
        key = _digest(audio)
        known = self._of.get(key)
        if known is None:
            if utterance != recording:
                self._recordings.add(recording)
            self._of[key] = _Lone(recording, *part, *place)
            return True
        if isinstance(known, _Lone):
            known = self._of[key] = _Shared(known.recording, known.parts)
        splits = self._in_several.get(key) or {next(iter(known.parts.values())).split}
        known.parts[part] = place
        if place.split in splits:
            return False
        self._in_several[key] = splits | {place.split}
        return True

    def check_overlaps(self, split: str) -> None:
        """Looks at the recordings that a split shares with earlier ones, and warns of them.

        Raises:
          UserError: two utterances of different splits overlap.
        """
        shared = [key for key, splits in self._in_several.items() if split in splits]
        for key in shared:
            self._check_recording(self._of[key])
        if shared:
            logging.warning(
                "%s: %d recordings are in another split too, such as %s; no segments overlap, "
                "but speakers and rooms may be the same",
                split, len(shared), self._of[shared[0]].recording,
            )  # fmt: skip

    def _check_recording(self, known: _Lone | _Shared) -> None:
        latest: dict[tuple[int, str], tuple[int, Place]] = {}  # channel and split -> end, where
        for part, place in sorted(known.parts.items()):
            for (channel, split), (end, other) in latest.items():
                if channel == part.channel and split != place.split and end > part.start:
                    raise UserError(
                        f"the recording {known.recording} is in two splits, and segments overlap:"
                        f" {other} and {place}; keep them in one of them"
                    )
            of = part.channel, place.split
            if of not in latest or latest[of][0] < part.end:
                latest[of] = part.end, place

    def _free(self, wanted: str, path: str, own: str = "") -> str:
        """Returns the name; if taken, with a hash of the path in the list.

        Args:
          own: the recording of an utterance, whose name it may share.
        """
        wanted = re.sub(r"[\s/\\]+", "_", wanted)
        for name in _candidates(wanted, path):
            if name not in self._utterances and (name == own or name not in self._recordings):
                return name
        raise AssertionError("the candidates never end")


def _candidates(wanted: str, path: str) -> Iterator[str]:
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()
    yield wanted
    yield from (f"{wanted}-{digest[:size]}" for size in range(8, 17))
    # The same path in the list, found in different folders.
    yield from (f"{wanted}-{digest}-{i}" for i in itertools.count(2))


def _stem(path: str) -> str:
    """The file's name without its ending, of letters, digits, `.`, `_` and `-`."""
    return re.sub(r"[^\w.-]+", "_", os.path.splitext(os.path.basename(path))[0])


def _digest(audio: str) -> bytes:
    return hashlib.blake2b(os.fsencode(audio), digest_size=16).digest()
