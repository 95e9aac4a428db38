"""A split of an extraction: what is stored of it already, what is missing, and its manifests.

FEATURES/cuts_SPLIT.jsonl.gz           each utterance in the order of the input, with the place
                                       of its array: what training reads
FEATURES/SPLIT/cuts.DIGEST.jsonl.gz    the utterances of a tar file in its order, for
                                       lhotse's CutSet.from_shar
"""

from __future__ import annotations

import array
import contextlib
import copy
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

from lhotse import MonoCut
from lhotse.serialization import deserialize_item
from lhotse.utils import fastcopy

from local.audio_identity import settings_digest
from local.extract_records import RECORDS, Record, Records, Stored
from local.extract_shard import Shard, features_of, plan_shards, shard_seconds
from local.manifests import JsonlGzWriter, manifest_path, read_jsonl_gz
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import UNFINISHED, replacing
from xlsr_transducer.core.geometry import FRAME_SHIFT, RECEPTIVE_FIELD, SAMPLING_RATE
from xlsr_transducer.data.audio import AUDIO_DURATION
from xlsr_transducer.data.cuts import first_channel
from xlsr_transducer.data.features import cuts_path
from xlsr_transducer.data.flaws import damage_named, input_flaw
from xlsr_transducer.data.sources import cuts_digest, note_source

MAX_UNREADABLE = 1.0  # percent of a split's cuts
_MISSING, _FLAWED = -1, -2  # in the place of a place


class Split:
    """The cuts of a split, and what is stored of them already."""

    def __init__(self, data_dir: Path, folder: Path, name: str, subset: int | None = None):
        """
        Args:
          folder: of the features.
          subset: only the first so many utterances.

        Raises:
          UserError: the folder holds features that an older version of this program made.
        """
        self.folder, self.name, self.subset = folder, name, subset
        self.manifest = manifest_path(data_dir, "cuts", name)
        self.digest = cuts_digest(self.manifest) if self.manifest.is_file() else ""
        self.flawed: dict[int, str] = {}  # number of the cut -> reason
        self.seconds = 0.0  # of all cuts
        self.missing_seconds = 0.0  # of those that must be computed
        self._places = array.array("q")  # of each cut in the records
        if next((folder / name).glob("shard_*"), None):
            raise UserError(
                f"{folder} holds features of an older version, one file each: they can be used, "
                "but nothing can be added: give another --name, or remove the folder"
            )

    def cuts(self) -> Iterator[dict]:
        """The cuts, each of one channel, as dictionaries."""
        for cut in itertools.islice(read_jsonl_gz(self.manifest), self.subset):
            if cut.get("type") == "MultiCut":
                cut = first_channel(deserialize_item(cut)).to_dict()
            yield cut

    def find_stored(self) -> None:
        """Notes what is there, and what gives no features."""
        self.records = Records(self.folder, self.name)
        self.seconds, self.missing_seconds = 0.0, 0.0
        self.flawed, self._places = {}, array.array("q")
        with damage_named(self.manifest):
            for number, cut in enumerate(self.cuts()):
                flaw = input_flaw(deserialize_item(copy.deepcopy(cut)), from_waveform=True)
                if flaw:
                    self.flawed[number] = flaw
                    self._places.append(_FLAWED)
                    continue
                self.seconds += cut["duration"]
                settings = settings_digest(cut)
                found = (p for p, s in self.records.find(cut["id"]) if s.fits(cut, settings))
                place = next(found, _MISSING)
                if place == _MISSING:
                    self.missing_seconds += cut["duration"]
                self._places.append(place)

    def missing_shards(self, width: int) -> Iterator[Shard]:
        """Returns what must be computed.

        Args:
          width: of the features.
        """
        pairs = zip(self.cuts(), self._places)
        missing = (cut for cut, place in pairs if place == _MISSING)
        return plan_shards(self.name, missing, shard_seconds(self.seconds, width))

    def entries(self) -> Iterator[tuple[dict, int, Stored | None, str]]:
        """Yields each cut, its place, its entry, and why it has no features.

        Raises:
          UserError: one is not there, nor known to give none.
        """
        for number, (cut, place) in enumerate(zip(self.cuts(), self._places)):
            if place == _MISSING:
                raise UserError(f"the audio of {cut['id']} changed meanwhile: run this again")
            stored = None if place == _FLAWED else self.records[place]
            reason = stored.unreadable if stored else self.flawed[number]
            yield cut, place, stored, reason

    def used(self) -> Iterator[int]:
        """Yields the places of the cuts that are stored."""
        return (place for place in self._places if place >= 0)


def merge_split(split: Split) -> None:
    """Writes the manifests of a split, and the tables of omissions.

    Raises:
      UserError: too much audio could not be read, or none is left.
    """
    folder, name = split.folder, split.name
    short, unreadable = (folder / f"{kind}_{name}.tsv" for kind in ("short", "unreadable"))
    count = {"stored": 0, "short": 0, "unreadable": 0}
    shards = _SharManifests(split)
    with replacing(cuts_path(folder, name)) as [manifest]:
        with contextlib.ExitStack() as stack:
            writer = stack.enter_context(JsonlGzWriter(manifest))
            tables = stack.enter_context(replacing(short, unreadable))
            files = [stack.enter_context(open(t, "w", encoding="utf-8")) for t in tables]
            for title, file in zip(("samples at 16 kHz", "reason"), files):
                file.write(f"utterance\t{title}\n")
            for values, place, stored, reason in split.entries():
                kind = "unreadable" if reason else "stored" if stored.key else "short"
                count[kind] += 1
                name_of_cut, cut = values["id"], None
                if kind == "stored":
                    tar = split.records.shard(split.records.number_of(place)).tar
                    cut = with_features(values, stored, tar)
                    writer.write(cut)
                elif kind == "short":
                    files[0].write(f"{name_of_cut}\t{stored.samples}\n")
                else:
                    files[1].write(f"{name_of_cut}\t{reason}\n")
                if stored:
                    shards.add(place, cut)
        check_counts(name, count, short, unreadable)
    note_source(folder, cuts_path(folder, name).name, split.digest)


def with_features(values: dict, stored: Stored, tar: str) -> MonoCut:
    """Returns the cut with its features attached, audio at 16 kHz.

    Args:
      tar: below the folder of the features.
    """
    cut = MonoCut.from_dict(values)
    features = features_of(cut, stored.shape, tar, stored.key)
    return fastcopy(
        cut,
        duration=features.duration,
        recording=cut.recording.resample(SAMPLING_RATE),
        features=features,
        supervisions=[s.trim(features.duration) for s in cut.supervisions],
        custom={**(cut.custom or {}), AUDIO_DURATION: cut.duration},
    )


class _SharManifests:
    """Manifests beside the tar files, which name the utterances of each in its order.

    An utterance that no list uses any more has no supervision there. The others are in memory
    until those of their tar file are together, which is soon where lists keep their order.
    """

    def __init__(self, split: Split):
        self._folder, self._records = split.folder / split.name, split.records
        self._left = self._records.counts(split.used())  # lines still to come, by shard
        self._waiting: dict[int, dict[str, MonoCut]] = {}  # shard -> id -> cut

    def add(self, place: int, cut: MonoCut | None) -> None:
        """Takes in what an utterance of the split has become: a cut with features, or nothing."""
        shard = self._records.number_of(place)
        waiting = self._waiting.setdefault(shard, {})
        if cut is not None:
            waiting[cut.id] = fastcopy(
                cut, start=0, recording=None, features=fastcopy(cut.features, **_IN_SHAR)
            )
        self._left[shard] -= 1
        if self._left[shard] == 0:
            self._write(self._records.shard(shard), self._waiting.pop(shard))

    def _write(self, record: Record, cuts: dict[str, MonoCut]) -> None:
        if not record.tar:
            return
        path = shar_cuts(self._folder, Path(record.tar))
        with replacing(path) as [temporary], JsonlGzWriter(temporary) as writer:
            for stored in record.utterances:
                if stored.key:
                    writer.write(cuts.get(stored.id) or _unused(stored))


_IN_SHAR = {"start": 0, "storage_type": "shar", "storage_path": "", "storage_key": ""}


def _unused(stored: Stored) -> MonoCut:
    """Returns the cut of an array that no list uses any more."""
    duration = round(stored.shape[0] * FRAME_SHIFT, 2)
    cut = MonoCut(stored.id, start=0, duration=duration, channel=0)
    return fastcopy(cut, features=features_of(cut, stored.shape))


def shar_cuts(folder: Path, tar: Path) -> Path:
    """Returns where the manifest of a tar file lies."""
    return folder / f"cuts.{tar.name.split('.')[1]}.jsonl.gz"


def remove_unused(split: Split) -> None:
    """Removes the shards of a complete split of which no utterance is used any more, and what
    interrupted workers left."""
    records, folder = split.records, split.folder / split.name
    used = records.counts(split.used()) > 0
    kept: set[Path] = set()
    for number, path in enumerate(records.paths):
        if used[number]:
            tar = split.folder / records.shard(number).tar
            kept |= {tar, shar_cuts(folder, tar)} if tar.suffix else set()
        else:
            path.unlink()
            logging.info("%s: removed, its utterances are in no list any more", path)
    left = [*(split.folder / RECORDS / split.name).glob(f"*{UNFINISHED}")]
    left += (path for path in folder.glob("*") if path not in kept)
    for path in left:
        path.unlink(missing_ok=True)


def check_counts(split: str, count: dict[str, int], short: Path, unreadable: Path) -> None:
    """Reports what was left out. Raises UserError if it was too much."""
    logging.info("%s: features of %d utterances", split, count["stored"])
    if count["short"]:
        logging.warning(
            "%s: %d utterances have less than %d samples at 16 kHz and were left out, see %s",
            split,
            count["short"],
            RECEPTIVE_FIELD,
            short,
        )
    percent = 100 * count["unreadable"] / max(sum(count.values()), 1)
    message = f"{split}: the audio of {count['unreadable']} utterances ({percent:.1f} %) could "
    message += f"not be read, see {unreadable}"
    if percent > MAX_UNREADABLE:
        raise UserError(f"{message}; mend or remove them, then run this again")
    if count["unreadable"]:
        logging.warning("%s; they were left out", message)
    if not count["stored"]:
        raise UserError(f"{split}: no utterance is left")
