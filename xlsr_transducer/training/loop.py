"""The training loop: epochs of steps, validation with WER, checkpoints that resume."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from xlsr_transducer.compat import grad_scaler
from xlsr_transducer.config import ModelConfig
from xlsr_transducer.data.datamodule import Batch, DataModule
from xlsr_transducer.errors import UserError
from xlsr_transducer.model.masking import drop_layers
from xlsr_transducer.model.transducer import LossOptions, Transducer
from xlsr_transducer.options import option
from xlsr_transducer.training.checkpoint import (
    BEST,
    model_content,
    numbered_files,
    read_checkpoint,
    save_atomically,
    update_running_mean,
)
from xlsr_transducer.training.distributed import Process
from xlsr_transducer.training.metrics import Clock, LossSums, append_history, plot_history
from xlsr_transducer.training.optim import (
    OptimOptions,
    limit_gradient,
    make_optimizer,
    set_learning_rate,
    set_trainable,
)
from xlsr_transducer.training.validate import validate


@dataclasses.dataclass(frozen=True)
class LoopOptions:
    """Training run."""

    exp_dir: Path = option(Path("exp"), "where checkpoints, logs and curves go")
    num_epochs: int = option(30, "last epoch to train")
    start_epoch: int = option(1, "epoch to start with; above 1 it loads the epoch before")
    start_batch: int = option(0, "if above 0: load checkpoint-N.pt and go on behind step N")
    save_every_n: int = option(4000, "steps between checkpoints within an epoch")
    keep_last_k: int = option(30, "of those checkpoints, how many are kept")
    average_period: int = option(100, "steps between updates of the running mean of the weights")
    log_interval: int = option(50, "steps between log lines")
    seed: int = option(42, "seed of weights, order of data, dropout and chunk settings")
    use_fp16: bool = option(False, "half precision with loss scaling (GPU)")
    use_bf16: bool = option(False, "bfloat16 autocast")
    tensorboard: bool = option(True, "write tensorboard files")

    def __post_init__(self) -> None:
        if self.use_fp16 and self.use_bf16:
            raise UserError("--use-fp16 contradicts --use-bf16: give one")

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        if self.use_fp16:
            return torch.float16
        return torch.bfloat16 if self.use_bf16 else None


@dataclasses.dataclass
class Progress:
    """Where the training is; all of it goes into a checkpoint."""

    step: int = 0
    epoch: int = 1
    batches: int = 0  # of this epoch, taken from the loader
    seconds: float = 0.0  # of audio, over all epochs
    best_wer: float = float("inf")


class Trainer:
    """Trains one model; everything it knows can be saved and restored."""

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
    ):
        self.model = model.to(process.device)
        self.config, self.data, self.splits = config, data, splits
        self.loop, self.optim, self.loss, self.process = loop, optim, loss, process
        self.optimizer = make_optimizer(self.model, optim)
        enabled = loop.use_fp16 and process.device.type == "cuda"
        self.scaler = grad_scaler(enabled)
        self.progress = Progress()
        self.sums = LossSums()
        self.mean = {
            name: torch.zeros_like(value, dtype=torch.float64)
            for name, value in self.model.state_dict().items()
            if value.is_floating_point()
        }
        self.board = SummaryWriter(loop.exp_dir / "tensorboard") if loop.tensorboard else None

    def run(self) -> None:
        """Trains to the last epoch."""
        summary = self.data.summary(self.splits["train"][0])
        self.total_seconds = summary.seconds * self.loop.num_epochs
        logging.info(
            f"training on {summary.utterances} utterances, {summary.seconds / 3600:.2f} hours, "
            f"for {self.loop.num_epochs} epochs"
        )
        self.clock = Clock(self.total_seconds, self.progress.seconds)
        while self.progress.epoch <= self.loop.num_epochs:
            self._train_epoch()
            self._finish_epoch()
        if self.board:
            self.board.close()
        logging.info(f"done; best validation WER {self.progress.best_wer:.2f} %")

    def _train_epoch(self) -> None:
        epoch_sums = LossSums()
        loader = self.data.train_loader(
            self.splits["train"], self.progress.epoch, self.loop.seed, self.progress.batches
        )
        for batch in loader:
            self.progress.batches += 1
            for line in batch.skipped:
                logging.warning(f"skipped, cannot be read: {line}")
            if not batch.ids:
                continue
            epoch_sums.merge(self._step(batch.to(self.process.device)))
            step = self.progress.step
            if step % self.loop.average_period == 0:
                update_running_mean(self.mean, self.model, step, self.loop.average_period)
            if step % self.loop.log_interval == 0:
                self._log()
            if step % self.loop.save_every_n == 0:
                self._save_numbered()
        self.epoch_sums = epoch_sums

    def _step(self, batch: Batch) -> LossSums:
        """One update of the weights; returns the batch's losses."""
        progress = self.progress
        set_trainable(self.model, self.optim, progress.step)
        layerdrop = self.config.encoder.layerdrop
        drop_layers(self.model.encoder.xlsr, layerdrop, self.loop.seed, progress.step)
        self.rate = set_learning_rate(
            self.optimizer, self.optim, progress.seconds / self.total_seconds
        )
        loss, sums = self._loss(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        self.grad_norm = limit_gradient(self.model, self.optim)
        if self.scaler.is_enabled() or torch.isfinite(torch.tensor(self.grad_norm)):
            self.scaler.step(self.optimizer)
        else:
            logging.warning(f"step {progress.step}: gradient not finite, no update; {batch.ids}")
        self.scaler.update()
        progress.step += 1
        progress.seconds += batch.seconds
        self.sums.merge(sums)
        return sums

    def _loss(self, batch: Batch) -> tuple[Tensor, LossSums]:
        """The loss per token to go down, and the sums to report."""
        dtype = self.loop.autocast_dtype
        chunk = self.config.streaming.draw(self.loop.seed, self.progress.step)
        with torch.autocast(self.process.device.type, dtype=dtype, enabled=dtype is not None):
            losses = self.model(
                batch.inputs,
                batch.input_lens,
                batch.tokens,
                batch.token_lens,
                self.loss,
                chunk,
            )
        is_finite = torch.stack([torch.isfinite(x) for x in losses]).all(0)
        if not bool(is_finite.all()):
            named = [i for i, ok in zip(batch.ids, is_finite.tolist()) if not ok]
            logging.warning(f"step {self.progress.step}: loss not finite, left out: {named}")
        simple_scale, pruned_scale = self.loss.scales(self.progress.step)
        total = (
            losses.simple * simple_scale
            + losses.pruned * pruned_scale
            + losses.ctc * self.loss.ctc_loss_scale
        )
        total = torch.where(is_finite, total, torch.zeros_like(total)).sum()
        tokens = (batch.token_lens * is_finite).sum().clamp(min=1)
        sums = LossSums()
        sums.add(losses, is_finite, batch.token_lens, batch.seconds)
        return total / tokens, sums

    def _log(self) -> None:
        p = self.progress
        logging.info(
            f"epoch {p.epoch}, step {p.step}: {self.sums.describe()}, "
            f"grad norm {self.grad_norm:.2f}, lr {self.rate:.2e}, {self.clock.describe(p.seconds)}"
        )
        if self.board:
            for name, value in self.sums.per_token().items():
                self.board.add_scalar(f"train/{name}", value, p.step)
            self.board.add_scalar("train/learning_rate", self.rate, p.step)
            self.board.add_scalar("train/grad_norm", self.grad_norm, p.step)
        self.sums = LossSums()

    def _finish_epoch(self) -> None:
        """Validates, keeps the best, saves the epoch, and moves on."""
        p = self.progress
        epoch = p.epoch
        valid, wer, words = validate(
            self.model, self.data, self.splits["val"], self.loss, self.config.streaming.default()
        )
        logging.info(
            f"epoch {epoch} done: train {self.epoch_sums.describe()}; valid {valid.describe()}, "
            f"WER {wer:.2f} % of {words} words"
        )
        is_best = wer < p.best_wer
        p.best_wer = min(wer, p.best_wer)
        p.epoch, p.batches = epoch + 1, 0
        content = self._content()
        save_atomically(content, self.loop.exp_dir / f"epoch-{epoch}.pt")
        if is_best:
            save_atomically(content, self.loop.exp_dir / BEST)
        record = {
            "epoch": epoch,
            "step": p.step,
            "train": self.epoch_sums.per_token(),
            "valid": valid.per_token(),
            "wer": wer,
        }
        records = append_history(self.loop.exp_dir / "history.json", record)
        figure = plot_history(records, self.loop.exp_dir / "curves.png")
        if self.board:
            self.board.add_scalar("valid/wer", wer, p.step)
            for name, value in valid.per_token().items():
                self.board.add_scalar(f"valid/{name}", value, p.step)
            self.board.add_figure("curves", figure, p.step)

    def _save_numbered(self) -> None:
        save_atomically(self._content(), self.loop.exp_dir / f"checkpoint-{self.progress.step}.pt")
        saved = numbered_files(self.loop.exp_dir, "checkpoint")
        for number in sorted(saved)[: -self.loop.keep_last_k]:
            saved[number].unlink()

    def _content(self) -> dict[str, Any]:
        weights = {k: v.cpu() for k, v in self.model.state_dict().items()}
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            **model_content(self.config, self.data.tokenizer, weights),
            "model_avg": {k: v.cpu() for k, v in self.mean.items()},
            "step": self.progress.step,
            "progress": dataclasses.asdict(self.progress),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }

    def restore(self, path: Path) -> None:
        """Goes on behind what a checkpoint of this run holds."""
        content = read_checkpoint(path)
        if ModelConfig.from_dict(content["config"], str(path)) != self.config:
            raise UserError(f"{path}: was trained with other model options than the ones given")
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        for name, value in content["model_avg"].items():
            self.mean[name].copy_(value)
        torch.set_rng_state(content["random"]["cpu"])
        if content["random"]["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(content["random"]["cuda"])
        self.progress = Progress(**content["progress"])
        logging.info(
            f"resumed from {path}: epoch {self.progress.epoch}, step {self.progress.step}"
        )
