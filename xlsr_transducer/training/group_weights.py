"""Weights of groups, such as languages: a group with a large loss gets a larger weight.

M. Bartelds et al., "CTC-DRO: Robust Optimization for Reducing Language Disparities in Speech
Recognition", ICLR 2026; without smoothing S. Sagawa et al., "Distributionally Robust Neural
Networks", ICLR 2020 (group DRO). Letter: G groups.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Options, option

NONE, CTC_DRO, GROUP_DRO = "none", "ctc-dro", "group-dro"
LARGEST = 700.0  # e to its power is finite in float64, also the sum of as many as there are groups
FEW = 8  # groups that a line of the log can name one by one


@dataclasses.dataclass(frozen=True)
class GroupWeightOptions(Options):
    """Group weights."""

    group_weights: str = option(
        NONE,
        "weigh the loss of each group (--group-by): ctc-dro or group-dro, where the groups with "
        "large losses count more; batches are of one group then, and of equal duration",
        (NONE, CTC_DRO, GROUP_DRO),
    )
    dro_step_size: float = option(1e-4, "how fast group weights follow the losses", above=0)
    dro_smoothing: float = option(
        0.5, "how much ctc-dro holds back groups of small weight; 0: as group-dro", at_least=0
    )
    dro_epsilon: float = option(1e-10, "added to each group weight after an update", above=0)

    @property
    def is_on(self) -> bool:
        """Whether groups are weighed."""
        return self.group_weights != NONE

    def of(self, names: Sequence[str]) -> GroupWeights:
        """Returns the weights of groups before the first batch.

        Raises:
          UserError: there is one group only.
        """
        if len(names) < 2:
            found = f"only the group {names[0]!r}" if names else "no group"
            raise UserError(
                f"--group-weights {self.group_weights}: there is {found} to train on, so that "
                "there is nothing to weigh; give lists of several languages, another --group-by, "
                "or --group-weights none"
            )
        smoothing = 0.0 if self.group_weights == GROUP_DRO else self.dro_smoothing
        return GroupWeights(names, self.dro_step_size, smoothing, self.dro_epsilon)


class GroupWeights:
    """The rule: a weight q of each group, and the losses of batches since it last changed.

    A batch's loss is kept with its group. As soon as every group has one, with L the mean of a
    group's kept losses, q becomes ``q * exp(step_size * L / (q + smoothing))``, without smoothing
    ``q * exp(step_size * L)``; epsilon is added, the sum is made 1, and the losses are forgotten.
    """

    def __init__(self, names: Sequence[str], step_size: float, smoothing: float, epsilon: float):
        """
        Args:
          names: of the groups, G of them. epsilon: above 0.
        """
        self.names = list(names)
        self.step_size, self.smoothing, self.epsilon = step_size, smoothing, epsilon
        self.q = [float(np.float32(1.0 / len(names)))] * len(names)  # as the authors' class has it
        self.sums = [0.0] * len(names)  # of the losses that are kept
        self.counts = [0] * len(names)  # of the batches that they are of

    def add(self, group: int, loss: float) -> None:
        """Takes in a batch of the group of this number: the sum of its utterances' losses, finite,
        in nats."""
        self.sums[group] += loss
        self.counts[group] += 1
        if all(self.counts):
            self._update([total / count for total, count in zip(self.sums, self.counts)])
            self.sums, self.counts = [0.0] * len(self.q), [0] * len(self.q)

    def factor(self, group: int) -> float:
        """Returns what the losses of a group's utterances are multiplied by: q times G."""
        return self.q[group] * len(self.q)

    def _update(self, losses: list[float]) -> None:
        """Changes q by the mean loss of each group.

        Powers of e beyond ``LARGEST`` would overflow. All are divided by the same factor then,
        which the division by their sum takes out again: only epsilon is larger than it should be,
        and keeps every weight above 0.
        """
        powers = [
            math.log(q) + self.step_size * loss / (q + self.smoothing if self.smoothing else 1.0)
            for q, loss in zip(self.q, losses)
        ]
        most = max(powers)
        raised = [math.exp(x - most + min(most, LARGEST)) + self.epsilon for x in powers]
        total = sum(raised)
        self.q = [x / total for x in raised]

    def content(self) -> dict[str, Any]:
        """Returns what a checkpoint holds of it."""
        return {"names": self.names, "q": self.q, "sums": self.sums, "counts": self.counts}

    def load(self, content: dict[str, Any]) -> None:
        """Takes over what a checkpoint holds.

        Raises:
          UserError: it is of other groups.
        """
        if content["names"] != self.names:
            before, now = (
                f"{len(names)} groups ({', '.join(names)})"
                for names in (content["names"], self.names)
            )
            raise UserError(
                f"its group weights are of {before}, and this training has {now}: resume with the "
                "lists and the --group-by of the checkpoint, or start a new training from its "
                "weights with --init-from"
            )
        self.q, self.sums = list(content["q"]), list(content["sums"])
        self.counts = list(content["counts"])

    def by_name(self) -> dict[str, float]:
        """Returns the weight q of each group."""
        return dict(zip(self.names, self.q))

    def describe(self) -> str:
        """Returns ``q et 0.412, lv 0.588``; of many groups the smallest and the largest."""
        shown = sorted(self.by_name().items(), key=lambda item: item[1])
        if len(shown) <= FEW:
            return "q " + ", ".join(f"{name} {q:.3f}" for name, q in self.by_name().items())
        (least, low), (most, high) = shown[0], shown[-1]
        return f"q {least} {low:.4f} to {most} {high:.4f}"
