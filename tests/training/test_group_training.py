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

NAMES = ["et", "fi", "lv"]
STEP_SIZE, SMOOTHING, EPSILON = 0.01, 0.2, 1e-6
WEIGHED = ["--group-weights=ctc-dro", f"--dro-step-size={STEP_SIZE}", "--group-by=language",
           f"--dro-smoothing={SMOOTHING}", f"--dro-epsilon={EPSILON}"]  # fmt: skip
SHORT = ["--num-epochs=1", "--max-duration=4", "--total-duration=9"]


@pytest.fixture(scope="module")
def languages(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature recipe with three languages, of 18, 8 and 4 training utterances."""
    data = tmp_path_factory.mktemp("languages") / "data"
    shutil.copytree(corpus, data, ignore=shutil.ignore_patterns("*.index"))
    rewrite(data, lambda i: "et" if i < 18 else "lv" if i < 26 else "fi")
    return data


def rewrite(data: Path, language_of) -> None:
    """Gives the training utterance of each number a language, wherever it is listed."""
    paths = list(data.rglob("cuts_train.jsonl.gz"))
    assert len(paths) >= 2
    for path in paths:
        cuts = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        for cut in cuts:
            number = sorted(other["id"] for other in cuts).index(cut["id"])
            cut["supervisions"][0]["language"] = language_of(number)
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


@pytest.mark.parametrize(
    "options", [["--heads=ctc"], ["--heads=transducer,ctc", "--group-weights=group-dro"]]
)
def test_each_batch_is_weighed_after_its_own_update_and_lost_utterances_do_not_count(
    languages: Path, tmp_path: Path, noted: list[Noted], monkeypatch: pytest.MonkeyPatch,
    options: list[str],
) -> None:  # fmt: skip
    calls: list[int] = []

    def finite(losses) -> torch.Tensor:
        calls.append(len(losses.ctc))
        kept = torch.ones(len(losses.ctc), dtype=torch.bool)
        kept[: {2: 1, 4: 100}.get(len(calls), 0)] = False  # one of a batch; all of a batch
        return kept

    monkeypatch.setattr(step, "finite", finite)
    assert run_train(languages, tmp_path, *SHORT, *WEIGHED, *options) == 0
    assert noted[3].losses == [0.0] * calls[3] and noted[1].losses[0] == 0.0
    q = check(noted, tmp_path, 0.0 if len(options) > 1 else SMOOTHING)
    assert len(noted) > 12 and max(q) > 1.1 * min(q)
    assert {name for batch in noted for name in batch.groups} == set(NAMES)


def test_what_does_not_fit_into_memory_leaves_the_weights_as_before_its_step(
    languages: Path, tmp_path: Path, noted: list[Noted], monkeypatch: pytest.MonkeyPatch
) -> None:
    backward = Stepper._backward
    calls: list[int] = []

    def failing(self, *args, **more):
        sums = backward(self, *args, **more)
        calls.append(self.state.progress.step)
        if len(calls) > 3 and calls[-1] == calls[-2] and failing.left:
            failing.left -= 1
            lost.update(i for i, s in enumerate(calls) if s == calls[-1])
            raise torch.cuda.OutOfMemoryError("CUDA out of memory (this is a test)")
        return sums

    failing.left, lost = 1, set()
    monkeypatch.setattr(Stepper, "_backward", failing)
    assert run_train(languages, tmp_path, *SHORT, *WEIGHED, "--max-duration=3") == 0
    assert len(lost) == 2
    kept = [batch for i, batch in enumerate(noted) if i not in lost]
    q, _ = replayed(kept, SMOOTHING)
    found = read_checkpoint(tmp_path / "epoch-1.pt")["group_weights"]
    assert found["q"] == pytest.approx(q, rel=1e-6)
    assert found["q"] != pytest.approx(replayed(noted, SMOOTHING)[0], rel=1e-6)


def test_a_trial_of_the_largest_batches_changes_no_weight(
    languages: Path, tmp_path: Path, noted: list[Noted]
) -> None:
    options = [*SHORT, *WEIGHED, "--scan-for-oom-batches=1"]
    assert run_train(languages, tmp_path, *options) == 0
    trials = [batch for batch in noted if not batch.groups]
    assert trials and all(set(batch.factors) == {1.0} for batch in trials)
    check([batch for batch in noted if batch.groups], tmp_path)


def test_a_training_that_resumes_has_the_same_weights_to_the_last_bit(
    languages: Path, tmp_path: Path
) -> None:
    shown = ["--log-interval=1", "--tensorboard=1"]
    straight, resumed = run_and_resume(languages, tmp_path, *WEIGHED, *SHORT[1:], *shown)
    assert straight["group_weights"] == resumed["group_weights"]
    middle = read_checkpoint(tmp_path / "a" / "checkpoint-5.pt")["group_weights"]
    assert sum(middle["counts"]) > 0 and middle["q"] != straight["group_weights"]["q"]
    for name, value in straight["model"].items():
        assert torch.equal(value, resumed["model"][name]), name
    _check_reports(tmp_path / "a", straight["group_weights"]["q"])
    with pytest.raises(UserError) as caught:
        run_train(languages, tmp_path / "a", *WEIGHED, "--group-by=speaker", "--resume=auto")
    assert "have no speaker, and so no group" in str(caught.value)


def _check_reports(exp: Path, q: list[float]) -> None:
    """The weights are in history, curves, tensorboard and log."""
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


def test_other_groups_than_the_checkpoints_are_named(languages: Path, tmp_path: Path) -> None:
    exp, data = tmp_path / "exp", tmp_path / "data"
    run_train(languages, exp, "--num-epochs=1", "--max-duration=20", *WEIGHED)
    shutil.copytree(languages, data)
    rewrite(data, lambda i: "et" if i < 20 else "sv")
    resume = ["--num-epochs=2", "--resume=auto"]
    with pytest.raises(UserError) as caught:
        run_train(data, exp, *WEIGHED, *resume)
    assert str(caught.value).startswith(
        f"{exp / 'epoch-1.pt'}: its group weights are of 3 groups (et, fi, lv), and this training "
        "has 2 groups (et, sv): resume with"
    )
    rewrite(data, lambda i: "et")
    with pytest.raises(UserError, match="there is only the group 'et' to train on"):
        run_train(data, tmp_path / "one", *WEIGHED)
    assert run_train(data, exp, "--max-duration=20", *resume) == 0
    assert "the groups of the checkpoint are not weighed from here on" in logged(exp)
    assert read_checkpoint(exp / "epoch-2.pt")["group_weights"] is None


def driven(data: Path, exp: Path, *more: str) -> tuple[list[str], dict[str, str]]:
    """The options and the environment of a training in float64."""
    words = ["--data-dir", str(data), "--exp-dir", str(exp), *SMALL, *STEADY, *WEIGHED,
             "--num-epochs=1", "--save-every-n=3", *more]  # fmt: skip
    return words, {"TRACE": str(exp), "FLOAT64": "1"}


@needs_processes
def test_one_two_and_four_processes_and_a_killed_one_have_the_same_weights(
    languages: Path, tmp_path: Path
) -> None:
    """Of steps of three or four batches, four processes have dummies, two an odd one."""
    ends = {}
    for world_size in (1, 2, 4):
        exp, log = tmp_path / str(world_size), tmp_path / f"{world_size}.txt"
        runs = [driven(languages, exp)]
        assert run_together(runs, world_size, log) == [0] * world_size, log.read_text()
        ends[world_size] = read_checkpoint(exp / "epoch-1.pt")
    first = ends[1]["group_weights"]
    assert max(first["q"]) > 1.2 * min(first["q"]) and ends[1]["step"] >= 8
    for other in (ends[2], ends[4]):
        assert other["step"] == ends[1]["step"]
        assert other["group_weights"]["counts"] == first["counts"]
        for key in ("q", "sums"):
            np.testing.assert_allclose(other["group_weights"][key], first[key], rtol=1e-12)
        for key, value in ends[1]["model"].items():
            torch.testing.assert_close(other["model"][key], value, rtol=0, atol=1e-9, msg=key)
    exp, log = tmp_path / "killed", tmp_path / "killed.txt"
    words, environment = driven(languages, exp)
    killed = run_together([(words, {**environment, "FAILURE": "kill 0 5"})], 1, log)
    assert killed == [-signal.SIGKILL]
    assert run_together([([*words, "--resume=auto"], environment)], 1, log) == [0], log.read_text()
    assert read_checkpoint(exp / "epoch-1.pt")["group_weights"] == first
