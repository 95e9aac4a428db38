"""Training in several processes, and training that is killed: real processes over gloo."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.support.tiny_recipe import SMALL, run_train
from tests.support.train_driver import read_trace, run_together
from xlsr_transducer.core.compat import load_tensors
from xlsr_transducer.model.checkpoint import read_checkpoint
from xlsr_transducer.training.launch import launch
from xlsr_transducer.training.step import Stepper

# No dropout: only then do rounding errors not grow. Masks of frames are drawn all the same.
STEADY = ["--dropout=0", "--xlsr-dropout=0", "--max-duration=3", "--total-duration=9",
          "--num-epochs=2", "--save-every-n=5"]  # fmt: skip
# Of three batches in most steps, one of two processes has two, the other one and a dummy.
THAWS = ["--freeze-encoder-steps=5", "--layerdrop=0.3", "--gradient-checkpointing=1"]
TAUGHT = ["--layerdrop=0.3", "--gradient-checkpointing=1", "--cr-ctc-scale=0.2"]
WIDE = {"FLOAT64": "1"}
DRIVER = "tests.support.train_driver"
needs_processes = pytest.mark.skipif(
    torch.__version__.startswith("1."), reason="several processes need PyTorch 2"
)


def options(corpus: Path, exp: Path, *more: str) -> list[str]:
    return ["--data-dir", str(corpus), "--exp-dir", str(exp), *SMALL, *STEADY, *more]


def trainings(
    corpus: Path, teacher: Path, folder: Path, *more: str
) -> list[tuple[list[str], dict[str, str]]]:
    """The trainings of one process and of two."""
    found = []
    for name, environment, given in (
        ("steps", WIDE, THAWS),
        ("lora", WIDE, ["--lora-rank=2", "--freeze-encoder-steps=2", "--num-epochs=1"]),
        (
            "taught",
            WIDE,
            [
                "--num-epochs=1",
                "--distill-until-step=7",
                *TAUGHT,
                f"--teacher-snapshots={teacher}",
            ],
        ),
        ("gradient", {}, ["--max-duration=6", "--total-duration=24", "--num-epochs=1"]),
    ):
        exp = folder / name
        found.append((options(corpus, exp, *given, *more), {"TRACE": str(exp), **environment}))
    return found


@pytest.fixture(scope="module", autouse=True)
def stopped(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen]:
    """Two processes of which one stops, started early: the others notice after 5 seconds, and it
    gets half a minute more to end."""
    exp = tmp_path_factory.mktemp("stopped")
    process = start(corpus, exp, "--world-size=2", "--process-timeout=5", failure="stop 1 2")
    yield process
    if process.poll() is None:
        process.terminate()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        process.communicate()


def start(corpus: Path, exp: Path, *more: str, failure: str = "") -> subprocess.Popen:
    """A training in processes of its own."""
    environment = {**os.environ, "TRACE": str(exp), "FAILURE": failure}
    command = [sys.executable, "-m", DRIVER, *options(corpus, exp, *more)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def alone(corpus: Path, streaming_exp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainings in one process."""
    folder = tmp_path_factory.mktemp("alone")
    runs = trainings(corpus, streaming_exp, folder)
    statuses = run_together(runs, 1, folder / "log.txt")
    assert statuses == [0], (folder / "log.txt").read_text()
    assert len(read_trace(folder / "steps")) >= 20
    return folder


@pytest.fixture(scope="module")
def pair(corpus: Path, streaming_exp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in two processes. In the first training one fails after step 12; it is resumed."""
    folder = tmp_path_factory.mktemp("pair")
    exp = folder / "steps"
    status, printed = launched(
        options(corpus, exp, *THAWS), {"TRACE": str(exp), "FAILURE": "raise 1 12", **WIDE}
    )
    assert status == 1, printed
    assert time.time() - (exp / "0.txt").stat().st_mtime < 30  # since the last step
    (folder / "failure.txt").write_text(printed)
    runs = trainings(corpus, streaming_exp, folder, "--resume=auto")
    statuses = run_together(runs, 2, folder / "log.txt")
    assert statuses == [0, 0], (folder / "log.txt").read_text()
    return folder


def launched(words: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Trains in two processes that ``launch`` starts; returns the status and what they print."""
    Path(environment["TRACE"]).mkdir(exist_ok=True)
    log = Path(environment["TRACE"]) / "printed.txt"
    with pytest.MonkeyPatch.context() as patch, open(log, "w") as f:
        for name, value in environment.items():
            patch.setenv(name, value)
        kept = os.dup(2)
        os.dup2(f.fileno(), 2)
        try:
            with contextlib.redirect_stderr(f):
                status = launch(DRIVER, words, 2)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
    return status, log.read_text()


def resumed_trace(exp: Path, after: int, rank: int = 0) -> list:
    """The steps of a killed and resumed training, without those that were done twice."""
    noted = read_trace(exp, rank)
    again = next(i for i in range(1, len(noted)) if noted[i][0] <= noted[i - 1][0])
    assert noted[again][0] == after + 1
    return noted[:after] + noted[again:]


def test_a_killed_training_resumes_with_the_same_losses_to_the_last_bit(
    corpus: Path, alone: Path, tmp_path: Path
) -> None:
    exp = tmp_path / "steps"
    words, environment = options(corpus, exp, *THAWS), {"TRACE": str(exp), **WIDE}
    log = tmp_path / "log.txt"
    killed = run_together([(words, {**environment, "FAILURE": "kill 0 17"})], 1, log)
    assert killed == [-signal.SIGKILL]
    assert run_together([([*words, "--resume=auto"], environment)], 1, log) == [0], log.read_text()
    assert resumed_trace(exp, after=15) == read_trace(alone / "steps")
    ends = [read_checkpoint(folder / "epoch-2.pt") for folder in (alone / "steps", exp)]
    for part in ("model", "model_avg"):
        for name, value in ends[0][part].items():
            assert torch.equal(value, ends[1][part][name]), name
    assert ends[0]["progress"] == ends[1]["progress"]
    histories = [(folder / "history.json").read_text() for folder in (alone / "steps", exp)]
    assert histories[0] == histories[1]


@needs_processes
@pytest.mark.parametrize(
    "name, last", [("steps", "epoch-2.pt"), ("lora", "epoch-1.pt"), ("taught", "epoch-1.pt")]
)
def test_two_processes_take_the_steps_of_one(
    alone: Path, pair: Path, name: str, last: str
) -> None:
    """In float64, with layers that thaw and are dropped, with LoRA, or with teachers in turn."""
    one, two = (read_checkpoint(folder / name / last) for folder in (alone, pair))
    assert one["step"] == two["step"] >= (20 if name == "steps" else 8)
    for part in ("model", "model_avg"):
        for key, value in one[part].items():
            torch.testing.assert_close(two[part][key], value, rtol=0, atol=1e-9, msg=key)
    changed = [x["lora_b"].abs().max() for x in one["lora"].values()]
    assert all(x > 0 for x in changed) and bool(changed) == (name == "lora")


@needs_processes
def test_the_gradient_of_two_processes_is_that_of_one(alone: Path, pair: Path) -> None:
    one, two = (load_tensors(folder / "gradient" / "gradient.pt") for folder in (alone, pair))
    assert one.keys() == two.keys() and len(one) > 20
    assert all(value.dtype == torch.float32 for value in one.values())
    first, second = (torch.cat([g[k].flatten() for k in one]).double() for g in (one, two))
    assert (first - second).norm() < 1e-5 * first.norm()


@needs_processes
def test_two_processes_that_failed_resume_with_the_same_batches(alone: Path, pair: Path) -> None:
    first, second = (resumed_trace(pair / "steps", 10, rank) for rank in (0, 1))
    found = [[a[0], sorted(a[1] + b[1])] for a, b in zip(first, second)]
    assert found == [[step, sorted(ids)] for step, ids, _ in read_trace(alone / "steps")]
    assert any(len(a[1]) > len(b[1]) for a, b in zip(first, second))


@needs_processes
def test_an_error_in_one_process_ends_both_with_its_traceback(pair: Path) -> None:
    """That it ended at all is in the fixture."""
    printed = (pair / "failure.txt").read_text()
    assert printed.count("Traceback") == printed.count("ArithmeticError: this is a test") == 1
    assert "process 1 failed: Traceback" in printed
    assert "ArithmeticError: this is a test" in logged(pair / "steps")


@needs_processes
@pytest.mark.long
def test_a_signal_lets_processes_save_and_one_without_memory_or_life_ends_both(
    corpus: Path, tmp_path: Path
) -> None:
    """One training: it gets SIGTERM, runs out of memory when it resumes, and is killed then."""
    words = options(corpus, tmp_path, "--save-every-n=0", "--resume=auto")

    def send() -> None:
        while not (tmp_path / "0.txt").is_file():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send, daemon=True).start()
    status, printed = launched(words, {"TRACE": str(tmp_path)})
    assert status == 128 + signal.SIGTERM, printed
    assert printed.count("to resume: ") == 1 and "Traceback" not in printed
    [step] = saved_steps(tmp_path)
    status, printed = launched(words, {"TRACE": str(tmp_path), "FAILURE": f"oom 1 {step + 2}"})
    assert status == 2 and f"checkpoint-{step}.pt: epoch 1, step {step}\n" in printed
    [line] = [line for line in printed.splitlines() if "ERROR" in line]
    assert f"process 1 failed: step {step + 2}: 1 utterances, up to" in line
    assert "does not fit into memory: lower --max-duration" in line
    assert saved_steps(tmp_path) == [step, step + 2]
    status, printed = launched(words, {"TRACE": str(tmp_path), "FAILURE": f"kill 1 {step + 3}"})
    assert status == 128 + signal.SIGKILL and "process 1 was ended by SIGKILL" in printed
    assert f"checkpoint-{step + 2}.pt: epoch 1, step {step + 2}\n" in printed


def saved_steps(exp: Path) -> list[int]:
    return sorted(int(path.stem.partition("-")[2]) for path in exp.glob("checkpoint-*.pt"))


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
        if self.state.progress.step == 3 and batch.place.is_last:
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
@pytest.mark.parametrize(
    "world_size", [1, pytest.param(2, marks=[needs_processes, pytest.mark.long])]
)
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


@needs_processes
def test_a_process_that_stands_still_ends_the_other(stopped: subprocess.Popen) -> None:
    _, printed = stopped.communicate(timeout=120)
    assert stopped.returncode == 1
    assert "process 0 failed: Traceback" in printed and "Timed out waiting" in printed
