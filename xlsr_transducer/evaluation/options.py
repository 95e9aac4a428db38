"""Options of an evaluation, and the chunk settings that it tries."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Number, Options, numbers_of, option
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.config import ModelConfig, chunk_lists

# Chunk sizes, left contexts and sinks; every combination of them is a setting.
GRIDS = {"short": "16,32,64/1,2/0,4", "plan": "16,32,64,128/1,2,4/0,4,8,16"}


@dataclasses.dataclass(frozen=True)
class EvaluateOptions(Options):
    """Evaluation."""

    grid: str = option(
        "short",
        "chunk sizes / left contexts / sinks to try, every combination: short "
        f"({GRIDS['short']}), plan ({GRIDS['plan']}), or lists of your own in that form",
    )
    verify: int = option(
        0, "so many utterances of each set are also streamed, with every setting", at_least=0
    )
    budgets: str = option("400,700,1500,3000", "bounds of the latency, in ms")
    attention: int = option(
        16, "utterances of each set over which attention is averaged; 0: none", at_least=0
    )
    show: str = option("", "ids of utterances whose attention is drawn, such as a,b (the first)")
    jobs: int = option(1, "processes that recognise", at_least=1, at_most=1024)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.settings()
        self.latency_budgets()

    def settings(self) -> list[ChunkSettings]:
        """Returns the settings of the grid.

        Raises:
          UserError: the lists are wrong, or a setting cannot stream.
        """
        lists = GRIDS.get(self.grid, self.grid).split("/")
        if len(lists) != 3:
            raise UserError(
                f"--grid {self.grid}: must be {', '.join(GRIDS)}, or three lists such as "
                f"{GRIDS['short']}"
            )
        values = chunk_lists(*lists, flags=("--grid", "--grid", "--grid"))
        combined = {ChunkSettings(*v).simplified(): None for v in itertools.product(*values)}
        return [s.require_streaming() for s in combined]

    def latency_budgets(self) -> list[float]:
        """Returns the bounds in seconds, in order."""
        found = numbers_of("--budgets", self.budgets, Number(float, above=0))
        return sorted({ms / 1000 for ms in found})


def settings_for(config: ModelConfig, grid: Sequence[ChunkSettings]) -> list[ChunkSettings]:
    """Returns what to try with a model: full context, its own setting, and the grid.

    A model that was not trained for streaming is tried in full context alone.
    """
    if not config.streaming.streaming:
        return [ChunkSettings()]
    own = config.streaming.default()
    return list(dict.fromkeys([ChunkSettings(), *grid, own]))
