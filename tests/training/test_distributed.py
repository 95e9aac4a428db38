"""Training in several processes, and training that is killed: real processes over gloo."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.tiny_recipe import SMALL, run_train
from tests.support.train_driver import read_trace
from xlsr_transducer.model.checkpoint import read_checkpoint
from xlsr_transducer.training.launch import launch
from xlsr_transducer.training.step import Stepper

# No dropout: only then do rounding errors not grow. Masks of frames are drawn all the same.
STEADY = ["--dropout=0", "--xlsr-dropout=0", "--max-duration=3", "--total-duration=6",
          "--num-epochs=2", "--save-every-n=5"]  # fmt: skip


def start(corpus: Path, exp: Path, *more: str, failure: str = "") -> subprocess.Popen:
    """A training in processes of its own."""
    options = ["--data-dir", str(corpus), "--exp-dir", str(exp), *SMALL, *STEADY, *more]
    exp.mkdir(exist_ok=True)
    environment = {**os.environ, "TRACE": str(exp)}
    if failure:
        environment["FAILURE"] = failure
    command = [sys.executable, "-m", "tests.support.train_driver", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def run(corpus: Path, exp: Path, *more: str, failure: str = "") -> subprocess.CompletedProcess:
    """Trains in processes of their own, to the end."""
    process = start(corpus, exp, *more, failure=failure)
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def resumed_trace(exp: Path, behind: int, rank: int = 0) -> list:
    """The steps of a killed and resumed training, without those that were done twice."""
    noted = read_trace(exp, rank)
    again = next(i for i in range(1, len(noted)) if noted[i][0] <= noted[i - 1][0])
    assert noted[again][0] == behind + 1
    return noted[:behind] + noted[again:]


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """At least 40 steps of one process."""
    exp = tmp_path_factory.mktemp("alone")
    done = run(corpus, exp)
    assert done.returncode == 0, done.stderr
    assert len(read_trace(exp)) >= 40
    return exp


@pytest.fixture(scope="module")
def pair(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of two processes, of which one fails behind step 22; then they go on."""
    exp = tmp_path_factory.mktemp("pair")
    done = run(corpus, exp, "--world-size=2", "--resume=auto", failure="raise 1 22")
    assert done.returncode == 1, done.stderr
    assert time.time() - (exp / "0.txt").stat().st_mtime < 60  # since the last step
    (exp / "failure.txt").write_text(done.stderr)
    done = run(corpus, exp, "--world-size=2", "--resume=auto")
    assert done.returncode == 0, done.stderr
    return exp


def test_a_killed_training_resumes_with_the_same_losses_to_the_last_bit(
    corpus: Path, alone: Path, tmp_path: Path
) -> None:
    done = run(corpus, tmp_path, failure="kill 0 17")
    assert done.returncode == -signal.SIGKILL
    done = run(corpus, tmp_path, "--resume=auto")
    assert done.returncode == 0, done.stderr
    assert resumed_trace(tmp_path, behind=15) == read_trace(alone)
    ends = [read_checkpoint(exp / "epoch-2.pt") for exp in (alone, tmp_path)]
    for part in ("model", "model_avg"):
        for name, value in ends[0][part].items():
            assert torch.equal(value, ends[1][part][name]), name
    assert ends[0]["progress"] == ends[1]["progress"]
    assert (alone / "history.json").read_text() == (tmp_path / "history.json").read_text()


def test_two_processes_take_the_steps_of_one(alone: Path, pair: Path) -> None:
    ends = [read_checkpoint(exp / "checkpoint-20.pt")["model"] for exp in (alone, pair)]
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=0, atol=1e-5)


def test_two_processes_that_failed_resume_with_the_same_batches(alone: Path, pair: Path) -> None:
    first, second = (resumed_trace(pair, 20, rank) for rank in (0, 1))
    expected = [[step, ids] for step, ids, _ in read_trace(alone)]
    assert [[a[0], a[1] + b[1]] for a, b in zip(first, second)] == expected
    assert any(not b[1] for b in second)  # a step of one batch: the other process had none


def test_an_error_in_one_process_ends_both_with_its_traceback(pair: Path) -> None:
    """That it ended at all is in the fixture."""
    said = (pair / "failure.txt").read_text()
    assert "process 1 failed: Traceback" in said and "ArithmeticError: this is a test" in said
    logs = "".join(path.read_text() for path in (pair / "log").iterdir())
    assert logs.count("ArithmeticError: this is a test") == 2  # in both logs


def test_a_process_that_stands_still_ends_the_other(capfd: pytest.CaptureFixture) -> None:
    def too_late(signum: int, frame: object) -> None:
        raise TimeoutError("the other process waits on")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(120)
    try:
        assert launch("tests.support.still_process", [], 2) == 1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert "process 1 was silent" in capfd.readouterr().err


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_after_the_step_and_names_the_command_that_resumes(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    signum: int,
) -> None:
    add = Stepper.add

    def add_and_signal(self, batch) -> None:
        if self.state.progress.step == 3:
            os.kill(os.getpid(), signum)
        add(self, batch)

    monkeypatch.setattr(Stepper, "add", add_and_signal)
    before = signal.getsignal(signum)
    assert run_train(corpus, tmp_path, *STEADY) == 128 + signum  # so that train && decode stops
    assert signal.getsignal(signum) == before
    log = "".join(path.read_text() for path in (tmp_path / "log").iterdir())
    assert f"to resume: ./train.sh --data-dir {corpus} " in log and "--resume auto" in log
    assert read_checkpoint(tmp_path / "checkpoint-4.pt")["progress"]["step"] == 4


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen) -> None:
    for _ in range(1200):
        if is_so():
            return
        assert process.poll() is None
        time.sleep(0.1)
    raise TimeoutError


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def logged(exp: Path) -> str:
    return "".join(path.read_text() for path in (exp / "log").glob("*"))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc to look for processes")
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_second_ctrl_c_ends_a_training_that_is_stuck_and_the_processes_that_read_its_data(
    corpus: Path, tmp_path: Path, world_size: int
) -> None:
    process = start(corpus, tmp_path, f"--world-size={world_size}", "--num-workers=1",
                    "--max-duration=3", "--total-duration=0", failure="stuck")  # fmt: skip
    stuck: list[Path] = []
    try:
        wait_until(lambda: len(list(tmp_path.glob("stuck-*"))) == world_size, process)
        stuck = list(tmp_path.glob("stuck-*"))
        process.send_signal(signal.SIGINT)
        # One of two processes may wait for the other in a collective, deaf to signals.
        wait_until(lambda: "SIGINT: the training saves" in logged(tmp_path), process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        for path in stuck:
            pid = int(path.name.partition("-")[2])
            for _ in range(100):
                if not is_running(pid):
                    break
                time.sleep(0.1)
            assert not is_running(pid)
    finally:
        process.kill()
        for path in stuck:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.name.partition("-")[2]), signal.SIGKILL)
