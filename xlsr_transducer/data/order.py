"""The order of training utterances: whole manifests shuffled, anew in each epoch.

lhotse's sampler shuffles what its buffer holds, 20,000 utterances. Of a longer list, which may be
sorted by source or speaker, it would train on one part after another, in every epoch alike.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from lhotse.cut import Cut
from lhotse.serialization import deserialize_item

from xlsr_transducer.data.cuts import first_channel
from xlsr_transducer.data.flaws import damage_named


class Shuffled:
    """The cuts of manifests in an order that seed and epoch decide.

    The lines are kept as text, some 700 bytes each, and become cuts one by one.
    """

    def __init__(self, manifests: Sequence[Path], seed: int, epoch: int):
        """
        Args:
          manifests: ``*.jsonl.gz``.
        """
        self.manifests, self.seed, self.epoch = list(manifests), seed, epoch
        self._lines: list[bytes] = []

    def __iter__(self) -> Iterator[Cut]:
        """All cuts.

        Raises:
          UserError: a manifest is missing or damaged.
        """
        if not self._lines:
            self._lines = [line for path in self.manifests for line in _read_lines(path)]
            random.Random(f"order {self.seed} {self.epoch}").shuffle(self._lines)
        for line in self._lines:
            yield first_channel(deserialize_item(json.loads(line)))


def _read_lines(path: Path) -> list[bytes]:
    with damage_named(path), gzip.open(path) as f:
        return f.readlines()
