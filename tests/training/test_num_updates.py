"""Trainings whose length is a number of updates: they end, resume and are scheduled by it."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.tiny_recipe import SMALL, run_train
from tests.support.train_driver import run_together
from tests.training.test_distributed import STEADY, needs_processes
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.checkpoint import read_checkpoint
from xlsr_transducer.model.heads import LossOptions
from xlsr_transducer.training.extent import Extent, note_changes, with_warm_step
from xlsr_transducer.training.optim import OptimOptions
from xlsr_transducer.training.options import LoopOptions
from xlsr_transducer.training.state import Progress

SHORT = ["--num-epochs=0", "--max-duration=9", "--log-interval=1", "--save-every-n=4"]


def log_of(exp: Path) -> str:
    return "".join(path.read_text() for path in sorted((exp / "log").iterdir()))


@pytest.fixture(scope="module")
def straight(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of 20 updates, the last one amid an epoch."""
    exp = tmp_path_factory.mktemp("updates")
    assert run_train(corpus, exp, *SHORT, "--num-updates=20") == 0
    return exp


def fairseq_rate(update: int, updates: int, peak: float) -> float:
    """The rate of fairseq's tri_stage, phase_ratio [0.1, 0.4, 0.5], after ``update`` updates."""
    warm, hold, decay = (int(updates * ratio) for ratio in (0.1, 0.4, 0.5))
    if update < warm:
        return peak * (0.01 + 0.99 / warm * update)
    if update < warm + hold:
        return peak
    into = min(update - warm - hold, decay)
    return peak * math.exp(math.log(0.05) / decay * into)


@pytest.mark.parametrize("updates", [20, 25, 99, 13_000])
def test_the_schedule_spans_the_updates_as_fairseqs_does(updates: int) -> None:
    extent, options = Extent(0, 0.0, updates, updates), OptimOptions(base_lr=3e-4)
    for step in {*range(0, updates + 2, max(updates // 500, 1)), updates - 1}:
        share = extent.share(Progress(step=step))
        found = options.base_lr * options.rate_factor(share, updates)
        assert found == pytest.approx(fairseq_rate(step, updates, 3e-4), rel=1e-9)


def test_the_last_update_ends_its_epoch(straight: Path) -> None:
    history = json.loads((straight / "history.json").read_text())
    steps = [record["step"] for record in history]
    per_epoch = steps[0]
    assert steps[-1] == 20 and 20 % per_epoch != 0
    last = read_checkpoint(straight / f"epoch-{len(history)}.pt")
    progress = last["progress"]
    assert progress["step"] == 20 and progress["batches"] == 0
    assert progress["num_updates"] == 20 and progress["num_epochs"] == 0
    log = log_of(straight)
    assert re.search(
        r"training on 30 utterances, .* hours, for 20 updates, about \d\.\d epochs", log
    )
    rates = re.findall(r"step (\d+): .* lr base ([^,]+), encoder", log)
    assert [int(step) for step, _ in rates] == list(range(1, 21))
    for step, rate in rates:
        assert float(rate) == pytest.approx(fairseq_rate(int(step) - 1, 20, 0.005), rel=5e-3)


@pytest.mark.parametrize("step", [8, 20])
def test_a_resumed_training_ends_at_the_same_update_with_the_same_bits(
    corpus: Path, straight: Path, tmp_path: Path, step: int
) -> None:
    for name in (f"checkpoint-{step}.pt", "xlsr_below_cut.pt"):
        shutil.copy(straight / name, tmp_path)
    run_train(corpus, tmp_path, *SHORT, "--num-updates=20", "--resume=auto")
    [last] = [p for p in straight.glob("epoch-*.pt") if read_checkpoint(p)["step"] == 20]
    expected, found = read_checkpoint(last), read_checkpoint(tmp_path / last.name)
    assert all(torch.equal(value, found["model"][k]) for k, value in expected["model"].items())
    assert str(expected["optimizer"]["state"]) == str(found["optimizer"]["state"])
    assert {**expected["progress"], "best_wer": 0} == {**found["progress"], "best_wer": 0}
    # What has ended stays so, and one that is made longer continues with the next epoch.
    before = sorted(tmp_path.glob("epoch-*.pt"))
    run_train(corpus, tmp_path, *SHORT, "--num-updates=20", "--resume=auto")
    assert sorted(tmp_path.glob("epoch-*.pt")) == before
    run_train(corpus, tmp_path, *SHORT, "--num-updates=21", "--resume=auto")
    assert "other schedules than before: --num-updates 20 and 21: learning" in log_of(tmp_path)
    assert max(read_checkpoint(p)["step"] for p in tmp_path.glob("epoch-*.pt")) == 21


@needs_processes
@pytest.mark.long
def test_two_processes_end_after_the_same_update_with_the_same_weights(
    corpus: Path, tmp_path: Path
) -> None:
    found = []
    for world_size in (1, 2):
        exp = tmp_path / str(world_size)
        words = ["--data-dir", str(corpus), "--exp-dir", str(exp), *SMALL, *STEADY]
        run = ([*words, "--num-epochs=0", "--num-updates=4"], {"TRACE": str(exp), "FLOAT64": "1"})
        log = tmp_path / f"{world_size}.txt"
        assert run_together([run], world_size, log) == [0] * world_size, log.read_text()
        [path] = exp.glob("epoch-*.pt")
        found.append(read_checkpoint(path))
    one, two = found
    assert one["step"] == two["step"] == 4
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=0, atol=1e-9)


def test_warm_up_and_what_is_left_follow_the_updates(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    extent = Extent(0, 0.0, 1000, 1000)
    assert with_warm_step(LossOptions(), extent, Progress()).warm_step == 150
    assert extent.seconds_left(Progress(step=250, seconds=500.0)) == 1500.0
    assert extent.seconds_left(Progress(step=1001, seconds=500.0)) == 0.0
    assert extent.seconds_left(Progress()) == 0.0
    progress = Progress(num_epochs=30, total_seconds=9.0, warm_step=150)
    note_changes(extent, 150, progress)
    assert "before: --num-epochs 30 and --num-updates 1000: learning rate" in caplog.text
    assert (progress.num_epochs, progress.num_updates, progress.total_seconds) == (0, 1000, 0.0)


def test_epochs_and_updates_contradict_each_other() -> None:
    assert (LoopOptions().num_epochs, LoopOptions().num_updates) == (30, 0)
    assert LoopOptions(num_updates=5).num_epochs == 0
    with pytest.raises(UserError, match="--num-epochs 3 contradicts --num-updates 5: give one"):
        LoopOptions(num_epochs=3, num_updates=5)
    with pytest.raises(UserError, match="--num-epochs 0 needs --num-updates"):
        LoopOptions(num_epochs=0)
