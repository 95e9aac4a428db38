"""What a run reports: log lines, tensorboard, history, curves and pictures."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from xlsr_transducer.core.tables import text_table
from xlsr_transducer.training.distributed import Process
from xlsr_transducer.training.extent import Extent
from xlsr_transducer.training.metrics import (
    Clock,
    LossSums,
    append_history,
    error_name,
    plot_history,
)
from xlsr_transducer.training.samples import draw_lattice, sample_table
from xlsr_transducer.training.state import TrainingState
from xlsr_transducer.training.step import StepReport
from xlsr_transducer.training.validate import Validation

GIB = 2.0**30


class Watch:
    """Reports the training; keeps the sums since the last log line."""

    def __init__(
        self,
        exp_dir: Path,
        state: TrainingState,
        extent: Extent,
        process: Process,
        tensorboard: bool,
    ):
        """
        Args:
          extent: of the whole training.
        """
        self.exp_dir, self.state, self.device = exp_dir, state, process.device
        self.extent, self.clock = extent, Clock(state.progress.seconds)
        self.sums = LossSums()
        self.board: SummaryWriter | None = None
        if tensorboard and process.is_main:
            # What a killed training noted after its checkpoint is done, and noted, again.
            step = state.progress.step
            purge_step = step + 1 if step > 0 else None
            self.board = SummaryWriter(exp_dir / "tensorboard", purge_step=purge_step)

    def step(self, report: StepReport, is_to_log: bool) -> None:
        """Takes in a step; writes a log line and scalars of all since the last, if asked to."""
        self.sums.merge(report.sums)
        progress = self.state.progress
        if not is_to_log:
            return
        rates = learning_rates(self.state.optimizer)
        speed, left = self.clock.speed(progress.seconds, self.extent.seconds_left(progress))
        used, most = gpu_memory(self.device)
        shown = ", ".join(f"{name} {rate:.2e}" for name, rate in rates.items())
        memory = f", GPU memory {used:.1f} of {most:.1f} GiB" if most else ""
        weights = self.state.group_weights
        groups = f", {weights.describe()}" if weights else ""
        logging.info(
            f"epoch {progress.epoch}, step {progress.step}: {self.sums.describe()}, "
            f"grad norm {report.grad_norm:.2f}, lr {shown}{groups}, {speed:.0f} s of audio per s"
            f"{memory}, ETA {left}"
        )
        scalars = {f"train/{name}": value for name, value in self.sums.per_token().items()}
        scalars.update({f"lr/{name}": rate for name, rate in rates.items()})
        scalars.update({f"group_weight/{name}": q for name, q in self._group_weights().items()})
        scalars["train/grad_norm"] = report.grad_norm
        scalars["train/not_finite"] = self.sums.nonfinite
        scalars["speed/audio_seconds_per_second"] = speed
        if most:
            scalars["speed/gpu_memory_gib"] = used
        self._add_scalars(scalars)
        self.sums = LossSums()

    def validation(self, valid: Validation) -> None:
        """Log line and scalars of a validation."""
        step = self.state.progress.step
        error = error_name(valid.sums.per_token())
        units = "words" if error == "WER" else "utterances"
        logging.info(
            f"step {step}: valid {valid.sums.describe()}, {error} {valid.wer:.2f} % of "
            f"{valid.words} {units}"
        )
        scalars = {f"valid/{name}": value for name, value in valid.sums.per_token().items()}
        self._add_scalars({**scalars, "valid/wer": valid.wer})
        if valid.spread:
            logging.info(f"step {step}: valid WER by language\n{language_table(valid)}")
            of_each = {f"valid_wer/{name}": one.wer for name, one in valid.languages.items()}
            scalars = {f"valid/wer_{name}": value for name, value in _spread_of(valid).items()}
            self._add_scalars({**of_each, **scalars})

    def epoch(self, epoch: int, train: LossSums, valid: Validation) -> None:
        """Log line, history and pictures of an epoch."""
        logging.info(f"epoch {epoch} done: train {train.describe()}")
        step = self.state.progress.step
        record = {
            "epoch": epoch,
            "step": step,
            "train": train.per_token(),
            "valid": valid.sums.per_token(),
            "wer": valid.wer,
            **_by_language(valid),
            "not_finite": train.nonfinite,
        }
        if self.state.group_weights:
            record["group_weights"] = self._group_weights()
        records = append_history(self.exp_dir / "history.json", record)
        figures = {"curves": plot_history(records, self.exp_dir / "curves.png")}
        if valid.lattice:
            picture = self.exp_dir / "alignment.png"
            figures["alignment"] = draw_lattice(valid.lattice, f"epoch {epoch}", picture)
        if self.board:
            self.board.add_text("samples", sample_table(valid.samples), step)
            for name, figure in figures.items():
                self.board.add_figure(name, figure, step)

    def _group_weights(self) -> dict[str, float]:
        weights = self.state.group_weights
        return weights.by_name() if weights else {}

    def _add_scalars(self, scalars: dict[str, float]) -> None:
        if self.board:
            for name, value in scalars.items():
                self.board.add_scalar(name, value, self.state.progress.step)

    def close(self) -> None:
        """Writes out what tensorboard has not written yet."""
        if self.board:
            self.board.close()


def language_table(valid: Validation) -> str:
    """Returns the table of a validation of several languages."""
    rows = [["language", "utterances", "words", "WER %"]]
    for name, one in valid.languages.items():
        rows.append([name, str(one.utterances), str(one.words), f"{one.wer:.2f}"])
    rows += [[name, "", "", f"{value:.2f}"] for name, value in _spread_of(valid).items()]
    return text_table(rows, is_right=True)


def _spread_of(valid: Validation) -> dict[str, float]:
    spread = valid.spread
    return {"worst": spread.highest, "mean": spread.mean, "gap": spread.gap} if spread else {}


def _by_language(valid: Validation) -> dict[str, Any]:
    """Returns what the history has of a validation of several languages."""
    if not valid.spread:
        return {}
    of_each = {name: one.wer for name, one in valid.languages.items()}
    return {
        "languages": of_each,
        "worst_language": valid.spread.worst,
        **{f"wer_{name}": value for name, value in _spread_of(valid).items()},
    }


def learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """The rates of what is trained now, as far as they differ.

    ``base`` is the rate of everything but XLSR, which has ``encoder``, or with another rate in
    each layer ``encoder_top`` and ``encoder_bottom``, the ends of their range.
    """
    by_scale = {
        group["lr_scale"]: group["lr"]
        for group in optimizer.param_groups
        if any(p.requires_grad for p in group["params"])
    }
    rates = {"base": by_scale.pop(1.0)} if 1.0 in by_scale else {}
    others = sorted(by_scale.values(), reverse=True)
    if len(others) == 1:
        rates["encoder"] = others[0]
    elif others:
        rates.update(encoder_top=others[0], encoder_bottom=others[-1])
    return rates


def gpu_memory(device: torch.device) -> tuple[float, float]:
    """GiB used at most since the last call, and GiB there are; zeros without a GPU."""
    if device.type != "cuda":
        return 0.0, 0.0
    used = torch.cuda.max_memory_allocated(device) / GIB
    torch.cuda.reset_peak_memory_stats(device)
    return used, torch.cuda.get_device_properties(device).total_memory / GIB
