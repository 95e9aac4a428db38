"""The state of a training: all that changes from step to step, and what a checkpoint keeps of it.

Random numbers are not part of it: every batch draws them anew from the seed, the epoch and the
batch's place there (``Objective``). So a resumed training draws what an uninterrupted one would
have drawn, on any number of processes.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import torch
from torch import Tensor

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.datamodule import Part
from xlsr_transducer.model.averaging import Weights, take_into_mean
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.training.group_weights import GroupWeights
from xlsr_transducer.training.lora import load_lora_state, lora_state
from xlsr_transducer.training.metrics import LossSums
from xlsr_transducer.training.sharding import (
    divided_like,
    gather,
    load_optimizer,
    load_weights,
)


@dataclasses.dataclass
class Progress:
    """Where the training is."""

    step: int = 0
    epoch: int = 1
    batches: int = 0  # of this epoch, over all processes
    seconds: float = 0.0  # of audio, over all epochs
    too_large: int = 0  # batches left out, as they did not fit into memory
    best_wer: float = float("inf")  # as --best chooses: of all utterances, or a language's
    best: str = "wer"  # the option --best that it belongs to
    # Of this epoch: the options that decided its batches, each from batch ``first`` on.
    parts: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    averaged: int = 0  # steps that the running mean of the weights covers
    # What the schedules span, as the last options had it.
    num_epochs: int = 0  # 0: num_updates counts
    num_updates: int = 0
    total_seconds: float = 0.0  # of audio in the whole training; 0: num_updates counts
    warm_step: int = -1

    def use_best(self, best: str) -> None:
        """Notes by what validations are compared; if by another rate than before, none is the
        best so far."""
        if best != self.best:
            self.best, self.best_wer = best, float("inf")

    def use_batch_options(self, options: dict[str, Any]) -> list[Part]:
        """Notes the options that decide the epoch's batches from here on.

        Returns:
          the parts of the epoch before that were planned with others.

        Raises:
          UserError: the epoch has begun, with another list of utterances.
        """
        before = self.parts[-1]["options"] if self.parts else options
        self._check_manifests(before.get("manifests", {}), options["manifests"])
        if self.batches == 0:
            self.parts = []
        if not self.parts or before != options:
            if self.parts:
                changed = [
                    f"{k} {before.get(k)} and {v}"  # older checkpoints lack newer options
                    for k, v in options.items()
                    if v != before.get(k)
                ]
                logging.info(
                    f"other batch options than for the first {self.batches} batches of epoch "
                    f"{self.epoch}: {'; '.join(changed)}: the utterances that are left are "
                    "batched again, each once"
                )
            self.parts.append({"options": options, "first": self.batches if self.parts else 0})
        ends = [part["first"] for part in self.parts[1:]]
        return [Part(p["options"], end - p["first"]) for p, end in zip(self.parts, ends)]

    def _check_manifests(self, before: dict[str, str], now: dict[str, str]) -> None:
        changed = [split for split in {**before, **now} if before.get(split) != now.get(split)]
        if not changed:
            return
        names = ", ".join(f"cuts_{split}" for split in changed)
        if self.batches:
            raise UserError(
                f"{names}: this manifest has changed since the first {self.batches} batches of "
                f"epoch {self.epoch} were trained on; put back the one from then, or begin the "
                f"epoch again with --start-epoch {self.epoch} in place of --resume"
            )
        logging.info(f"epoch {self.epoch} has other data than the one before: {names}")


@dataclasses.dataclass
class TrainingState:
    """All that changes from step to step."""

    model: SpeechModel
    optimizer: torch.optim.Optimizer
    scaler: Any  # of losses in float16
    mean: Weights  # float64: the running mean of the weights over all steps
    progress: Progress
    epoch_sums: LossSums  # losses of this epoch
    group_weights: GroupWeights | None = None

    @classmethod
    def initial(
        cls,
        model: SpeechModel,
        optimizer: torch.optim.Optimizer,
        scaler: Any,
        has_mean: bool = True,
        group_weights: GroupWeights | None = None,
    ) -> TrainingState:
        """Before the first step. Every process has all of it, so that any of them can save it.

        Args:
          has_mean: whether there is a running mean.
        """
        mean = {
            name: torch.zeros_like(value, dtype=torch.float64)
            for name, value in model.state_dict().items()
            if value.is_floating_point() and has_mean
        }
        return cls(model, optimizer, scaler, mean, Progress(), LossSums(), group_weights)

    def average(self) -> None:
        """Takes the weights into the running mean, for all steps since it was last done."""
        step = self.progress.step
        take_into_mean(self.mean, self.model.state_dict(), self.progress.averaged, step)
        self.progress.averaged = step

    def weights(self, keep: bool) -> dict[str, Tensor]:
        """Returns the model's weights, on the CPU; without ``keep``, as ``gather`` does."""
        return gather(self.model.state_dict(), keep)

    def content(self, keep: bool) -> dict[str, Any]:
        """Returns what a checkpoint holds beside configuration, tokens and weights."""
        return {
            **({"model_avg": gather(self.mean, keep)} if self.mean else {}),
            "step": self.progress.step,
            "progress": dataclasses.asdict(self.progress),
            "epoch_sums": dataclasses.asdict(self.epoch_sums),
            "lora": lora_state(self.model),
            "optimizer": gather(self.optimizer.state_dict(), keep),
            "scaler": self.scaler.state_dict(),
            "group_weights": self.group_weights.content() if self.group_weights else None,
        }

    def load(self, content: dict[str, Any]) -> None:
        """Takes over what a checkpoint holds.

        Raises:
          UserError: it has no running mean, other LoRA or other groups than this training.
        """
        if self.mean and "model_avg" not in content:
            raise UserError(
                "the checkpoint holds no running mean of the weights, as its training had "
                "--average-period 0: resume with that too"
            )
        self._load_group_weights(content.get("group_weights"))  # older files have none
        load_weights(self.model, content["model"])
        load_lora_state(self.model, content["lora"])
        load_optimizer(self.optimizer, content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        for name, value in self.mean.items():
            value.copy_(divided_like(content["model_avg"][name], value))
        self.progress = Progress(**content["progress"])
        self.epoch_sums = LossSums(**content["epoch_sums"])

    def _load_group_weights(self, content: dict[str, Any] | None) -> None:
        if content and self.group_weights:
            self.group_weights.load(content)
        elif content:
            logging.info("the groups of the checkpoint are not weighed from here on")
        elif self.group_weights:
            logging.info("the checkpoint has no group weights: they begin equal")
