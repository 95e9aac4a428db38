"""The training command as tests need it: it notes every step, and fails where it is told to.

``python -m tests.support.train_driver OPTIONS`` takes the options of ``xlsr_transducer.train``. In the
environment, ``TRACE`` names a folder to note steps in, and ``FAILURE`` is ``HOW RANK STEP``: what
process RANK does once STEP steps are done: ``raise`` an error, ``exit`` without a word, run out of
memory (``oom``), or ``kill`` itself. ``stuck`` instead is what reads data: it leaves a file
``stuck-PID`` and does nothing more.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from xlsr_transducer import train
from xlsr_transducer.core.errors import run_command
from xlsr_transducer.data.datamodule import Batch, SpeechDataset
from xlsr_transducer.training import loop
from xlsr_transducer.training.failed_batch import Attempt
from xlsr_transducer.training.launch import launch
from xlsr_transducer.training.metrics import LossSums
from xlsr_transducer.training.step import Stepper, StepReport

RANK = int(os.environ.get("RANK", 0))


class TracedStepper(Stepper):
    """A step that leaves a line: its number, the ids of its utterances, its losses to the bit."""

    ids: list[str] = []

    def add(self, batch: Batch) -> None:
        self._fail()
        self.ids = self.ids + batch.ids
        super().add(batch)

    def update(self, last: Batch, is_asked_to_end: bool = False) -> StepReport:
        report = super().update(last, is_asked_to_end)
        losses = [report.sums.simple.hex(), report.sums.pruned.hex(), report.sums.ctc.hex()]
        line = json.dumps([self.state.progress.step, self.ids, losses])
        with open(Path(os.environ["TRACE"]) / f"{RANK}.txt", "a") as f:
            f.write(line + "\n")
        self.ids = []
        return report

    def _loss(self, batch: Batch, attempt: Attempt) -> tuple[Tensor, LossSums]:
        result = super()._loss(batch, attempt)
        if self._failure() == "oom":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory (this is a test)")
        return result

    def _failure(self) -> str:
        how, rank, step = (os.environ.get("FAILURE", "none") + " -1 -1").split()[:3]
        is_now = int(rank) == RANK and int(step) == self.state.progress.step
        is_restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
        return how if is_now and not is_restarted else "none"

    def _fail(self) -> None:
        how = self._failure()
        if how in ("none", "oom"):
            return
        if how == "raise":
            raise ArithmeticError("this is a test")
        if how == "exit":
            os._exit(3)
        os.kill(os.getpid(), signal.SIGKILL)


def be_stuck(dataset: SpeechDataset, cut: object) -> None:
    (Path(os.environ["TRACE"]) / f"stuck-{os.getpid()}").touch()
    time.sleep(600)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    train.launch = lambda module, argv, world_size: launch(
        "tests.support.train_driver", argv, world_size
    )
    loop.Stepper = TracedStepper
    if os.environ.get("FAILURE") == "stuck":
        SpeechDataset._read = be_stuck
    return train.main(argv)


def read_trace(folder: Path, rank: int = 0) -> list:
    """The steps that process ``rank`` noted: [number, ids, losses]."""
    return [json.loads(line) for line in (folder / f"{rank}.txt").read_text().splitlines()]


if __name__ == "__main__":
    run_command(main)
