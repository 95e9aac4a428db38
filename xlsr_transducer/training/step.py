"""One optimizer step: losses of its batches, the gradient over all processes, the update.

The gradient is that of the loss per token over all batches of the step, whichever process had
them. So the step is the same for any number of processes. Each backpropagates the sum of its
losses; processes take the mean of their gradients in the last backward of the step; how many
tokens the step had is known only then, as some utterances cannot be read, and divides the result.

Group weights (``--group-weights``) change from batch to batch, in the order of the plan: in each
turn the processes tell each other the losses of their batches, and all replay the same changes.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from xlsr_transducer.core.errors import UserError, is_out_of_memory
from xlsr_transducer.data.datamodule import Batch
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.training.distributed import Process, has_lost_another
from xlsr_transducer.training.extent import Extent
from xlsr_transducer.training.failed_batch import FailedBatches
from xlsr_transducer.training.gradient import Objective, dummy_batch, finite
from xlsr_transducer.training.memory import ADVICE, MemoryOptions, OutOfMemory, describe
from xlsr_transducer.training.metrics import LossSums
from xlsr_transducer.training.optim import scale_and_clip, set_learning_rate
from xlsr_transducer.training.sharding import is_sharded
from xlsr_transducer.training.state import TrainingState


@dataclasses.dataclass(frozen=True)
class StepReport:
    """The results of a step."""

    sums: LossSums  # over all processes
    grad_norm: float
    is_asked_to_end: bool  # on any process


class Stepper:
    """Takes the batches of a step one by one (``add``), then updates the weights (``update``)."""

    def __init__(
        self,
        state: TrainingState,
        objective: Objective,
        process: Process,
        extent: Extent,
        failed: FailedBatches,
        memory: MemoryOptions,
    ):
        """
        Args:
          extent: of the whole training, which the schedule spans.
        """
        self.state, self.objective, self.process = state, objective, process
        self.extent, self.failed, self.memory = extent, failed, memory
        self.sums = LossSums()
        self.batches: list[Batch] = []  # that this process had of the step
        self.is_sharded = is_sharded(state.model)
        self.engine: nn.Module | None = None  # what computes: the model, or a wrapper of it
        self.trained: list[bool] = []  # of each parameter, when ``engine`` was made
        self.prepared = -1  # the step that the model is prepared for
        self.weights = copy.deepcopy(state.group_weights)  # as the step's batches change them

    def add(self, batch: Batch) -> None:
        """Adds the gradient of a batch; one without utterances adds none.

        One that does not fit into memory takes with it what the step had before: its backward has
        added to some gradients and not to others.

        Raises:
          OutOfMemory: one of several processes has a batch that does not fit.
        """
        for line in batch.skipped:
            logging.warning(f"skipped, cannot be read: {line}")
        self.sums.unread += len(batch.skipped)
        progress, is_dummy = self.state.progress, not batch.ids
        if is_dummy and self.process.world_size == 1:
            return
        if is_dummy:  # the other processes wait for this one's part
            batch = dummy_batch(batch, self.objective.config)
        else:
            self.batches.append(batch)
        if self.prepared != progress.step:
            self.objective.prepare(self.state.model, progress.step)
            self.prepared = progress.step
        try:
            with self._engine_for(batch) as engine:
                sums = self._backward(engine, batch, progress.step, not is_dummy)
        except Exception as e:
            if has_lost_another(e):
                raise
            if not is_out_of_memory(e):
                reason = f"{type(e).__name__}: {e}"
                logging.error(f"step {progress.step}: {reason}; batch {', '.join(batch.ids)}")
                self.failed.keep(batch, progress.epoch, progress.step, reason)
                raise
            if self.process.world_size > 1:  # the others wait for this one's part
                raise OutOfMemory(
                    f"step {progress.step}: {describe(batch)}, does not fit into memory: {ADVICE}"
                ) from e
        else:
            if not is_dummy:
                self.sums.merge(sums)
            return
        self._leave_out()

    @contextlib.contextmanager
    def _engine_for(self, batch: Batch) -> Iterator[nn.Module]:
        """Inside, forward and backward of a batch: the step's last one adds up over processes."""
        model = self.state.model
        if self.process.world_size == 1 or self.is_sharded:
            yield model
            return
        trained = [parameter.requires_grad for parameter in model.parameters()]
        if trained != self.trained:
            self.engine = None  # the old one's hooks go before new ones come
            self.engine = DistributedDataParallel(
                model,
                find_unused_parameters=self.objective.config.encoder.layerdrop > 0,
                gradient_as_bucket_view=True,
            )
            self.trained = trained
        with contextlib.nullcontext() if batch.place.is_last else self.engine.no_sync():
            yield self.engine

    def _backward(
        self,
        engine: nn.Module,
        batch: Batch,
        step: int,
        counts: bool = True,
        chunk: ChunkSettings | None = None,
    ) -> LossSums:
        """Adds the gradient of the sum of a batch's losses, times the weight of its group; returns
        its sums, without weights.

        Args:
          counts: False: the losses count for nothing.
          chunk: None: the setting that is drawn for ``step``. A given one is a trial, which leaves
            the group weights alone.
        """
        epoch, objective = self.state.progress.epoch, self.objective
        here = batch.to(self.process.device)
        losses = objective.losses(engine, here, epoch, batch.place.index, step, chunk)
        is_finite = finite(losses)
        if counts:
            self.failed.name_losses(batch, is_finite, epoch, step)
        sums = LossSums()
        sums.add(losses, is_finite, here.token_lens, batch.seconds)
        each = objective.weighted(losses, is_finite, step)
        factor = float(counts)
        if self.weights and chunk is None:
            factor *= self._weigh(batch, each, counts and bool(is_finite.any()))
        self.state.scaler.scale(each.sum() * factor).backward()
        return sums

    def _weigh(self, batch: Batch, each: Tensor, counts: bool) -> float:
        """Takes the batches that the processes have in this turn into the group weights, in the
        order of the plan; returns the factor of this one's losses.

        Args:
          each: (N,) losses of the batch. counts: whether there is any.
        """
        group = self.weights.names.index(batch.groups[0]) if counts else 0
        loss, factor = float(each.detach().double().sum()), 1.0
        turn = self.process.gather([float(group), loss, float(counts)])
        for rank, (of_group, its_loss, has_loss) in enumerate(turn):
            if has_loss:
                self.weights.add(int(of_group), its_loss)
            if rank == self.process.rank:
                factor = self.weights.factor(group)
        return factor

    def _leave_out(self) -> None:
        """Drops what the step has so far, as its last batch does not fit into memory."""
        self.sums.too_large += len(self.batches)
        for lost in self.batches:
            logging.warning(
                f"step {self.state.progress.step}: left out, does not fit into memory: "
                f"{describe(lost)}: {', '.join(lost.ids)}"
            )
        self._forget()

    def _forget(self) -> None:
        """Drops the gradients and losses of the step, and what they did to the group weights."""
        self.batches = []
        self.weights = copy.deepcopy(self.state.group_weights)
        self.sums = LossSums(unread=self.sums.unread, too_large=self.sums.too_large)
        self.state.optimizer.zero_grad(set_to_none=True)
        if self.process.device.type == "cuda":
            torch.cuda.empty_cache()

    def fits(self, batch: Batch) -> bool:
        """Whether forward and backward of a batch fit into memory with every chunk setting, when
        all that will be trained is trained, beside the optimizer's state; leaves nothing."""
        state, objective = self.state, self.objective
        step = max(state.progress.step, objective.optim.freeze_encoder_steps)
        objective.prepare(state.model, step, drops_layers=False)
        reserved = torch.empty(self._moments_to_come(), device=self.process.device)
        try:
            for chunk in objective.config.streaming.costly_settings():
                self._backward(state.model, batch, step, chunk=chunk)
                self._forget()
        except Exception as e:
            if not is_out_of_memory(e):
                raise
            return False
        finally:
            self._forget()
            del reserved
        return True

    def _moments_to_come(self) -> int:
        """Numbers that the optimizer will keep of parameters of which it has none yet."""
        has_state = self.state.optimizer.state
        new = [p for p in self.state.model.parameters() if p.requires_grad and p not in has_state]
        parts = self.process.world_size if self.is_sharded else 1
        return 2 * sum(p.numel() for p in new) // parts

    def update(self, last: Batch, is_asked_to_end: bool = False) -> StepReport:
        """The update after the step's last batch.

        Args:
          is_asked_to_end: whether this process is to end after the step.

        Raises:
          UserError: too many batches did not fit, or too many steps failed in a row.
        """
        state, progress = self.state, self.state.progress
        sums, self.sums = self.sums.over_all(self.process), LossSums()
        share, optim = self.extent.share(progress), self.objective.optim
        set_learning_rate(state.optimizer, optim, share, self.extent.num_updates)
        grad_norm = 0.0
        if sums.utterances:
            grad_norm = self._change_weights(self.process.world_size / max(sums.tokens, 1))
        sums.lost_updates = int(not math.isfinite(grad_norm))
        batches, self.batches = self.batches, []
        self.failed.end_step(
            batches,
            progress.epoch,
            progress.step,
            math.isfinite(grad_norm),
            state.scaler.is_enabled(),
        )
        state.optimizer.zero_grad(set_to_none=True)
        self._count_too_large(sums.too_large)
        state.group_weights = copy.deepcopy(self.weights)
        progress.step += 1
        progress.batches += last.place.batches
        progress.seconds += sums.seconds
        return StepReport(sums, grad_norm, self.process.any(is_asked_to_end))

    def _change_weights(self, scale: float) -> float:
        """Changes the weights by the gradient times ``scale``, if finite; returns its norm."""
        state = self.state
        state.scaler.unscale_(state.optimizer)
        gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
        grad_norm = scale_and_clip(gradients, scale, self.objective.optim)
        if math.isfinite(grad_norm) or state.scaler.is_enabled():
            state.scaler.step(state.optimizer)
        state.scaler.update()
        return grad_norm

    def _count_too_large(self, batches: int) -> None:
        """Counts the batches of a step that did not fit into memory."""
        progress, most = self.state.progress, self.memory.max_skipped_batches
        progress.too_large += batches
        if batches and progress.too_large > most:
            raise UserError(
                f"{progress.too_large} batches did not fit into memory and were left out, more "
                f"than --max-skipped-batches {most}: {ADVICE}"
            )
