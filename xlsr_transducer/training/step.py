"""One optimizer step: losses of its batches, the gradient over all processes, the update.

The gradient is that of the loss per token over all batches of the step, whichever process had
them. So the step is the same for any number of processes.
"""

from __future__ import annotations

import dataclasses
import logging
import math

import torch
from torch import Tensor

from xlsr_transducer.core.errors import UserError, is_out_of_memory
from xlsr_transducer.data.datamodule import Batch
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.config import ModelConfig
from xlsr_transducer.model.masking import drop_layers
from xlsr_transducer.model.transducer import LossOptions
from xlsr_transducer.training.distributed import Process
from xlsr_transducer.training.failed_batch import Attempt, FailedBatches
from xlsr_transducer.training.memory import ADVICE, MemoryOptions, describe
from xlsr_transducer.training.metrics import LossSums
from xlsr_transducer.training.optim import (
    OptimOptions,
    limit_gradient,
    set_learning_rate,
    set_trainable,
)
from xlsr_transducer.training.sharding import dummy_batch, is_sharded
from xlsr_transducer.training.state import TrainingState, seed_batch


@dataclasses.dataclass(frozen=True)
class StepReport:
    """What a step has to tell."""

    sums: LossSums  # over all processes
    grad_norm: float
    rate: float  # base learning rate
    is_asked_to_end: bool  # on any process


class Stepper:
    """Takes the batches of a step one by one (``add``), then updates the weights (``update``)."""

    def __init__(
        self,
        state: TrainingState,
        config: ModelConfig,
        optim: OptimOptions,
        loss: LossOptions,
        process: Process,
        seed: int,
        autocast_dtype: torch.dtype | None,
        total_seconds: float,
        failed: FailedBatches,
        memory: MemoryOptions,
    ):
        """
        Args:
          total_seconds: of audio in the whole training, which the schedule spans.
        """
        self.state, self.config, self.optim, self.loss = state, config, optim, loss
        self.process, self.seed, self.total_seconds = process, seed, total_seconds
        self.autocast_dtype, self.failed, self.memory = autocast_dtype, failed, memory
        self.sums = LossSums()
        self.is_sharded = is_sharded(state.model)

    def add(self, batch: Batch) -> None:
        """Adds the gradient of a batch; one without utterances adds none.

        One that does not fit into memory takes with it what this process had of the step: its
        backward has added to some gradients and not to others.
        """
        for line in batch.skipped:
            logging.warning(f"skipped, cannot be read: {line}")
        self.sums.unread += len(batch.skipped)
        # The gradients of shards come as means over the processes.
        weight = float(self.process.world_size if self.is_sharded else 1)
        if not batch.ids:
            if not self.is_sharded:
                return
            batch, weight = dummy_batch(batch, self.config), 0.0
        progress = self.state.progress
        set_trainable(self.state.model, self.optim, progress.step)
        layerdrop = self.config.encoder.layerdrop
        drop_layers(self.state.model.encoder.xlsr, layerdrop, self.seed, progress.step)
        if not self._backward(batch, progress.step, weight):
            lost = self._forget()
            self.sums.too_large += len(lost)
            for attempt in lost:
                logging.warning(
                    f"step {progress.step}: left out, does not fit into memory: "
                    f"{describe(attempt.batch)}: {', '.join(attempt.batch.ids)}"
                )

    def fits(self, batch: Batch) -> bool:
        """Whether forward and backward of a batch fit into memory with every chunk setting, when
        all that will be trained is trained, beside the optimizer's state; leaves nothing."""
        state = self.state
        step = max(state.progress.step, self.optim.freeze_encoder_steps)
        set_trainable(state.model, self.optim, step)
        drop_layers(state.model.encoder.xlsr, 0.0, self.seed, step)
        reserved = torch.empty(self._moments_to_come(), device=self.process.device)
        has_fitted = True
        for chunk in self.config.streaming.costly_settings():
            has_fitted = has_fitted and self._backward(batch, step, chunk=chunk)
            self._forget()
        del reserved
        return has_fitted

    def _moments_to_come(self) -> int:
        """Numbers that the optimizer will keep of parameters of which it has none yet."""
        has_state = self.state.optimizer.state
        new = [p for p in self.state.model.parameters() if p.requires_grad and p not in has_state]
        return (
            2 * sum(p.numel() for p in new) // (self.process.world_size if self.is_sharded else 1)
        )

    def _backward(
        self, batch: Batch, step: int, weight: float = 1.0, chunk: ChunkSettings | None = None
    ) -> bool:
        """Adds the gradient of a batch, times ``weight``; of weight 0 it is not reported.

        Args:
          chunk: None: the setting that is drawn for ``step``.

        Returns:
          False if memory ran out, which leaves a part of the gradient.
        """
        epoch = self.state.progress.epoch
        seed_batch(self.seed, epoch, batch.place.index)
        chunk = chunk or self.config.streaming.draw(self.seed, step)
        try:
            with self.failed.watch(batch, step, epoch, chunk) as attempt:
                loss, sums = self._loss(batch.to(self.process.device), attempt)
                loss = loss * weight / max(batch.place.tokens, 1)
                self.state.scaler.scale(loss).backward()
        except RuntimeError as e:
            if not is_out_of_memory(e):
                raise
            if self.is_sharded:  # the other processes wait for this one's shares
                raise UserError(
                    f"step {step}: {describe(batch)}, do not fit into memory: {ADVICE}"
                ) from e
            return False
        if weight:
            self.sums.merge(sums)
        return True

    def _forget(self) -> list[Attempt]:
        """Drops what this process has of the step, and returns which batches it had."""
        lost, self.failed.attempts = self.failed.attempts, []
        unread, too_large = self.sums.unread, self.sums.too_large
        self.sums = LossSums(unread=unread, too_large=too_large)
        self.state.optimizer.zero_grad(set_to_none=True)
        if self.process.device.type == "cuda":
            torch.cuda.empty_cache()
        return lost

    def update(self, last: Batch, is_asked_to_end: bool = False) -> StepReport:
        """The update behind the step's last batch.

        Args:
          is_asked_to_end: whether this process is to end behind the step.
        """
        state, progress = self.state, self.state.progress
        sums, self.sums = self.sums.over_all(self.process), LossSums()
        if not self.is_sharded:
            self.process.sum_gradients(state.model.parameters())
        rate = set_learning_rate(
            state.optimizer, self.optim, progress.seconds / self.total_seconds
        )
        grad_norm = 0.0
        if any(p.grad is not None for p in state.model.parameters()):
            self._divide(max(sums.tokens, 1) / max(last.place.tokens, 1))
            grad_norm = self._move()
        sums.lost_updates = int(not math.isfinite(grad_norm))
        self.failed.end_step(math.isfinite(grad_norm), state.scaler.is_enabled())
        state.optimizer.zero_grad(set_to_none=True)
        self._count_too_large(sums.too_large)
        progress.step += 1
        progress.batches += last.place.batches
        progress.seconds += sums.seconds
        return StepReport(sums, grad_norm, rate, self.process.any(is_asked_to_end))

    def _move(self) -> float:
        """Changes the weights, unless the gradient is not finite; returns its norm."""
        state = self.state
        state.scaler.unscale_(state.optimizer)
        grad_norm = limit_gradient(state.model, self.optim)
        if math.isfinite(grad_norm) or state.scaler.is_enabled():
            state.scaler.step(state.optimizer)
        state.scaler.update()
        return grad_norm

    def _count_too_large(self, batches: int) -> None:
        """Counts the batches of a step, over all processes, that did not fit into memory."""
        progress, most = self.state.progress, self.memory.max_skipped_batches
        progress.too_large += batches
        if batches and progress.too_large > most:
            raise UserError(
                f"{progress.too_large} batches did not fit into memory and were left out, more "
                f"than --max-skipped-batches {most}: {ADVICE}"
            )

    def _divide(self, divisor: float) -> None:
        """Corrects the gradients by the share of the tokens that had a loss."""
        if divisor != 1.0:
            for parameter in self.state.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(divisor)

    def _loss(self, batch: Batch, attempt: Attempt) -> tuple[Tensor, LossSums]:
        """The sum of the losses to go down, and the sums to report."""
        dtype = self.autocast_dtype
        with torch.autocast(self.process.device.type, dtype=dtype, enabled=dtype is not None):
            losses = self.state.model(
                batch.inputs,
                batch.input_lens,
                batch.tokens,
                batch.token_lens,
                self.loss,
                attempt.chunk,
            )
        is_finite = self.failed.check_losses(attempt, losses)
        total = self.loss.weighted(losses, attempt.step)
        sums = LossSums()
        sums.add(losses, is_finite, batch.token_lens, batch.seconds)
        return torch.where(is_finite, total, torch.zeros_like(total)).sum(), sums
