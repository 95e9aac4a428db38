"""Trainings with group weights: one process and several, killed, resumed, without memory."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.tiny_recipe import SMALL, run_and_resume, run_train
from tests.support.train_driver import run_together
from tests.training.test_distributed import STEADY, needs_processes
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.checkpoint import read_checkpoint
from xlsr_transducer.training import step
from xlsr_transducer.training.gradient import Objective
from xlsr_transducer.training.metrics import plot_history
from xlsr_transducer.training.step import Stepper
from xlsr_transducer.training.watch import Watch

NAMES = ["et", "fi", "lv"]
STEP_SIZE, SMOOTHING, EPSILON = 0.01, 0.2, 1e-6
WEIGHED = ["--group-weights=ctc-dro", f"--dro-step-size={STEP_SIZE}", "--group-by=dialect",
           f"--dro-smoothing={SMOOTHING}", f"--dro-epsilon={EPSILON}"]  # fmt: skip
SHORT = ["--num-epochs=1", "--max-duration=4", "--total-duration=9"]


@pytest.fixture(scope="module")
def dialects(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature recipe with three dialects, of 18, 8 and 4 training utterances."""
    data = tmp_path_factory.mktemp("dialects") / "data"
    shutil.copytree(corpus, data, ignore=shutil.ignore_patterns("*.index"))
    rewrite(data, lambda i: "et" if i < 18 else "lv" if i < 26 else "fi")
    return data


def rewrite(data: Path, dialect_of) -> None:
    """Gives the training utterance of each number a dialect, wherever it is listed."""
    paths = list(data.rglob("cuts_train.jsonl.gz"))
    assert len(paths) >= 2
    for path in paths:
        cuts = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        for cut in cuts:
            number = sorted(other["id"] for other in cuts).index(cut["id"])
            cut["supervisions"][0]["custom"] = {"dialect": dialect_of(number)}
        path.write_bytes(gzip.compress("".join(json.dumps(c) + "\n" for c in cuts).encode()))


class Noted(NamedTuple):
    """A batch of a training."""

    step: int
    groups: set[str]
    losses: list[float]  # of its utterances; 0 of those that do not count
    factors: list[float]  # of each loss, in what backward began with


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[Noted]:
    """The batches of the trainings of a test, in their order."""
    found: list[Noted] = []
    weighted, weigh = Objective.weighted, Stepper._weigh

    def noting(self, *args) -> torch.Tensor:
        each = weighted(self, *args)
        note = Noted(args[-1], set(), each.tolist(), [])
        each.register_hook(lambda gradient: note.factors.extend(gradient.tolist()))
        found.append(note)
        return each

    def with_groups(self, batch, *args) -> float:
        found[-1].groups.update(batch.groups)
        return weigh(self, batch, *args)

    monkeypatch.setattr(Objective, "weighted", noting)
    monkeypatch.setattr(Stepper, "_weigh", with_groups)
    monkeypatch.setattr(Watch, "epoch", lambda *args: None)  # pictures take as long as the rest
    return found


def replayed(batches: list[Noted], smoothing: float) -> tuple[list[float], list[float]]:
    """q after the batches by numpy, and the factor of each of them."""
    q, kept, factors = np.full(3, 1 / 3), [[], [], []], []
    for batch in batches:
        [name] = batch.groups
        group = NAMES.index(name)
        if any(batch.losses):
            kept[group].append(sum(batch.losses))
        if all(kept):
            mean = np.array([np.mean(losses) for losses in kept])
            q = q * np.exp(STEP_SIZE * mean / (q + smoothing if smoothing else 1)) + EPSILON
            q, kept = q / q.sum(), [[], [], []]
        factors.append(3 * q[group])
    return q.tolist(), factors


def check(batches: list[Noted], exp: Path, smoothing: float = SMOOTHING) -> list[float]:
    q, factors = replayed(batches, smoothing)
    for batch, factor in zip(batches, factors):
        assert batch.factors == pytest.approx([factor] * len(batch.losses), rel=1e-6)
    found = read_checkpoint(exp / "epoch-1.pt")["group_weights"]
    assert found["names"] == NAMES and found["q"] == pytest.approx(q, rel=1e-6)
    return q


def test_each_batch_is_weighed_after_its_own_update_and_what_does_not_count_is_left_out(
    dialects: Path, tmp_path: Path, noted: list[Noted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An utterance without a finite loss, a batch of such utterances, a trial before training."""
    calls: list[int] = []

    def finite(losses) -> torch.Tensor:
        calls.append(len(losses.ctc))
        kept = torch.ones(len(losses.ctc), dtype=torch.bool)
        kept[: {5: 1, 8: 100}.get(len(calls), 0)] = False
        return kept

    monkeypatch.setattr(step, "finite", finite)
    options = [*SHORT, *WEIGHED, "--heads=ctc", "--scan-for-oom-batches=1"]
    assert run_train(dialects, tmp_path, *options) == 0
    trials = [batch for batch in noted if not batch.groups]
    assert 0 < len(trials) < 4 and all(set(batch.factors) == {1.0} for batch in trials)
    assert noted[7].losses == [0.0] * calls[7] and noted[4].losses[0] == 0.0
    batches = noted[len(trials) :]
    q = check(batches, tmp_path, SMOOTHING)
    assert len(batches) > 12 and max(q) > 1.1 * min(q)
    assert {name for batch in batches for name in batch.groups} == set(NAMES)


def test_what_does_not_fit_into_memory_leaves_the_weights_as_before_its_step(
    dialects: Path, tmp_path: Path, noted: list[Noted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Group DRO of a transducer with CTC."""
    backward = Stepper._backward
    steps: list[int] = []  # of each batch
    lost: list[int] = []  # batches

    def failing(self, *args):
        sums = backward(self, *args)
        steps.append(self.state.progress.step)
        if not lost and len(steps) > 3 and steps[-1] == steps[-2]:
            lost.extend(i for i, of_batch in enumerate(steps) if of_batch == steps[-1])
            raise torch.cuda.OutOfMemoryError("CUDA out of memory (this is a test)")
        return sums

    monkeypatch.setattr(Stepper, "_backward", failing)
    options = [*SHORT, *WEIGHED, "--max-duration=3", "--group-weights=group-dro"]
    assert run_train(dialects, tmp_path, *options) == 0
    assert len(lost) == 2
    check([batch for i, batch in enumerate(noted) if i not in lost], tmp_path, smoothing=0.0)
    found = read_checkpoint(tmp_path / "epoch-1.pt")["group_weights"]["q"]
    assert found != pytest.approx(replayed(noted, 0.0)[0], rel=1e-6)


@pytest.fixture(scope="module")
def resumed(dialects: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training ``a``, and of ``b``, which resumes after five steps of it."""
    folder = tmp_path_factory.mktemp("resumed")
    shown = ["--log-interval=1", "--tensorboard=1", "--max-duration=10", "--total-duration=20"]
    run_and_resume(dialects, folder, *WEIGHED, *shown)
    return folder


def test_a_training_that_resumes_has_the_same_weights_to_the_last_bit(resumed: Path) -> None:
    ends = [read_checkpoint(resumed / name / "epoch-2.pt") for name in "ab"]
    assert ends[0]["group_weights"] == ends[1]["group_weights"]
    middle = read_checkpoint(resumed / "a" / "checkpoint-5.pt")["group_weights"]
    assert sum(middle["counts"]) > 0 and middle["q"] != ends[0]["group_weights"]["q"]
    for name, value in ends[0]["model"].items():
        assert torch.equal(value, ends[1]["model"][name]), name


def test_weights_are_in_history_curves_tensorboard_and_log(resumed: Path) -> None:
    exp = resumed / "a"
    q = read_checkpoint(exp / "epoch-2.pt")["group_weights"]["q"]
    records = json.loads((exp / "history.json").read_text())
    assert records[-1]["group_weights"] == dict(zip(NAMES, q))
    axes = plot_history(records, exp / "curves.png").axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes[-1].lines}
    assert lines == {name: [r["group_weights"][name] for r in records] for name in NAMES}
    shown = EventAccumulator(str(exp / "tensorboard")).Reload().Scalars("group_weight/lv")
    assert shown[-1].value == pytest.approx(q[2], rel=1e-6) and len(shown) == shown[-1].step
    assert f", q et {q[0]:.3f}, fi {q[1]:.3f}, lv {q[2]:.3f}, " in logged(exp)


def logged(exp: Path) -> str:
    return "".join(path.read_text() for path in (exp / "log").glob("*"))


def test_groups_that_do_not_fit_are_named(dialects: Path, resumed: Path, tmp_path: Path) -> None:
    exp, data = resumed / "b", tmp_path / "data"
    shutil.copytree(dialects, data)
    rewrite(data, lambda i: "et" if i < 20 else "sv")
    with pytest.raises(UserError) as caught:
        run_train(data, exp, *WEIGHED, "--resume=auto")
    assert str(caught.value).startswith(
        f"{exp / 'epoch-2.pt'}: its group weights are of 3 groups (et, fi, lv), and this training "
        "has 2 groups (et, sv): resume with"
    )
    with pytest.raises(UserError, match="30 utterances have no accent, and so no group"):
        run_train(data, exp, *WEIGHED, "--group-by=accent", "--resume=auto")
    rewrite(data, lambda i: "et")
    with pytest.raises(UserError, match="there is only the group 'et' to train on"):
        run_train(data, tmp_path / "one", *WEIGHED)
    assert run_train(data, exp, "--resume=auto") == 0  # has no epoch left to train
    assert "the groups of the checkpoint are not weighed from here on" in logged(exp)


def driven(data: Path, exp: Path, *more: str) -> tuple[list[str], dict[str, str]]:
    """The options and the environment of a training in float64."""
    words = ["--data-dir", str(data), "--exp-dir", str(exp), *SMALL, *STEADY, *WEIGHED,
             "--num-epochs=1", "--save-every-n=3", "--heads=ctc", "--max-duration=8",
             "--total-duration=16", *more]  # fmt: skip
    return words, {"TRACE": str(exp), "FLOAT64": "1"}


@needs_processes
@pytest.mark.long
def test_one_two_and_four_processes_and_a_killed_one_have_the_same_weights(
    dialects: Path, tmp_path: Path
) -> None:
    """Of steps of three to five batches: four processes have dummies, two an odd one."""
    ends = {}
    for world_size in (1, 2, 4):
        exp, log = tmp_path / str(world_size), tmp_path / f"{world_size}.txt"
        runs = [driven(dialects, exp)]
        assert run_together(runs, world_size, log) == [0] * world_size, log.read_text()
        ends[world_size] = read_checkpoint(exp / "epoch-1.pt")
    first = ends[1]["group_weights"]
    assert max(first["q"]) > 1.2 * min(first["q"]) and ends[1]["step"] >= 5
    for other in (ends[2], ends[4]):
        assert other["step"] == ends[1]["step"]
        assert other["group_weights"]["counts"] == first["counts"]
        for key in ("q", "sums"):
            np.testing.assert_allclose(other["group_weights"][key], first[key], rtol=1e-12)
        for key, value in ends[1]["model"].items():
            torch.testing.assert_close(other["model"][key], value, rtol=0, atol=1e-9, msg=key)
    exp, log = tmp_path / "killed", tmp_path / "killed.txt"
    words, environment = driven(dialects, exp)
    killed = run_together([(words, {**environment, "FAILURE": "kill 0 4"})], 1, log)
    assert killed == [-signal.SIGKILL]
    assert run_together([([*words, "--resume=auto"], environment)], 1, log) == [0], log.read_text()
    assert read_checkpoint(exp / "epoch-1.pt")["group_weights"] == first
