"""Batches of training and decoding: utterances read, augmented, tokenised and padded.

Letters: N utterances, T frames, n samples, D width of the features, U tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Optional, Protocol

import numpy as np
import torch
from lhotse.cut import Cut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio import audio_duration, read_audio
from xlsr_transducer.data.cuts import group_of
from xlsr_transducer.data.features import read_features
from xlsr_transducer.data.flaws import Unread
from xlsr_transducer.data.steps import Place, Planned
from xlsr_transducer.data.tokenizer import Tokenizer, targets


@dataclasses.dataclass(frozen=True)
class Batch:
    """A padded batch, longest utterance first."""

    inputs: Tensor  # (N, T, D) features or (N, n) samples
    input_lens: Tensor  # (N,) int64
    tokens: Tensor  # (N, U) int64, padded with 0, U >= 1
    token_lens: Tensor  # (N,) int64
    texts: list[str]
    ids: list[str]
    seconds: float  # of audio and pauses, without padding
    skipped: list[Unread]  # utterances that could not be read
    groups: list[str] = dataclasses.field(default_factory=list)  # of each utterance, see group_of
    place: Place | None = None  # in the training
    languages: list[str] = dataclasses.field(default_factory=list)  # "" where unknown

    def to(self, device: torch.device) -> Batch:
        """The same with its tensors on ``device``."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=True)
            for f in dataclasses.fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


class Cuts(Protocol):
    """A sequence of utterances: a list of cuts, or a ``Corpus``."""

    def __getitem__(self, row: int) -> Cut: ...


def at_speed(cut: Cut, speed: float) -> Cut:
    """Returns the cut at another speed: its duration changes, its text and id do not."""
    return cut if speed == 1.0 else cut.perturb_speed(speed, affix_id=False)


# Takes a cut, its samples (n,) or features (T, D), and the seconds of pause that it is to get;
# returns others in their place.
Change = Optional[Callable[[Cut, np.ndarray, float], np.ndarray]]


class SpeechDataset(Dataset):
    """Reads planned batches. Only here do lines of a manifest become cuts, and texts tokens."""

    def __init__(
        self,
        cuts: Cuts,
        tokenizer: Tokenizer,
        from_waveform: bool,
        change: Change = None,
        group_by: str = "",
    ):
        """
        Args:
          change: of what is read, such as an ``Augmenter``.
          group_by: what the groups of a batch are, as in ``group_of``.
        """
        self.cuts, self.tokenizer = cuts, tokenizer
        self.from_waveform, self.change, self.group_by = from_waveform, change, group_by

    def __getitem__(self, planned: Planned) -> Batch:
        """Returns the batch; without utterances where none can be read."""
        rows, kept, skipped = [], [], []
        drawn = zip(planned.rows.tolist(), planned.speeds.tolist())
        cuts = [at_speed(self.cuts[row], speed) for row, speed in drawn]
        seconds = 0.0
        pairs = zip(cuts, planned.pauses.tolist())
        for cut, pause in sorted(pairs, key=lambda pair: -pair[0].duration - pair[1]):
            try:
                rows.append(torch.from_numpy(self._read(cut, pause)))
                kept.append(cut)
                seconds += audio_duration(cut) + pause
            except UserError as e:
                skipped.append(Unread.because(cut.id, cut.supervisions[0].text, e))
        if not kept:
            return Batch(*[torch.zeros(0)] * 4, [], [], 0.0, skipped, [], planned.place)
        texts = [c.supervisions[0].text for c in kept]
        languages = [c.supervisions[0].language or "" for c in kept]
        ids = targets(self.tokenizer, texts, languages)
        tokens = [torch.tensor(t, dtype=torch.int64) for t in ids]
        return Batch(
            inputs=pad_sequence(rows, batch_first=True).float(),
            input_lens=torch.tensor([len(r) for r in rows]),
            tokens=pad_sequence([t if len(t) else t.new_zeros(1) for t in tokens], True),
            token_lens=torch.tensor([len(t) for t in tokens]),
            texts=texts,
            languages=languages,
            ids=[c.id for c in kept],
            seconds=seconds,
            skipped=skipped,
            groups=[group_of(c.supervisions[0], self.group_by) for c in kept],
            place=planned.place,
        )

    def _read(self, cut: Cut, pause: float) -> np.ndarray:
        values = read_audio(cut) if self.from_waveform else read_features(cut)
        return self.change(cut, values, pause) if self.change else values
