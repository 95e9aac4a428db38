"""From batches to optimizer steps: which batches form a step, and which process takes which.

Every process walks through the same list of the epoch's batches and takes its own, so that the
steps do not depend on the number of processes.

The tail policy: nothing is dropped and nothing repeated. The last step of an epoch takes what is
left. A process that gets no batch of a step takes part with an empty one, so that all processes
make the same number of turns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from itertools import islice

from lhotse import CutSet
from lhotse.cut import Cut


def num_tokens(cut: Cut) -> int:
    """Tokens of a cut's text, as ``DataModule.tokenized`` noted them."""
    return len(cut.supervisions[0].custom["tokens"])


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a batch stands in the training."""

    index: int  # in the list of the epoch's batches
    batches: int  # in its step, over all processes
    tokens: int  # in its step, over all processes
    is_last: bool  # of its step, on this process


class Turns:
    """What one process reads in an epoch: its batches of each step, each with its place."""

    def __init__(
        self,
        batches: Iterable[CutSet],
        total_duration: float,
        rank: int = 0,
        world_size: int = 1,
        skip: int = 0,
        first: int = 0,
    ):
        """
        Args:
          batches: of the whole epoch, the same on every process.
          total_duration: most seconds of audio in a step (a batch that is longer is a step of
            its own); 0: one batch for each process.
          skip: batches that were trained on before.
          first: the number in the epoch of the first of ``batches``.
        """
        self.batches, self.total_duration, self.skip = batches, total_duration, skip
        self.rank, self.world_size, self.first = rank, world_size, first

    def steps(self) -> Iterator[list[CutSet]]:
        """The batches of each step, over all processes."""
        step: list[CutSet] = []
        seconds = 0.0
        for i, batch in enumerate(self.batches):
            if i < self.skip:
                continue
            duration = sum(cut.duration for cut in batch)
            if step and self._is_full(len(step), seconds + duration):
                yield step
                step, seconds = [], 0.0
            step.append(batch)
            seconds += duration
        if step:
            yield step

    def _is_full(self, batches: int, seconds_with_next: float) -> bool:
        if self.total_duration > 0:
            return seconds_with_next > self.total_duration
        return batches >= self.world_size

    def __iter__(self) -> Iterator[tuple[CutSet, Place]]:
        start = self.first + self.skip
        for step in self.steps():
            tokens = sum(num_tokens(cut) for batch in step for cut in batch)
            turns = -(-len(step) // self.world_size)
            for i in range(self.rank, turns * self.world_size, self.world_size):
                is_last = i + self.world_size >= turns * self.world_size
                place = Place(start + i, len(step), tokens, is_last)
                yield step[i] if i < len(step) else CutSet.from_cuts([]), place
            start += len(step)


class Deal:
    """Batches that form no steps, dealt to the processes in turn."""

    def __init__(self, batches: Iterable[CutSet], rank: int = 0, world_size: int = 1):
        self.batches, self.rank, self.world_size = batches, rank, world_size

    def __iter__(self) -> Iterator[tuple[CutSet, None]]:
        for batch in islice(self.batches, self.rank, None, self.world_size):
            yield batch, None
