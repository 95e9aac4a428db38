"""The loaders of a corpus: an index of each manifest, a plan of each epoch, its batches."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lhotse import CutSet
from torch.utils.data import DataLoader

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import UNFINISHED, alone_in, disk_errors_named
from xlsr_transducer.core.geometry import SUBSAMPLING
from xlsr_transducer.core.options import Options, option
from xlsr_transducer.data.augment import SPEEDS, Augmenter, AugmentOptions
from xlsr_transducer.data.batches import Batch, Change, Cuts, SpeechDataset
from xlsr_transducer.data.cuts import LANGUAGE
from xlsr_transducer.data.features import present_cuts, without_features
from xlsr_transducer.data.index import Corpus, open_index
from xlsr_transducer.data.plan import (
    LONGEST_PAUSE,
    Plan,
    PlanOptions,
    Utterances,
    fixed_plan,
    make_plan,
)
from xlsr_transducer.data.split_summary import Names, SplitSummary, groups_of, kept_rows
from xlsr_transducer.data.steps import Place, Planned, Share
from xlsr_transducer.data.tokenizer import Tokenizer

PR_SET_PDEATHSIG = 1  # of Linux: a signal for this process when its parent has ended


@dataclasses.dataclass(frozen=True)
class DataOptions(Options):
    """Data."""

    data_dir: Path = option(Path("data"), "what prepare.sh and extract_features.sh wrote")
    max_duration: float = option(
        200.0, "most seconds of audio per batch, padding included", above=0
    )
    total_duration: float = option(
        0.0,
        "most seconds of audio per optimizer step, over all processes: so that any number of them "
        "takes the same steps; 0: one batch per process",
        at_least=0,
    )
    max_frames_tokens: float = option(
        0.0, "bound on encoder frames x tokens of a padded batch, in millions; 0: none", at_least=0
    )
    num_buckets: int = option(30, "buckets of similar duration", at_least=1, at_most=10_000)
    group_batches: bool = option(False, "batches of one group each, see --group-by")
    group_by: str | None = option(
        None,
        "what the groups are: language, or a custom field of the manifest's supervisions "
        "(default: the field `group`, or else the language)",
    )
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


class Part(NamedTuple):
    """Batches of an epoch that were planned with the same options."""

    options: dict[str, Any]  # as ``DataModule.batch_options`` gives them
    batches: int


class DataModule:
    """The loaders of one corpus, from stored features or from the waveform."""

    def __init__(
        self,
        options: DataOptions,
        features: Path | None,
        tokenizer: Tokenizer,
        augment: AugmentOptions = AugmentOptions(),  # noqa: B008  frozen
        has_ctc: bool = False,
        work_dir: Path | None = None,
        subsampling: int = SUBSAMPLING,
        matched: bool = False,
    ):
        """
        Args:
          has_ctc: whether training has a CTC loss, which needs frames for blanks too.
          subsampling: XLSR frames per encoder frame.
          matched: training's batches are of one group each, and of about equal duration.
          work_dir: holds the plan that processes share, and indexes that the data folder cannot.
        """
        self.options, self.has_ctc, self.work_dir = options, has_ctc, work_dir
        self.subsampling, self.matched = subsampling, matched
        self.has_groups = matched or options.group_batches
        if options.group_by and not self.has_groups:
            raise UserError(
                f"--group-by {options.group_by}: nothing goes by groups; give --group-weights, or "
                "--group-batches 1"
            )
        self.features = features
        self.tokenizer = tokenizer
        self.augmenter = Augmenter.make(augment, from_waveform=features is None)
        self._corpora: dict[tuple[str, ...], Corpus] = {}  # by group_by and splits

    def manifest(self, split: str) -> Path:
        """Returns the file that lists a split's cuts.

        Raises:
          UserError: there is none.
        """
        path = present_cuts(self.features or self.options.data_dir / "manifests", split)
        if path.is_file():
            return path
        command = (
            "./extract_features.sh again, it continues where it stopped"
            if self.features
            else "./prepare.sh, stages 1 and 2"
        )
        raise UserError(f"{path} is missing: run {command}")

    def corpus(self, splits: Sequence[str], group_by: str = "") -> Corpus:
        """Returns the utterances of some splits; their indexes are made if need be.

        Args:
          group_by: what their groups are, as in ``group_of``.

        Raises:
          UserError: a manifest is missing or damaged.
        """
        key = (group_by, *splits)
        if key not in self._corpora:
            given = (self.tokenizer, self.features, self.work_dir, group_by)
            self._corpora[key] = Corpus([open_index(self.manifest(s), *given) for s in splits])
        return self._corpora[key]

    def train_corpus(self, splits: Sequence[str]) -> Corpus:
        """Returns the utterances of training splits, in the groups of the options."""
        return self.corpus(splits, self.options.group_by or "")

    def train_groups(self, splits: Sequence[str]) -> list[str]:
        """Returns the groups of the utterances that training uses, in alphabetical order.

        Raises:
          UserError: some utterances have no group, or none of a group can be used.
        """
        corpus = self.train_corpus(splits)
        left_out = self._left_out(corpus, self._utterances(corpus))
        return groups_of(corpus, left_out, ", ".join(splits), self.options.group_by or LANGUAGE)

    def _utterances(self, corpus: Corpus) -> Utterances:
        return corpus.utterances(self.has_ctc, self.subsampling)

    def _left_out(
        self, corpus: Corpus, u: Utterances, for_training: bool = True
    ) -> dict[str, np.ndarray]:
        """Returns why utterances are left out, and the rows of each reason."""
        numbers, reasons = corpus.numbered("reasons")
        flawed = np.flatnonzero(~u.usable)
        left_out = {reasons[i]: flawed[numbers[flawed] == i] for i in np.unique(numbers[flawed])}
        kept = u.usable.copy()
        for reason, is_unfit in self._unfit(u) if for_training else ():
            left_out[reason] = np.flatnonzero(kept & is_unfit)
            kept &= ~is_unfit
        return {reason: rows for reason, rows in left_out.items() if len(rows)}

    def summary(self, splits: Sequence[str], for_training: bool = True) -> SplitSummary:
        """Counts splits, and logs what is left out, with the first ids.

        Args:
          for_training: whether utterances that training cannot use are left out too.

        Raises:
          UserError: a manifest cannot be read, or nothing of it can be used.
        """
        corpus = self.corpus(splits)
        u = self._utterances(corpus)
        left_out = self._left_out(corpus, u, for_training)
        kept = kept_rows(len(corpus), left_out)
        names: dict[str, Sequence[str]] = {
            reason: Names(corpus, rows) for reason, rows in left_out.items()
        }
        for split in splits if self.features else ():
            for reason, ids in without_features(self.features, split).items():
                names[reason] = [*names.get(reason, ()), *ids]
        for reason, ids in names.items():
            logging.warning(
                f"{', '.join(splits)}: {len(ids)} utterances left out, {reason}: "
                f"{', '.join(ids[:5])}" + (", ..." if len(ids) > 5 else "")
            )
        if not kept.any():
            raise UserError(
                f"{', '.join(splits)}: there is no usable utterance; see the warnings above"
            )
        pause = self.augmenter.options.pause_prob * LONGEST_PAUSE / 2 if for_training else 0.0
        count, seconds = int(kept.sum()), float(u.seconds.sum(where=kept))
        return SplitSummary(count, seconds + count * pause, names)

    def _unfit(self, u: Utterances) -> Iterator[tuple[str, np.ndarray]]:
        """Yields why utterances are left out of training, and which, as (N,) bool."""
        o = self._plan_options()
        span = f"not within {o.min_utterance:g} and {o.max_utterance:g} seconds"
        yield span, ~o.fits(u.seconds)
        yield "more tokens than encoder frames", u.tokens > u.frames
        if self.has_ctc:
            reason = "more tokens than encoder frames, with the blanks of CTC between equal tokens"
            yield reason, u.needed > u.frames

    def train_loader(
        self,
        splits: Sequence[str],
        epoch: int,
        seed: int,
        skip: int = 0,
        rank: int = 0,
        world_size: int = 1,
        earlier: Sequence[Part] = (),
    ) -> DataLoader:
        """Shuffled batches of an epoch, the same for the same seed; this process's share of them.

        Args:
          skip: batches of the epoch that were trained on before.
          earlier: where its first batches were planned with other options: the rest of the epoch's
            utterances are planned again, and ``skip`` counts these batches too.
        """
        plan = self._train_plan(splits, epoch, seed, earlier, is_shared=world_size > 1)
        first = sum(part.batches for part in earlier)
        total = self.options.total_duration
        share = Share(plan, total, rank, world_size, skip - first, first)
        corpus, change = self.train_corpus(splits), self.augmenter.at(seed, epoch)
        return self._loader(share, corpus, change, self.options.group_by or "")

    def batch_options(self, splits: Sequence[str], seed: int) -> dict[str, Any]:
        """Returns all that decides which batches an epoch has, as plain values."""
        options = dataclasses.asdict(self._plan_options())
        options["speeds"] = list(options["speeds"])
        digests = [index.digest for index in self.corpus(splits).indexes]
        options["group_by"] = self.options.group_by or ""
        return {"seed": seed, **options, "manifests": dict(zip(splits, digests))}

    def largest_batches(self, splits: Sequence[str], epoch: int, seed: int) -> Iterator[Batch]:
        """Yields the batches of an epoch that need the most memory."""
        plan = self._train_plan(splits, epoch, seed)
        augmenter = self.augmenter.at(seed, epoch)
        dataset = self._dataset(self.train_corpus(splits), augmenter)
        for k in plan.largest():
            yield dataset[Planned(*plan.batch(k), Place(0, 1, int(plan.tokens[k]), is_last=True))]

    def _plan_options(self) -> PlanOptions:
        augment = self.augmenter.options
        given = {
            "speeds": SPEEDS if augment.speed_perturb else (1.0,),
            "pause_prob": augment.pause_prob,
            "subsampling": self.subsampling,
            "matched": self.matched,
            "group_batches": self.has_groups,
        }
        names = {f.name for f in dataclasses.fields(PlanOptions)} - given.keys()
        return PlanOptions(**{name: getattr(self.options, name) for name in names}, **given)

    def _train_plan(
        self,
        splits: Sequence[str],
        epoch: int,
        seed: int,
        earlier: Sequence[Part] = (),
        is_shared: bool = False,
    ) -> Plan:
        """Plans an epoch; ``is_shared``: one process does, the others map its plan into memory."""
        if not (is_shared and self.work_dir):
            return self._new_plan(splits, epoch, seed, earlier)
        about = [self.batch_options(splits, seed), epoch, self.has_ctc, list(earlier)]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        folder = self.work_dir / f"plan-{key}"
        with disk_errors_named(folder), alone_in(self.work_dir):
            if not folder.is_dir():
                for old in self.work_dir.glob("plan-*"):
                    shutil.rmtree(old)
                unfinished = folder.with_name(folder.name + UNFINISHED)
                unfinished.mkdir()
                self._new_plan(splits, epoch, seed, earlier).save(unfinished)
                os.replace(unfinished, folder)
            return Plan.load(folder)

    def _new_plan(
        self, splits: Sequence[str], epoch: int, seed: int, earlier: Sequence[Part]
    ) -> Plan:
        seen = np.zeros(0, dtype=np.int32)
        for part in earlier:
            values = {k: v for k, v in part.options.items() if k not in ("seed", "manifests")}
            corpus = self.corpus(splits, values.pop("group_by", ""))
            options = PlanOptions(**{**values, "speeds": tuple(values["speeds"])})
            seed_then = part.options["seed"]
            plan = make_plan(self._utterances(corpus), options, seed_then, epoch, seen)
            seen = np.append(seen, plan.rows[: plan.num_rows(part.batches)])
        utterances = self._utterances(self.train_corpus(splits))
        return make_plan(utterances, self._plan_options(), seed, epoch, seen)

    def valid_loader(
        self, splits: Sequence[str], rank: int = 0, world_size: int = 1
    ) -> DataLoader:
        """All utterances of the splits, in a fixed order; this process's share of them."""
        corpus = self.corpus(splits)
        plan = fixed_plan(self._utterances(corpus), self._plan_options())
        return self._loader(_shared_out(plan, rank, world_size), corpus)

    def fixed_loader(self, cuts: CutSet, change: Change = None) -> DataLoader:
        """All utterances of ``cuts``, in a fixed order, with a change of what is read."""
        in_memory = list(cuts)
        utterances = Utterances.plain(np.array([cut.duration for cut in in_memory]))
        plan = fixed_plan(utterances, self._plan_options())
        return self._loader(_shared_out(plan), in_memory, change)

    def _dataset(self, cuts: Cuts, change: Change = None, group_by: str = "") -> SpeechDataset:
        return SpeechDataset(cuts, self.tokenizer, self.features is None, change, group_by)

    def _loader(
        self, batches: Iterable[Planned], cuts: Cuts, change: Change = None, group_by: str = ""
    ) -> DataLoader:
        return DataLoader(
            self._dataset(cuts, change, group_by),
            sampler=batches,
            batch_size=None,
            num_workers=self.options.num_workers,
            generator=torch.Generator(),  # leave the global one alone
            worker_init_fn=belong_to_the_parent,
        )


def _shared_out(plan: Plan, rank: int = 0, world_size: int = 1) -> list[Planned]:
    """Returns a process's share of batches that form no steps."""
    return [Planned(*plan.batch(k)) for k in range(rank, len(plan), world_size)]


def belong_to_the_parent(worker: int = 0) -> None:
    """Ctrl-C, and many a batch system's SIGTERM, reach all processes; the parent needs its
    readers until it has ended the step, and ends them itself.

    Where the system can (Linux), it ends them with a parent that is killed: one that waits for a
    disk would live on, and hold what it has from the parent, such as locks.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
