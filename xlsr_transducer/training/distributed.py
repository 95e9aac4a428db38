"""Where this process runs: rank, number of processes, device. The one place that knows."""

from __future__ import annotations

import dataclasses
import os

import torch


@dataclasses.dataclass(frozen=True)
class Process:
    """One process of a training run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes files and logs."""
        return self.rank == 0


def this_process() -> Process:
    """The process as its environment describes it: alone, on a GPU if there is one."""
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    return Process(rank=0, world_size=1, device=device)
