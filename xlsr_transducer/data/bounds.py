"""How large a batch may be: padded seconds, and padded encoder frames x tokens.

The losses of a transducer need memory for every pair of a frame and a token, so that long
transcripts take more of it than seconds alone tell.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset.sampling.base import TimeConstraint

from xlsr_transducer.data.features import FRAME_SHIFT
from xlsr_transducer.data.steps import num_tokens
from xlsr_transducer.model.chunking import SUBSAMPLING


def frames_tokens(cuts: Sequence[Cut]) -> float:
    """Encoder frames x tokens of a padded batch, in millions."""
    frames = max(cut.duration for cut in cuts) / (FRAME_SHIFT * SUBSAMPLING)
    return len(cuts) * frames * max(num_tokens(cut) for cut in cuts) / 1e6


@dataclasses.dataclass
class FramesTokensConstraint(TimeConstraint):
    """Tells lhotse when a batch is full.

    lhotse asks behind each utterance whether another like the largest so far would be too many.
    So the last one to come may be larger, and the batch with it, which ``Bounded`` sets right.
    """

    max_frames_tokens: float = 0.0
    most_tokens: int = 0

    def add(self, example: Cut) -> None:
        super().add(example)
        self.most_tokens = max(self.most_tokens, num_tokens(example))

    def _frames_tokens(self, cuts: int) -> float:
        frames = self.longest_seen / (FRAME_SHIFT * SUBSAMPLING)
        return cuts * frames * self.most_tokens / 1e6

    def exceeded(self) -> bool:
        return super().exceeded() or self._frames_tokens(self.num_cuts) > self.max_frames_tokens

    def close_to_exceeding(self) -> bool:
        return (
            super().close_to_exceeding()
            or self._frames_tokens(self.num_cuts + 1) > self.max_frames_tokens
        )

    def reset(self) -> None:
        super().reset()
        self.most_tokens = 0


class Bounded:
    """Batches of which none but a single utterance has more frames x tokens than the bound.

    A batch that has is halved: into its smaller and its larger utterances.
    """

    def __init__(self, batches: Iterable[CutSet], max_frames_tokens: float):
        self.batches, self.max_frames_tokens = batches, max_frames_tokens

    def __iter__(self) -> Iterator[CutSet]:
        for batch in self.batches:
            yield from self._parts(list(batch))

    def _parts(self, cuts: list[Cut]) -> Iterator[CutSet]:
        if len(cuts) == 1 or frames_tokens(cuts) <= self.max_frames_tokens:
            yield CutSet.from_cuts(cuts)
            return
        cuts = sorted(cuts, key=lambda cut: frames_tokens([cut]))
        half = len(cuts) // 2
        yield from self._parts(cuts[:half])
        yield from self._parts(cuts[half:])


def largest(batches: Iterable[CutSet]) -> list[CutSet]:
    """The batches that need the most memory: by frames x tokens, by padded seconds, by pairs of
    frames that attend to each other."""
    measures = (
        frames_tokens,
        lambda cuts: len(cuts) * max(cut.duration for cut in cuts),
        lambda cuts: len(cuts) * max(cut.duration for cut in cuts) ** 2,
    )
    found: list[tuple[float, CutSet | None]] = [(0.0, None)] * len(measures)
    for batch in batches:
        cuts = list(batch)
        for i, measure in enumerate(measures):
            size = measure(cuts)
            if size > found[i][0]:
                found[i] = (size, batch)
    kept: list[CutSet] = []
    for _, batch in found:
        if batch is not None and not any(batch is other for other in kept):
            kept.append(batch)
    return kept
