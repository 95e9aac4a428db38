"""Kills a training at 20 random moments, resumes it each time, and compares its end.

``python -m tests.support.kill_training DATA_DIR WORK_DIR [OPTIONS]``: DATA_DIR with features (a
few utterances are enough); OPTIONS of the training, such as ``--group-weights=ctc-dro``. It takes
minutes, so that it is run by hand. The training saves after every step, so that many of the kills
hit a checkpoint that is being written.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from tests.support.train_driver import read_trace
from xlsr_transducer.model.checkpoint import read_checkpoint

KILLS, EPOCHS = 20, 8
OPTIONS = ["--encoder-dim=32", "--decoder-dim=32", "--joiner-dim=32", "--max-duration=3",
           "--num-buckets=2", "--num-workers=0", "--tensorboard=0", f"--num-epochs={EPOCHS}",
           "--save-every-n=1", "--resume=auto"]  # fmt: skip


def start(data: Path, exp: Path) -> subprocess.Popen:
    exp.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "tests.support.train_driver",
        f"--data-dir={data}",
        f"--exp-dir={exp}",
    ]
    options = [*OPTIONS, *sys.argv[3:]]
    with open(exp / "stderr.txt", "a") as log:
        environment = {**os.environ, "TRACE": str(exp)}
        return subprocess.Popen([*command, *options], env=environment, stderr=log)


def wait_for_a_step(exp: Path, process: subprocess.Popen) -> None:
    trace = exp / "0.txt"
    before = trace.stat().st_size if trace.is_file() else 0
    while not trace.is_file() or trace.stat().st_size == before:
        if process.poll() is not None:
            raise SystemExit(f"the training ended with {process.returncode}; see {exp}")
        time.sleep(0.01)


def main() -> None:
    data, work = Path(sys.argv[1]), Path(sys.argv[2])
    straight = start(data, work / "straight")
    killed, half_written, generator = work / "killed", 0, random.Random(1)
    for i in range(KILLS):
        process = start(data, killed)
        wait_for_a_step(killed, process)
        time.sleep(generator.uniform(0.0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
        half_written += len(list(killed.glob("*.tmp")))
        print(f"kill {i + 1} after step {read_trace(killed)[-1][0]}", flush=True)
    assert start(data, killed).wait() == 0 and straight.wait() == 0
    assert "passed over" not in (killed / "stderr.txt").read_text()
    ends = [read_checkpoint(f / f"epoch-{EPOCHS}.pt") for f in (killed, work / "straight")]
    models = [end["model"] for end in ends]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
    assert ends[0]["group_weights"] == ends[1]["group_weights"]
    print(f"{KILLS} kills, {half_written} of them while a file was written: the same weights")


if __name__ == "__main__":
    main()
