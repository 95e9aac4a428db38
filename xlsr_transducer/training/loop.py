"""The training loop: epochs of steps, validation with WER, checkpoints that resume."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from xlsr_transducer.core.compat import grad_scaler
from xlsr_transducer.core.errors import UserError, is_out_of_memory
from xlsr_transducer.core.files import locked
from xlsr_transducer.core.tensor_files import remove_unfinished, save_atomically
from xlsr_transducer.data.datamodule import DataModule
from xlsr_transducer.data.tokenizer import LanguageFirst
from xlsr_transducer.model.checkpoint import BEST, model_content
from xlsr_transducer.model.config import ModelConfig
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.training.distributed import Process
from xlsr_transducer.training.extent import Extent, note_changes, summary_of, with_warm_step
from xlsr_transducer.training.failed_batch import FailedBatches
from xlsr_transducer.training.gradient import Objective
from xlsr_transducer.training.inf_check import InfCheck
from xlsr_transducer.training.interrupt import Interrupt
from xlsr_transducer.training.memory import (
    OutOfMemory,
    recompute_layers,
    scan_for_oom,
)
from xlsr_transducer.training.metrics import LossSums
from xlsr_transducer.training.optim import (
    check_weighted_layers,
    make_optimizer,
    set_trainable,
)
from xlsr_transducer.training.options import TrainOptions
from xlsr_transducer.training.resume import (
    check_same_model,
    newest_checkpoint,
    read_resumable,
)
from xlsr_transducer.training.retention import remove_old
from xlsr_transducer.training.sharding import check_sharding, is_sharded, shard, whole
from xlsr_transducer.training.snapshots import Teaching
from xlsr_transducer.training.state import TrainingState
from xlsr_transducer.training.step import Stepper, StepReport
from xlsr_transducer.training.validate import Validation, validate
from xlsr_transducer.training.watch import Watch

SAVING = "saving.lock"


class Trainer:
    """Trains one model: epochs of steps, each epoch ending in a validation and a checkpoint."""

    def __init__(
        self,
        model: SpeechModel,
        config: ModelConfig,
        data: DataModule,
        splits: dict[str, list[str]],
        options: TrainOptions,
        process: Process,
    ):
        """
        Args:
          model: with the weights to begin with on the main process, and any on the others.

        Raises:
          UserError: options contradict each other, or the processes.
        """
        loop, optim = options.loop, options.optim
        check_weighted_layers(config.encoder, optim)
        process.copy_from_main(p.data for p in model.parameters())
        if loop.sharding == "fsdp2":
            check_sharding(optim, loop.use_fp16, process.world_size)
            set_trainable(model, optim, step=0)
            shard(model, process.world_size, process.device)
        model = model.to(process.device)
        self.config, self.data, self.splits = config, data, splits
        self.loop, self.memory, self.process = loop, options.memory, process
        recompute_layers(model, self.memory.gradient_checkpointing)
        self.options, self.autocast = options, loop.autocast_dtype(process.device)
        self.teaching = Teaching(options.teacher, config, data.tokenizer, optim, process)
        scaler = grad_scaler(self.autocast == torch.float16)
        groups = options.groups
        weights = groups.of(data.train_groups(splits["train"])) if groups.is_on else None
        self.state = TrainingState.initial(
            model, make_optimizer(model, optim), scaler, loop.average_period > 0, weights
        )
        self.interrupt = Interrupt()
        if options.failure.inf_check:
            InfCheck(model, gradients=not loop.use_fp16)

    def run(self) -> int:
        """Trains to the last epoch or update.

        Returns:
          0, or if it was asked to end before: 130 after Ctrl-C, 143 after SIGTERM. It has saved.
        """
        progress = self.state.progress
        progress.use_best(self.loop.best)
        self.data.corpus(self.splits["val"])  # what is wrong with it is told now, not after hours
        summary = summary_of(self.data, self.splits)
        if self.process.is_main:
            summary.write_left_out(self.loop.exp_dir / "left_out.tsv")
        extent = Extent.of(
            summary,
            self.data.options,
            self.loop.num_epochs,
            self.loop.num_updates,
            self.process.world_size,
        )
        self.loss = with_warm_step(self.options.loss, extent, progress)
        note_changes(extent, self.loss.warm_step, progress)
        self.watch = Watch(
            self.loop.exp_dir,
            self.state,
            extent,
            self.process,
            self.loop.tensorboard,
        )
        self.stepper = self._make_stepper(extent)
        self._scan()
        status = 0
        with self.interrupt:
            try:
                while not extent.is_over(progress) and not status:
                    if not (self._train_epoch(extent) and self._finish_epoch()):
                        status = self.process.largest(self.interrupt.status)
                if status:
                    self._save_numbered()
            except OutOfMemory:
                self._save_alone()
                raise
        self.watch.close()
        if not status:
            error = "label error" if "classifier" in self.config.heads else "WER"
            of_worst = " of the worst language" * (self.loop.best == "worst-language")
            logging.info(f"done; best validation {error}{of_worst} {progress.best_wer:.2f} %")
        return status

    def _make_stepper(self, extent: Extent) -> Stepper:
        objective = Objective(
            self.config,
            self.options.optim,
            self.loss,
            self.loop.seed,
            self.autocast,
            self.teaching.teacher,
        )
        failed = FailedBatches(
            self.loop.exp_dir,
            self.state.model,
            objective,
            self.data.tokenizer,
            self.options.failure,
            self.process.rank,
        )
        return Stepper(self.state, objective, self.process, extent, failed, self.memory)

    def _scan(self) -> None:
        """Tries the largest batches, if that is wanted."""
        wanted = self.memory.scan_for_oom_batches
        if self.process.device.type == "cuda" if wanted is None else wanted:
            epoch = self.state.progress.epoch
            batches = self.data.largest_batches(self.splits["train"], epoch, self.loop.seed)
            scan_for_oom(self.stepper.fits, batches)

    def _train_epoch(self, extent: Extent) -> bool:
        """Whether it came to the epoch's end, or to the last update, which ends its epoch."""
        progress, process = self.state.progress, self.process
        if extent.has_last_update(progress):
            return True
        splits, seed = self.splits["train"], self.loop.seed
        loader = self.data.train_loader(
            splits,
            progress.epoch,
            seed,
            progress.batches,
            process.rank,
            process.world_size,
            progress.use_batch_options(self.data.batch_options(splits, seed)),
        )
        for batch in loader:
            self.teaching.prepare(progress.step)
            self.stepper.add(batch)
            if batch.place.is_last:
                report = self.stepper.update(batch, self.interrupt.requested)
                self._after_step(report)
                if report.is_asked_to_end:
                    return False
                if extent.has_last_update(progress):
                    break
        return True

    def _after_step(self, report: StepReport) -> None:
        """Does what is due after a step: running mean, log line, validation, checkpoint."""
        state, step = self.state, self.state.progress.step
        state.epoch_sums.merge(report.sums)
        is_to_save = _is_due(step, self.loop.save_every_n)
        if is_to_save or _is_due(step, self.loop.average_period):
            state.average()
        if self.process.is_main:
            self.watch.step(report, _is_due(step, self.loop.log_interval))
        if _is_due(step, self.loop.valid_interval):
            self._validate()
        if is_to_save:
            self._save_numbered()

    def _finish_epoch(self) -> bool:
        """Validates, saves the epoch, and moves on.

        The epoch's checkpoint comes last: a training that dies before it resumes from the
        epoch's last checkpoint and does all of this again.

        Returns:
          whether the validation came to its end.
        """
        p, train = self.state.progress, self.state.epoch_sums
        epoch = p.epoch
        if train.unread and not train.utterances + train.nonfinite:
            raise UserError(
                f"none of the utterances of epoch {epoch} could be read, for the reasons above; "
                "is the disk with the features or the audio still there?"
            )
        valid = self._validate()
        if valid is None:
            return False
        if self.process.is_main:
            self.watch.epoch(epoch, train, valid)
        p.epoch, p.batches = epoch + 1, 0
        self.state.epoch_sums = LossSums()
        self.state.average()
        self._save(f"epoch-{epoch}.pt")
        return True

    def _validate(self) -> Validation | None:
        """Validates, and keeps the weights if they are the best so far; None: interrupted."""
        progress = self.state.progress
        with whole(self.state.model):
            valid = validate(
                self.state.model,
                self.data,
                self.splits["val"],
                self.loss,
                self.config.streaming.default(),
                self.autocast,
                self.process,
                self.interrupt,
            )
        if not valid.is_complete:
            return None
        if self.process.is_main:
            self.watch.validation(valid)
        wer = valid.worst if self.loop.best == "worst-language" else valid.wer
        if wer < progress.best_wer:
            progress.best_wer = wer
            self._save(BEST, is_whole=False)
        return valid

    def _save_numbered(self) -> None:
        self._save(f"checkpoint-{self.state.progress.step}.pt")

    def _save(self, name: str, is_whole: bool = True) -> None:
        """Writes a checkpoint; ``is_whole``: with all that a training needs to resume."""
        is_main = self.process.is_main
        if not (is_main or is_sharded(self.state.model)):
            return
        content = self._content(is_main, is_whole)  # of shards, every process has a part
        if is_main:
            save_atomically(content, self.loop.exp_dir / name)
        if is_main and is_whole:
            counts = {"epoch": self.loop.keep_last_epochs, "checkpoint": self.loop.keep_last_k}
            step = self.state.progress.step
            remove_old(self.loop.exp_dir, step, counts, self.loop.keep_gigabytes)

    def _content(self, keep: bool, is_whole: bool) -> dict[str, Any]:
        content = model_content(self.config, self.data.tokenizer, self.state.weights(keep))
        if not is_whole:
            return content
        return {**content, **self.state.content(keep), "teacher": self.teaching.note}

    def _save_alone(self) -> None:
        """Saves the state after the last step, on whichever process ran out of memory first.

        All have the same, unless it is sharded; then the checkpoint before is what is left.
        """
        if is_sharded(self.state.model):
            return
        path = self.loop.exp_dir / f"checkpoint-{self.state.progress.step}.pt"
        try:
            with locked(path.with_name(SAVING), "another process saves the training"):
                save_atomically(self._content(True, True), path)
        except UserError as e:
            logging.warning(str(e))

    def resume(self) -> None:
        """Resumes from the checkpoint that the options name, if any.

        The main process reads the file and sends what it holds to the others.
        """
        path, content = self.process.from_main(self._start() if self.process.is_main else None)
        if path:
            self.restore(path, content)
        self.teaching.begin(self.state.progress.step, content.get("teacher"), path)

    def _start(self) -> tuple[Path | None, dict[str, Any]]:
        """The checkpoint to resume from, and its content."""
        folder, loop = self.loop.exp_dir, self.loop
        remove_unfinished(folder)
        newest = newest_checkpoint(folder) if loop.resume else None
        if newest:
            return newest
        if loop.start_batch > 0:
            path = folder / f"checkpoint-{loop.start_batch}.pt"
        elif loop.start_epoch > 1:
            path = folder / f"epoch-{loop.start_epoch - 1}.pt"
        else:
            return None, {}
        return path, read_resumable(path)

    def restore(self, path: Path, content: dict[str, Any]) -> None:
        """Continues from what the checkpoint ``path`` of this run holds.

        Raises:
          UserError: it is damaged, or of a training with other options; names file and options.
        """
        saved = ModelConfig.from_dict(content["config"], str(path))
        check_same_model(path, saved, self.config)
        if content["tokens"] != self.data.tokenizer.tokens:
            raise UserError(f"{path}: was trained with another BPE model than --lang-dir has")
        before = bool(content.get("language_token"))
        if before != isinstance(self.data.tokenizer, LanguageFirst):
            raise UserError(
                f"{path}: was trained with --language-token {int(before)}: resume with that too"
            )
        try:
            self.state.load(content)
        except UserError as e:
            raise UserError(f"{path}: {e}") from e
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as e:
            if is_out_of_memory(e):
                raise
            raise UserError(f"{path}: its state of a training is not understood ({e})") from e
        p = self.state.progress
        logging.info(f"resumed from {path}: epoch {p.epoch}, step {p.step}")


def _is_due(step: int, interval: int) -> bool:
    """Whether something is done after ``step`` that is done every ``interval`` steps; 0: never."""
    return interval > 0 and step % interval == 0
