"""From planned batches to optimizer steps: which batches form a step, and who takes which.

Every process knows the whole plan, forms the same steps of it and takes its own batches, so that
the steps do not depend on the number of processes.

The tail policy: nothing is dropped and nothing repeated. The last step of an epoch takes what is
left. A process that gets no batch of a step takes part with an empty one, so that all processes
make the same number of turns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from xlsr_transducer.data.plan import Plan


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a batch stands in the training."""

    index: int  # in the list of the epoch's batches
    batches: int  # in its step, over all processes
    tokens: int  # in its step, over all processes
    is_last: bool  # of its step, on this process


def step_ends(seconds: np.ndarray, total_duration: float, world_size: int) -> list[int]:
    """Returns where optimizer steps end, in batches.

    Args:
      seconds: (B,) of audio in each batch.
      total_duration: most seconds in a step (a batch that is longer is a step of its own); 0: a
        step is one batch for each process.
    """
    ends, in_step, filled = [], 0, 0.0
    for i, value in enumerate(seconds.tolist()):
        is_full = filled + value > total_duration if total_duration > 0 else in_step >= world_size
        if in_step and is_full:
            ends.append(i)
            in_step, filled = 0, 0.0
        in_step, filled = in_step + 1, filled + value
    return [*ends, len(seconds)] if in_step else ends


class Planned(NamedTuple):
    """A batch of a plan that is to be read."""

    rows: np.ndarray  # (N,) of the corpus
    speeds: np.ndarray  # (N,)
    pauses: np.ndarray  # (N,) seconds
    place: Place | None = None  # in the training


class Share:
    """The batches of one process in an epoch. Where a step has none left for it, an empty one."""

    def __init__(
        self,
        plan: Plan,
        total_duration: float,
        rank: int = 0,
        world_size: int = 1,
        skip: int = 0,
        first: int = 0,
    ):
        """
        Args:
          total_duration: as in ``step_ends``.
          skip: batches of the plan that were trained on before.
          first: the number in the epoch of the plan's first batch.
        """
        self.plan, self.skip, self.first = plan, skip, first
        self.total_duration, self.rank, self.world_size = total_duration, rank, world_size

    def __iter__(self) -> Iterator[Planned]:
        nothing = np.zeros(0, dtype=np.int32), np.zeros(0), np.zeros(0)
        begin, world_size = self.skip, self.world_size
        for end in step_ends(self.plan.seconds[self.skip :], self.total_duration, world_size):
            end += self.skip
            tokens = int(self.plan.tokens[begin:end].sum())
            for turn in range(begin, end, world_size):
                k = turn + self.rank
                is_last = turn + world_size >= end
                place = Place(self.first + k, end - begin, tokens, is_last)
                yield Planned(*(self.plan.batch(k) if k < end else nothing), place)
            begin = end
