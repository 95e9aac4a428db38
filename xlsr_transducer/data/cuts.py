"""How manifests of cuts are read: one by one, each as a part of one channel of one recording."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lhotse import CutSet, MonoCut, SupervisionSegment
from lhotse.cut import Cut, MultiCut
from lhotse.utils import fastcopy

from xlsr_transducer.data.flaws import damage_named

LANGUAGE = "language"
COLUMNS = "columns"  # custom field of a supervision: what its corpus told besides, as text


def load_cuts(path: Path) -> CutSet:
    """Returns the cuts of a manifest, which each pass over them reads again.

    Iterating raises UserError if the file is damaged.
    """
    return CutSet(_Cuts(path))


def group_of(supervision: SupervisionSegment, group_by: str = "") -> str:
    """Returns the group of an utterance; "" if it has none.

    Args:
      group_by: ``language``, a custom field, or a column of the corpus; "": custom field
        ``group``, or else the language.
    """
    custom = supervision.custom or {}
    if group_by:
        columns = custom.get(COLUMNS) or {}
        own = custom.get(group_by, columns.get(group_by))
        value = supervision.language if group_by == LANGUAGE else own
    else:
        value = custom.get("group") or supervision.language
    return "" if value is None else str(value)


class _Cuts:
    def __init__(self, path: Path):
        self.path = path

    def __iter__(self) -> Iterator[Cut]:
        with damage_named(self.path):
            is_lazy = ".jsonl" in self.path.suffixes
            cuts = CutSet.from_jsonl_lazy(self.path) if is_lazy else CutSet.from_file(self.path)
            yield from map(first_channel, cuts)


def first_channel(cut: Cut) -> Cut:
    """Returns the first channel of a cut, with its supervisions; a cut of one channel as it is."""
    if not isinstance(cut, MultiCut):
        return cut
    channels = [cut.channel] if isinstance(cut.channel, int) else cut.channel
    channel = min(channels, default=0)
    supervisions = [
        fastcopy(s, channel=channel)
        for s in cut.supervisions
        if s.channel == channel or (isinstance(s.channel, list) and channel in s.channel)
    ]
    return MonoCut(
        id=cut.id,
        start=cut.start,
        duration=cut.duration,
        channel=channel,
        supervisions=supervisions,
        recording=cut.recording,
        custom=cut.custom,
    )
