"""The training command as tests need it: it notes every step, and fails where it is told to.

``python -m tests.support.train_driver OPTIONS`` takes the options of ``xlsr_transducer.train``.
In the environment, ``TRACE`` names a folder to note steps in, and ``FAILURE`` is ``HOW RANK
STEP``: what process RANK does once STEP steps are done: ``raise`` an error, run out of memory
(``oom``), ``kill`` or ``stop`` itself. ``stuck`` instead is what reads data: it leaves a file
``stuck-PID`` and does nothing more. ``FLOAT64=1`` computes everything in float64.

``run_together`` trains, and ``fork`` does anything, in processes that are forked from one that has
imported everything.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from xlsr_transducer import train
from xlsr_transducer.core.errors import run_command
from xlsr_transducer.data.datamodule import Batch, SpeechDataset
from xlsr_transducer.training import loop
from xlsr_transducer.training.launch import launch, torchrun_environment
from xlsr_transducer.training.metrics import LossSums
from xlsr_transducer.training.step import Stepper, StepReport

SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
Run = tuple[list[str], dict[str, str]]  # options and environment of a training


class TracedStepper(Stepper):
    """A step that leaves a line: its number, the ids of its utterances, its losses to the bit;
    and the gradient of the first step in ``gradient.pt``."""

    ids: list[str] = []

    def add(self, batch: Batch) -> None:
        self._fail()
        self.ids = self.ids + batch.ids
        super().add(batch)

    def update(self, last: Batch, is_asked_to_end: bool = False) -> StepReport:
        report = super().update(last, is_asked_to_end)
        losses = [report.sums.simple.hex(), report.sums.pruned.hex(), report.sums.ctc.hex()]
        line = json.dumps([self.state.progress.step, self.ids, losses])
        with open(_trace() / f"{_rank()}.txt", "a") as f:
            f.write(line + "\n")
        self.ids = []
        return report

    def _change_weights(self, scale: float) -> float:
        if self.state.progress.step == 0 and self.process.is_main:
            names = self.state.model.named_parameters()
            gradient = {n: scale * p.grad for n, p in names if p.grad is not None}
            torch.save(gradient, _trace() / "gradient.pt")
        return super()._change_weights(scale)

    def _backward(self, *args: Any) -> LossSums:
        result = super()._backward(*args)
        if self._failure() == "oom":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory (this is a test)")
        return result

    def _failure(self) -> str:
        how, rank, step = (os.environ.get("FAILURE", "none") + " -1 -1").split()[:3]
        is_now = int(rank) == _rank() and int(step) == self.state.progress.step
        return how if is_now else "none"

    def _fail(self) -> None:
        how = self._failure()
        if how == "raise":
            raise ArithmeticError("this is a test")
        if how in SIGNALS:
            os.kill(os.getpid(), SIGNALS[how])


def _rank() -> int:
    return int(os.environ.get("RANK", 0))


def _trace() -> Path:
    return Path(os.environ["TRACE"])


def be_stuck(dataset: SpeechDataset, cut: object, pause: float) -> None:
    (_trace() / f"stuck-{os.getpid()}").touch()
    time.sleep(600)


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    train.launch = lambda module, argv, world_size: launch(
        "tests.support.train_driver", argv, world_size
    )
    if os.environ["TRACE"]:
        _trace().mkdir(exist_ok=True)
        loop.Stepper = TracedStepper
    if os.environ.get("FAILURE") == "stuck":
        SpeechDataset._read = be_stuck
    is_wide = os.environ.get("FLOAT64") == "1"
    torch.set_default_dtype(torch.float64 if is_wide else torch.float32)
    torch.Tensor.float = torch.Tensor.double if is_wide else FLOAT  # type: ignore[method-assign]
    return train.main(argv)


FLOAT = torch.Tensor.float


def run_together(runs: list[Run], world_size: int, log: Path) -> list[int]:
    """Trains one after the other, each in ``world_size`` processes; returns their exit statuses.

    A process ends with the first of its trainings that fails. What they print is in ``log``.
    """
    stores = [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in runs]
    return fork(
        _train_all,
        [
            (runs, [torchrun_environment(rank, world_size, store.port) for store in stores])
            for rank in range(world_size)
        ],
        log,
    )


def _train_all(runs: list[Run], places: list[dict[str, str]]) -> None:
    for (argv, more), place in zip(runs, places):
        os.environ.update({"FAILURE": "none", "FLOAT64": "0", "TRACE": "", **place, **more})
        if status := main(argv):
            sys.exit(status)


def fork(function: Callable, arguments: list[tuple], log: Path) -> list[int]:
    """Calls ``function`` in a process for each tuple of arguments; returns their exit statuses."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.train_driver"])
    processes = [context.Process(target=_logged, args=(log, function, a)) for a in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def _logged(log: Path, function: Callable, arguments: tuple) -> None:
    with open(log, "a") as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    function(*arguments)


def read_trace(folder: Path, rank: int = 0) -> list:
    """The steps that process ``rank`` noted: [number, ids, losses]."""
    return [json.loads(line) for line in (folder / f"{rank}.txt").read_text().splitlines()]


if __name__ == "__main__":
    run_command(main)
