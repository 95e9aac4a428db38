"""Batches for training and validation: cuts with features or audio, bucketed by duration.

Letters: N utterances, T frames, n samples, D width of the features, U tokens.
"""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import logging
import signal
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from operator import eq
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset import DynamicBucketingSampler, DynamicCutSampler
from lhotse.dataset.sampling.base import CutSampler
from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from xlsr_transducer.core.compat import fit_sampler_to_lhotse
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import write_text
from xlsr_transducer.core.options import Options, option
from xlsr_transducer.data.audio import audio_duration, read_audio
from xlsr_transducer.data.augment import Augmenter, AugmentOptions
from xlsr_transducer.data.bounds import Bounded, FramesTokensConstraint, largest
from xlsr_transducer.data.cuts import load_cuts
from xlsr_transducer.data.features import (
    cuts_path,
    load_feature_cuts,
    read_features,
    without_features,
)
from xlsr_transducer.data.flaws import Unread, encoder_frames, flaw
from xlsr_transducer.data.order import Shuffled
from xlsr_transducer.data.steps import Deal, Place, Turns, num_tokens
from xlsr_transducer.data.tokenizer import Tokenizer

fit_sampler_to_lhotse()
DECIDE_BATCHES = (
    "max_duration", "max_frames_tokens", "num_buckets", "min_utterance", "max_utterance"
)  # fmt: skip
PR_SET_PDEATHSIG = 1  # of Linux: a signal for this process when its parent has ended

MOST_BUCKETS = 10_000  # and so many utterances show the durations


@dataclasses.dataclass(frozen=True)
class DataOptions(Options):
    """Data."""

    data_dir: Path = option(Path("data"), "what prepare.sh and extract_features.sh wrote")
    max_duration: float = option(200.0, "seconds of audio per batch", above=0)
    total_duration: float = option(
        0.0,
        "most seconds of audio per optimizer step, over all processes: so that any number of them "
        "takes the same steps; 0: one batch per process",
        at_least=0,
    )
    max_frames_tokens: float = option(
        0.0, "bound on encoder frames x tokens of a padded batch, in millions; 0: none", at_least=0
    )
    num_buckets: int = option(30, "buckets of similar duration", at_least=1, at_most=MOST_BUCKETS)
    num_workers: int = option(2, "processes that read data", at_least=0, at_most=1024)
    min_utterance: float = option(
        0.1, "seconds; shorter utterances are left out of training", at_least=0
    )
    max_utterance: float = option(
        30.0, "seconds; longer utterances are left out of training", above=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_utterance > self.max_utterance:
            raise UserError(
                f"--min-utterance {self.min_utterance} exceeds --max-utterance "
                f"{self.max_utterance}: no utterance is left"
            )


@dataclasses.dataclass(frozen=True)
class Batch:
    """A padded batch, longest utterance first."""

    inputs: Tensor  # (N, T, D) features or (N, n) samples
    input_lens: Tensor  # (N,) int64
    tokens: Tensor  # (N, U) int64, padded with 0, U >= 1
    token_lens: Tensor  # (N,) int64
    texts: list[str]
    ids: list[str]
    seconds: float  # of audio, without padding
    skipped: list[Unread]  # utterances that could not be read
    place: Place | None = None  # in the training

    def to(self, device: torch.device) -> Batch:
        """The same with its tensors on ``device``."""
        moved = {
            f.name: getattr(self, f.name).to(device, non_blocking=True)
            for f in dataclasses.fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


class SpeechDataset(Dataset):
    """Maps the cuts of a batch, which the sampler chose, and its place to a ``Batch``."""

    def __init__(self, from_waveform: bool, augmenter: Augmenter | None = None):
        self.from_waveform, self.augmenter = from_waveform, augmenter

    def __getitem__(self, item: tuple[CutSet, Place | None]) -> Batch:
        """The batch; without utterances where none can be read."""
        cuts, place = item
        rows, kept, skipped = [], [], []
        for cut in sorted(cuts, key=lambda c: -c.duration):
            try:
                rows.append(torch.from_numpy(self._read(cut)))
                kept.append(cut)
            except UserError as e:
                skipped.append(Unread.because(cut.id, cut.supervisions[0].text, e))
        if not kept:
            return Batch(*[torch.zeros(0)] * 4, [], [], 0.0, skipped, place)
        tokens = [
            torch.tensor(c.supervisions[0].custom["tokens"], dtype=torch.int64) for c in kept
        ]
        return Batch(
            inputs=_pad(rows).float(),
            input_lens=torch.tensor([len(r) for r in rows]),
            tokens=_pad([t if len(t) else torch.zeros(1, dtype=torch.int64) for t in tokens]),
            token_lens=torch.tensor([len(t) for t in tokens]),
            texts=[c.supervisions[0].text for c in kept],
            ids=[c.id for c in kept],
            seconds=sum(c.duration for c in kept),
            skipped=skipped,
            place=place,
        )

    def _read(self, cut: Cut) -> np.ndarray:
        values = read_audio(cut) if self.from_waveform else read_features(cut)
        return self.augmenter(cut, values) if self.augmenter else values


def _is_left(cut: Cut, seen: frozenset[str]) -> bool:
    return cut.id not in seen


def _pad(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@dataclasses.dataclass(frozen=True)
class SplitSummary:
    """What one pass over a split's manifest found."""

    utterances: int
    seconds: float
    left_out: dict[str, list[str]]  # reason -> ids

    def write_left_out(self, path: Path) -> None:
        """Writes the table of all utterances that were left out."""
        rows = [f"{i}\t{reason}\n" for reason, ids in self.left_out.items() for i in ids]
        write_text(path, "utterance\treason\n" + "".join(rows))


class Part(NamedTuple):
    """Batches of an epoch that were formed with the same options."""

    options: dict[str, Any]  # as ``DataModule.batch_options`` gives them
    batches: int


class DataModule:
    """The loaders of one corpus, from features at a cut or from the waveform."""

    def __init__(
        self,
        options: DataOptions,
        features: Path | None,
        tokenizer: Tokenizer,
        augment: AugmentOptions = AugmentOptions(),  # noqa: B008  frozen
        has_ctc: bool = False,
    ):
        """
        Args:
          has_ctc: whether training has a CTC loss, which needs frames for blanks too.
        """
        self.options, self.has_ctc = options, has_ctc
        self.features = features
        self.tokenizer = tokenizer
        self.augmenter = Augmenter.make(augment, from_waveform=features is None)

    def manifest(self, split: str) -> Path:
        """The file that lists a split's cuts."""
        if self.features:
            return cuts_path(self.features, split)
        return self.options.data_dir / "manifests" / f"cuts_{split}.jsonl.gz"

    def cuts(self, split: str) -> CutSet:
        """The cuts of a split with their tokens, lazily, without those that none can use."""
        return self._usable(self._all_cuts(split))

    def _usable(self, cuts: CutSet) -> CutSet:
        return cuts.filter(self.is_sound).map(self.tokenized)

    def _all_cuts(self, split: str) -> CutSet:
        if self.features:
            return load_feature_cuts(self.features, split)
        path = self.manifest(split)
        if not path.is_file():
            raise UserError(f"{path}: no such manifest; run ./prepare.sh, stages 1 and 2")
        return load_cuts(path)

    def is_sound(self, cut: Cut) -> bool:
        return not flaw(cut, from_waveform=self.features is None)

    def tokenized(self, cut: Cut) -> Cut:
        """The cut with its tokens in ``supervision.custom["tokens"]``."""
        supervision = cut.supervisions[0]
        tokens = self.tokenizer.encode([supervision.text])[0]
        supervision.custom = {**(supervision.custom or {}), "tokens": tokens}
        return cut

    def unfit(self, cut: Cut) -> str:
        """Why a cut is left out of training; empty if it is not."""
        o, seconds = self.options, audio_duration(cut)
        if not o.min_utterance <= seconds <= o.max_utterance:
            return f"not within {o.min_utterance:g} and {o.max_utterance:g} seconds"
        frames = encoder_frames(seconds)
        if num_tokens(cut) > frames:
            return "more tokens than encoder frames"
        tokens = cut.supervisions[0].custom["tokens"]
        if self.has_ctc and len(tokens) + sum(map(eq, tokens, tokens[1:])) > frames:
            return "more tokens than encoder frames, with the blanks of CTC between equal tokens"
        return ""

    def is_fit(self, cut: Cut) -> bool:
        return not self.unfit(cut)

    def summary(self, split: str, for_training: bool = True) -> SplitSummary:
        """Counts a split, and logs what is left out, with the first ids.

        Args:
          for_training: whether utterances that training cannot use are left out too.

        Raises:
          UserError: the manifest cannot be read, or nothing of it can be used.
        """
        utterances, seconds = 0, 0.0
        left_out: dict[str, list[str]] = {}
        for cut in self._all_cuts(split):
            reason = flaw(cut, from_waveform=self.features is None)
            if for_training and not reason:
                reason = self.unfit(self.tokenized(cut))
            if reason:
                left_out.setdefault(reason, []).append(cut.id)
            else:
                utterances += 1
                seconds += cut.duration
        if self.features:
            for reason, ids in without_features(self.features, split).items():
                left_out.setdefault(reason, []).extend(ids)
        for reason, ids in left_out.items():
            logging.warning(
                f"{split}: {len(ids)} utterances left out, {reason}: {', '.join(ids[:5])}"
                + (", ..." if len(ids) > 5 else "")
            )
        if not utterances:
            raise UserError(f"the {split} split has no usable utterance; see the warnings above")
        return SplitSummary(utterances, seconds, left_out)

    def train_loader(
        self,
        splits: list[str],
        epoch: int,
        seed: int,
        skip: int = 0,
        rank: int = 0,
        world_size: int = 1,
        earlier: Sequence[Part] = (),
    ) -> DataLoader:
        """Shuffled batches of an epoch, the same for the same seed; this process's share of them.

        Args:
          skip: batches of the epoch that were trained on before, not read again.
          earlier: where its first batches were formed with other options: the rest of the epoch's
            utterances are batched, and ``skip`` counts these batches too.
        """
        augmenter = self.augmenter.at(seed, epoch)
        batches = self._train_batches(splits, augmenter, self._seen(earlier, epoch))
        first = sum(part.batches for part in earlier)
        turns = Turns(batches, self.options.total_duration, rank, world_size, skip - first, first)
        return self._loader(turns, augmenter)

    def batch_options(self, splits: list[str], seed: int) -> dict[str, Any]:
        """All that decides which batches an epoch has, as plain values."""
        values = {name: getattr(self.options, name) for name in DECIDE_BATCHES}
        speed_perturb = self.augmenter.options.speed_perturb
        return {"splits": splits, "seed": seed, "speed_perturb": speed_perturb, **values}

    def _seen(self, parts: Sequence[Part], epoch: int) -> frozenset[str]:
        """The ids of the utterances in an epoch's first batches, which are formed once more."""
        seen: frozenset[str] = frozenset()
        for part in parts:
            o, then = part.options, copy.copy(self)
            then.options = dataclasses.replace(self.options, **{n: o[n] for n in DECIDE_BATCHES})
            augment = AugmentOptions(speed_perturb=o["speed_perturb"])
            augmenter = dataclasses.replace(self.augmenter, options=augment).at(o["seed"], epoch)
            batches = then._train_batches(o["splits"], augmenter, seen)
            seen |= {cut.id for batch in islice(batches, part.batches) for cut in batch}
        return seen

    def largest_batches(self, splits: list[str], epoch: int, seed: int) -> Iterator[Batch]:
        """The batches of an epoch that need the most memory, chosen by a sampler of their own."""
        augmenter = self.augmenter.at(seed, epoch)
        dataset = SpeechDataset(self.features is None, augmenter)
        for cuts in largest(self._train_batches(splits, augmenter)):
            tokens = sum(num_tokens(cut) for cut in cuts)
            yield dataset[cuts, Place(0, 1, tokens, is_last=True)]

    def _train_batches(
        self, splits: list[str], augmenter: Augmenter, without: frozenset[str] = frozenset()
    ) -> Iterable[CutSet]:
        """The batches of an epoch, of the utterances whose ids are not in ``without``."""
        manifests = [self.manifest(split) for split in splits]
        cuts = CutSet(Shuffled(manifests, augmenter.seed, augmenter.epoch))
        if self.features:
            cuts = cuts.with_features_path_prefix(self.features)
        if without:
            cuts = cuts.filter(partial(_is_left, seen=without))
        cuts = self._usable(cuts).filter(self.is_fit)
        cuts = cuts.map(partial(augmenter.change_speed, is_fit=self.is_fit))
        return self._batches(cuts, shuffle=True, seed=augmenter.seed, epoch=augmenter.epoch)

    def valid_loader(self, splits: list[str], rank: int = 0, world_size: int = 1) -> DataLoader:
        """All utterances of the splits, in a fixed order; this process's share of them."""
        return self._loader(Deal(self._batches(self._joined(splits)), rank, world_size))

    def fixed_loader(self, cuts: CutSet) -> DataLoader:
        """All utterances of ``cuts``, which must carry tokens, in a fixed order."""
        return self._loader(Deal(self._batches(cuts)))

    def _joined(self, splits: list[str]) -> CutSet:
        cuts = self.cuts(splits[0])
        for split in splits[1:]:
            cuts = cuts + self.cuts(split)
        return cuts

    def _batches(
        self, cuts: CutSet, shuffle: bool = False, seed: int = 0, epoch: int = 0
    ) -> Iterable[CutSet]:
        sampler = self._sampler(cuts, shuffle, seed)
        sampler.set_epoch(epoch)
        most = self.options.max_frames_tokens
        return Bounded(sampler, most) if most > 0 else sampler

    def _sampler(self, cuts: CutSet, shuffle: bool, seed: int) -> CutSampler:
        o = self.options
        # lhotse must not deal the batches to the processes: that is done where steps are formed.
        whole = {"rank": 0, "world_size": 1}
        limit: dict = {"max_duration": o.max_duration}
        if o.max_frames_tokens > 0:
            limit = {
                "constraint": FramesTokensConstraint(
                    max_duration=o.max_duration, max_frames_tokens=o.max_frames_tokens
                )
            }
        # Files named on the command line are few: no need to read them lazily.
        warnings.filterwarnings("ignore", message=".*eagerly read CutSet")
        # lhotse wants at least two buckets, and at least as many cuts as buckets.
        num_buckets = sum(1 for _ in islice(cuts, o.num_buckets))
        bins = []
        if num_buckets >= 2:
            first = islice(cuts, MOST_BUCKETS)
            bins = estimate_duration_buckets(first, num_buckets, limit.get("constraint"))
        if not bins:  # one bucket, such as of a few cuts of which one is long
            return DynamicCutSampler(cuts, shuffle=shuffle, seed=seed, **limit, **whole)
        return DynamicBucketingSampler(
            cuts, duration_bins=bins, shuffle=shuffle, seed=seed, **limit, **whole
        )

    def _loader(self, batches: Turns | Deal, augmenter: Augmenter | None = None) -> DataLoader:
        return DataLoader(
            SpeechDataset(self.features is None, augmenter),
            sampler=batches,
            batch_size=None,
            num_workers=self.options.num_workers,
            generator=torch.Generator(),  # leave the global one alone
            worker_init_fn=_belong_to_the_parent,
        )


def _belong_to_the_parent(worker: int) -> None:
    """Ctrl-C, and many a batch system's SIGTERM, reach all processes; the parent needs its
    readers until it has ended the step, and ends them itself.

    Where the system can (Linux), it ends them with a parent that is killed: one that waits for a
    disk would live on, and hold what it has from the parent, such as locks.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
