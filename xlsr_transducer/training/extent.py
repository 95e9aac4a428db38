"""How long a training is: the data it will see, and the warm-up of the losses that follows."""

from __future__ import annotations

import dataclasses
import logging
import math

from xlsr_transducer.data.datamodule import DataModule, DataOptions
from xlsr_transducer.data.split_summary import SplitSummary
from xlsr_transducer.model.heads import LossOptions
from xlsr_transducer.training.state import Progress

WARM_SHARE, MOST_WARM_STEPS = 0.15, 2000  # of the training's steps; icefall's warm-up


@dataclasses.dataclass(frozen=True)
class Extent:
    """The length of a whole training: a number of epochs, or of optimizer steps."""

    num_epochs: int  # 0: ``num_updates`` counts
    seconds: float  # of audio, over all epochs; 0: ``num_updates`` counts
    steps: int  # of epochs, about: batches come out a little shorter than they may be
    num_updates: int = 0

    @classmethod
    def of(
        cls,
        summary: SplitSummary,
        options: DataOptions,
        num_epochs: int,
        num_updates: int,
        world_size: int,
    ) -> Extent:
        """Of a training on what ``summary`` counted; logs it."""
        steps = math.ceil(summary.seconds / seconds_of_step(options, world_size))
        length = f"{num_epochs} epochs"
        if num_updates:
            length = f"{num_updates} updates, about {num_updates / steps:.1f} epochs"
        logging.info(
            f"training on {summary.utterances} utterances, {summary.seconds / 3600:.2f} hours, "
            f"for {length}"
        )
        if num_updates:
            return cls(0, 0.0, num_updates, num_updates)
        return cls(num_epochs, summary.seconds * num_epochs, steps * num_epochs)

    def share(self, progress: Progress) -> float:
        """Returns the share of the training that is done: of its updates, or of its data."""
        if self.num_updates:
            return progress.step / self.num_updates
        return progress.seconds / self.seconds

    def seconds_left(self, progress: Progress) -> float:
        """Returns how much audio is still to come; of updates, as much as those before had."""
        if self.num_updates:
            per_step = progress.seconds / max(progress.step, 1)
            return max(self.num_updates - progress.step, 0) * per_step
        return max(self.seconds - progress.seconds, 0.0)

    def has_last_update(self, progress: Progress) -> bool:
        """Returns whether the last of ``num_updates`` is done, though its epoch may not be."""
        return 0 < self.num_updates <= progress.step

    def is_over(self, progress: Progress) -> bool:
        """Returns whether the last epoch, or that of the last update, has ended."""
        if self.num_updates:
            return self.has_last_update(progress) and progress.batches == 0
        return progress.epoch > self.num_epochs


def summary_of(data: DataModule, splits: dict[str, list[str]]) -> SplitSummary:
    """Counts all training splits together, and checks those of validation.

    Raises:
      UserError: a manifest cannot be read, or nothing of it can be used.
    """
    for split in splits["val"]:
        data.summary([split], for_training=False)
    return data.summary(splits["train"])


def seconds_of_step(options: DataOptions, world_size: int) -> float:
    """The most seconds of audio that an optimizer step takes."""
    if options.total_duration > 0:
        return max(options.total_duration, options.max_duration)
    return options.max_duration * world_size


def with_warm_step(loss: LossOptions, extent: Extent, progress: Progress) -> LossOptions:
    """The options with a ``warm_step``: the one given, or that of the checkpoint, or a share of
    the training's steps. Logs it, and what it does to the training if that is not plain."""
    default = min(int(WARM_SHARE * extent.steps), MOST_WARM_STEPS)
    if loss.warm_step is None:
        warm_step = default if progress.warm_step < 0 else progress.warm_step
        logging.info(f"--warm-step {warm_step}, of about {extent.steps} steps")
        return dataclasses.replace(loss, warm_step=warm_step)
    if loss.warm_step > extent.steps:
        logging.warning(
            f"--warm-step {loss.warm_step} is longer than the training of about {extent.steps} "
            f"steps: the pruned loss will not get its full weight; give {default}, for example"
        )
    return loss


def note_changes(extent: Extent, warm_step: int, progress: Progress) -> None:
    """Logs how a resumed training's schedules differ from those before, and notes the new ones."""
    changed = []
    before, now = (_length(x.num_epochs, x.num_updates) for x in (progress, extent))
    if progress.num_epochs + progress.num_updates > 0 and before != now:
        flag, value = now.split()
        changed.append(f"{before} and {value if before.startswith(flag) else now}")
    elif progress.total_seconds > 0 and progress.total_seconds != extent.seconds:
        hours = (progress.total_seconds / 3600, extent.seconds / 3600)
        changed.append(f"hours of audio in all epochs {hours[0]:.2f} and {hours[1]:.2f}")
    if progress.warm_step not in (-1, warm_step):
        changed.append(f"--warm-step {progress.warm_step} and {warm_step}")
    if changed:
        logging.warning(
            f"other schedules than before: {'; '.join(changed)}: learning rate and weights of the "
            "losses follow the new ones from here on"
        )
    progress.num_epochs, progress.num_updates = extent.num_epochs, extent.num_updates
    progress.total_seconds, progress.warm_step = extent.seconds, warm_step


def _length(num_epochs: int, num_updates: int) -> str:
    """The option that says how long a training is."""
    return f"--num-updates {num_updates}" if num_updates else f"--num-epochs {num_epochs}"
