"""The training loop: epochs of steps, validation with WER, checkpoints that resume."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import torch

from xlsr_transducer.core.compat import grad_scaler
from xlsr_transducer.core.errors import UserError, is_out_of_memory
from xlsr_transducer.core.options import Options, option
from xlsr_transducer.core.tensor_files import remove_unfinished, save_atomically
from xlsr_transducer.data.datamodule import DataModule
from xlsr_transducer.model.checkpoint import (
    BEST,
    model_content,
    numbered_files,
)
from xlsr_transducer.model.config import ModelConfig
from xlsr_transducer.model.transducer import LossOptions, Transducer
from xlsr_transducer.training.distributed import Process
from xlsr_transducer.training.extent import Extent, note_changes, summary_of, with_warm_step
from xlsr_transducer.training.failed_batch import FailedBatches, FailureOptions
from xlsr_transducer.training.inf_check import InfCheck
from xlsr_transducer.training.interrupt import Interrupt
from xlsr_transducer.training.memory import MemoryOptions, recompute_layers, scan_for_oom
from xlsr_transducer.training.metrics import LossSums
from xlsr_transducer.training.optim import OptimOptions, make_optimizer, set_trainable
from xlsr_transducer.training.resume import (
    AUTO,
    check_same_model,
    newest_checkpoint,
    read_resumable,
)
from xlsr_transducer.training.sharding import SHARDING, check_sharding, is_sharded, shard, whole
from xlsr_transducer.training.state import TrainingState
from xlsr_transducer.training.step import Stepper, StepReport
from xlsr_transducer.training.validate import validate
from xlsr_transducer.training.watch import Watch


@dataclasses.dataclass(frozen=True)
class LoopOptions(Options):
    """Training run."""

    exp_dir: Path = option(Path("exp"), "where checkpoints, logs and curves go")
    num_epochs: int = option(30, "last epoch to train", at_least=1)
    resume: str | None = option(
        None, "auto: go on behind the newest intact checkpoint in --exp-dir, if any", (AUTO,)
    )
    start_epoch: int = option(
        1, "epoch to start with; above 1 it loads the epoch before", at_least=1
    )
    start_batch: int = option(
        0, "if above 0: load checkpoint-N.pt and go on behind step N", at_least=0
    )
    save_every_n: int = option(
        4000, "steps between checkpoints within an epoch; 0: none", at_least=0
    )
    keep_last_k: int = option(30, "of those checkpoints, how many are kept; 0: all", at_least=0)
    keep_last_epochs: int = option(
        20,
        "of the epochs' checkpoints, how many are kept, one more than --avg needs; 0: all",
        at_least=0,
    )
    average_period: int = option(
        100, "steps between updates of the running mean of the weights; 0: no mean", at_least=0
    )
    log_interval: int = option(50, "steps between log lines; 0: none", at_least=0)
    seed: int = option(
        42, "seed of weights, order of data, dropout and chunk settings", at_least=0
    )
    use_fp16: bool = option(False, "float16 for the encoder, with loss scaling (GPU)")
    use_bf16: bool | None = option(
        None, "bfloat16 for the encoder (default: on a GPU that has it, unless --use-fp16)"
    )
    tensorboard: bool = option(True, "write tensorboard files")
    sharding: str = option(
        "none", "fsdp2: divide parameters and optimizer state among the processes", SHARDING
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_fp16 and self.use_bf16:
            raise UserError("--use-fp16 contradicts --use-bf16: give one")

    def autocast_dtype(self, device: torch.device) -> torch.dtype | None:
        """The precision of the encoder's matrix products; None: float32."""
        if self.use_fp16:
            if device.type != "cuda":
                raise UserError("--use-fp16 1 needs a GPU; on a CPU there is --use-bf16 1")
            return torch.float16
        # From compute capability 8 on; PyTorch would emulate it, slowly, on older ones.
        has_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
        wants_bf16 = has_bf16 if self.use_bf16 is None else self.use_bf16
        return torch.bfloat16 if wants_bf16 else None


class Trainer:
    """Trains one model: epochs of steps, each epoch ending in a validation and a checkpoint."""

    def __init__(
        self,
        model: Transducer,
        config: ModelConfig,
        data: DataModule,
        splits: dict[str, list[str]],
        loop: LoopOptions,
        optim: OptimOptions,
        loss: LossOptions,
        process: Process,
        failure: FailureOptions,
        memory: MemoryOptions,
    ):
        if loop.sharding == "fsdp2":
            check_sharding(optim, loop.use_fp16, process.world_size)
            set_trainable(model, optim, step=0)
            shard(model, process.world_size, process.device)
        model = model.to(process.device)
        self.config, self.data, self.splits = config, data, splits
        self.loop, self.optim, self.loss, self.process = loop, optim, loss, process
        self.memory = memory
        recompute_layers(model, memory.gradient_checkpointing)
        self.autocast = loop.autocast_dtype(process.device)
        scaler = grad_scaler(self.autocast == torch.float16)
        self.state = TrainingState.initial(
            model, make_optimizer(model, optim), scaler, process, loop.average_period > 0
        )
        # Whether this process has to do with the running mean and with checkpoints.
        self.keeps_state = process.is_main or is_sharded(model)
        self.interrupt = Interrupt()
        self.failed = FailedBatches(
            loop.exp_dir,
            model,
            config,
            data.tokenizer,
            loss,
            self.autocast,
            failure,
            process.rank,
        )
        if failure.inf_check:
            InfCheck(model, gradients=not loop.use_fp16)

    def run(self) -> int:
        """Trains to the last epoch.

        Returns:
          0, or if it was asked to end before: 130 after Ctrl-C, 143 after SIGTERM. It has saved.
        """
        progress = self.state.progress
        summary = summary_of(self.data, self.splits)
        if self.process.is_main:
            summary.write_left_out(self.loop.exp_dir / "left_out.tsv")
        extent = Extent.of(
            summary, self.data.options, self.loop.num_epochs, self.process.world_size
        )
        self.loss = self.failed.loss = with_warm_step(self.loss, extent, progress)
        note_changes(extent, self.loss.warm_step, progress)
        self.watch = Watch(
            self.loop.exp_dir,
            self.state,
            extent.seconds,
            self.process,
            self.loop.tensorboard,
        )
        self.stepper = Stepper(
            self.state,
            self.config,
            self.optim,
            self.loss,
            self.process,
            self.loop.seed,
            self.autocast,
            extent.seconds,
            self.failed,
            self.memory,
        )
        if not is_sharded(self.state.model):
            self.process.copy_from_main(self.state.model.parameters())
        self._scan()
        status = 0
        with self.interrupt:
            while progress.epoch <= self.loop.num_epochs and not status:
                if not (self._train_epoch() and self._finish_epoch()):
                    status = self.process.largest(self.interrupt.status)
            if status:
                self._save_numbered()
        self.watch.close()
        if not status:
            logging.info(f"done; best validation WER {progress.best_wer:.2f} %")
        return status

    def _scan(self) -> None:
        """Tries the largest batches, if that is wanted."""
        wanted = self.memory.scan_for_oom_batches
        if self.process.device.type == "cuda" if wanted is None else wanted:
            epoch = self.state.progress.epoch
            batches = self.data.largest_batches(self.splits["train"], epoch, self.loop.seed)
            scan_for_oom(self.stepper, batches)

    def _train_epoch(self) -> bool:
        """Whether it came to the epoch's end."""
        progress, process = self.state.progress, self.process
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
            self.stepper.add(batch)
            if batch.place.is_last:
                report = self.stepper.update(batch, self.interrupt.requested)
                self._after_step(report)
                if report.is_asked_to_end:
                    return False
        return True

    def _after_step(self, report: StepReport) -> None:
        """What is due behind a step: running mean, log line, checkpoint."""
        state, step = self.state, self.state.progress.step
        state.epoch_sums.merge(report.sums)
        is_to_save = _is_due(step, self.loop.save_every_n)
        if is_to_save or _is_due(step, self.loop.average_period):
            state.average()
        if self.process.is_main:
            self.watch.step(report, _is_due(step, self.loop.log_interval))
        if is_to_save:
            self._save_numbered()

    def _finish_epoch(self) -> bool:
        """Validates, keeps the best, saves the epoch, and moves on.

        The epoch's checkpoint comes last: a training that dies before goes back behind the
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
        with whole(self.state.model):
            valid = validate(
                self.state.model,
                self.data,
                self.splits["val"],
                self.loss,
                self.config.streaming.default(),
                self.process,
                self.interrupt,
            )
        if not valid.is_complete:
            return False
        if self.process.is_main:
            self.watch.epoch(epoch, train, valid)
        is_best = valid.wer < p.best_wer
        p.best_wer = min(valid.wer, p.best_wer)
        p.epoch, p.batches = epoch + 1, 0
        self.state.epoch_sums = LossSums()
        self.state.average()
        if is_best:
            self._save(BEST, is_whole=False)
        self._save(f"epoch-{epoch}.pt")
        self._remove_old("epoch", epoch, self.loop.keep_last_epochs)
        return True

    def _save_numbered(self) -> None:
        step = self.state.progress.step
        self._save(f"checkpoint-{step}.pt")
        self._remove_old("checkpoint", step, self.loop.keep_last_k)

    def _remove_old(self, stem: str, newest: int, count: int) -> None:
        """Keeps the last ``count`` files up to ``newest``, or all if that is 0; later ones are
        another training's."""
        if not (self.process.is_main and count > 0):
            return
        saved = numbered_files(self.loop.exp_dir, stem)
        for number in sorted(n for n in saved if n <= newest)[:-count]:
            saved[number].unlink()

    def _save(self, name: str, is_whole: bool = True) -> None:
        """Writes a checkpoint; ``is_whole``: with all that a training needs to go on."""
        if not self.keeps_state:
            return
        is_main = self.process.is_main  # of a sharded model, the others take part in gathering
        content = model_content(self.config, self.data.tokenizer, self.state.weights(is_main))
        if is_whole:
            content.update(self.state.content(is_main))
        if is_main:
            save_atomically(content, self.loop.exp_dir / name)

    def restore(self, path: Path) -> None:
        """Continues from what a checkpoint of this run holds.

        Raises:
          UserError: it is damaged, or of a training with other options; names file and options.
        """
        content = read_resumable(path)
        saved = ModelConfig.from_dict(content["config"], str(path))
        check_same_model(path, saved, self.config)
        if content["tokens"] != self.data.tokenizer.tokens:
            raise UserError(f"{path}: was trained with another BPE model than --lang-dir has")
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

    def resume(self) -> None:
        """Goes on where the options say; at the beginning if they say nothing."""
        folder, loop = self.loop.exp_dir, self.loop
        start = None
        if self.process.is_main:
            remove_unfinished(folder)
        if loop.resume:
            # The main process looks: the checksums of large files take a while.
            newest = newest_checkpoint(folder) if self.process.is_main else None
            name = self.process.text_from_main(newest.name if newest else "")
            start = folder / name if name else None
        if start is None and loop.start_batch > 0:
            start = folder / f"checkpoint-{loop.start_batch}.pt"
        elif start is None and loop.start_epoch > 1:
            start = folder / f"epoch-{loop.start_epoch - 1}.pt"
        if start:
            self.restore(start)


def _is_due(step: int, interval: int) -> bool:
    """Whether something is done after ``step`` that is done every ``interval`` steps; 0: never."""
    return interval > 0 and step % interval == 0
