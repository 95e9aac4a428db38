"""Trainings with a teacher: killed and resumed, with other heads, with a failed batch."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
import torch

from tests.support.label_corpus import run_train as run_classifier
from tests.support.tiny_recipe import SMALL, run_train
from tests.support.train_driver import read_trace, run_together
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.checkpoint import read_checkpoint

STUDENT = ["--streaming=1", "--chunk-size=16,8", "--layerdrop=0.3", "--save-every-n=4",
           "--max-duration=10", "--num-updates=7", "--distill-until-step=6"]  # fmt: skip


@pytest.fixture(scope="module")
def taught(corpus: Path, streaming_exp: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trainings of the same student: ``straight``, and ``killed`` once it has done five
    steps, which resumes after the fourth. From the fifth on the second snapshot teaches."""
    folder = tmp_path_factory.mktemp("taught")
    given = [f"--data-dir={corpus}", *SMALL, *STUDENT, f"--teacher-snapshots={streaming_exp}"]
    words = {name: [*given, f"--exp-dir={folder / name}"] for name in ("straight", "killed")}
    trace = {name: {"TRACE": str(folder / name)} for name in words}
    log = folder / "log.txt"
    first = (words["killed"], {**trace["killed"], "FAILURE": "kill 0 5"})
    assert run_together([first], 1, log) == [-signal.SIGKILL], log.read_text()
    runs = [([*words[name], "--resume=auto"], trace[name]) for name in words]
    assert run_together(runs, 1, log) == [0], log.read_text()
    return folder


def last(exp: Path) -> dict:
    return read_checkpoint(max(exp.glob("epoch-*.pt")))


def test_a_killed_training_is_taught_the_same_when_it_resumes(taught: Path) -> None:
    straight, killed = last(taught / "straight"), last(taught / "killed")
    assert straight["step"] == 7 and straight["epoch_sums"] == killed["epoch_sums"]
    for part in ("model", "model_avg"):
        for name, value in straight[part].items():
            assert torch.equal(value, killed[part][name]), name
    steps = [[line[0] for line in read_trace(taught / n)] for n in ("straight", "killed")]
    assert steps == [[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 5, 6, 7]]


def test_log_history_and_checkpoint_tell_of_the_teachers(taught: Path) -> None:
    log = "".join(path.read_text() for path in (taught / "straight" / "log").iterdir())
    assert re.findall(r"step (\d): \S*/(\S+) teaches from", log) == [
        ("0", "checkpoint-5.pt"),
        ("5", "epoch-1.pt"),
    ]
    assert "step 6: nobody teaches from here on" in log
    [epoch] = json.loads((taught / "straight" / "history.json").read_text())
    assert {"layers", "logits"} <= epoch["train"].keys()
    assert not {"layers", "logits"} & epoch["valid"].keys()
    content = last(taught / "straight")
    assert content["teacher"] == {"steps": [5, 8, 10, 15]}
    assert content["model"].keys() == last(taught / "killed")["model"].keys()


def test_a_training_with_another_teacher_is_not_resumed(
    corpus: Path, streaming_exp: Path, taught: Path
) -> None:
    given = [*STUDENT, "--resume=auto", "--num-updates=9", "--distill-until-step=0"]
    before = {path: path.stat().st_mtime_ns for path in (taught / "killed").glob("*.*")}
    one = streaming_exp / "epoch-1.pt"
    with pytest.raises(UserError, match="epoch-1.pt: was trained with another teacher: the snap"):
        run_train(corpus, taught / "killed", *given, "--num-epochs=0", f"--teacher={one}")
    assert before == {path: path.stat().st_mtime_ns for path in (taught / "killed").glob("*.*")}


def test_a_full_context_classifier_learns_from_a_streaming_one(
    label_data: Path, label_exp: Path, tmp_path: Path
) -> None:
    """It has frames of 40 ms, the teacher of 20: their labels compare all the same."""
    run_classifier(label_data, tmp_path, "--num-epochs=2", f"--teacher={label_exp / 'epoch-3.pt'}")
    history = json.loads((tmp_path / "history.json").read_text())
    layers, logits = ([epoch["train"][name] for epoch in history] for name in ("layers", "logits"))
    assert layers[1] < layers[0] and logits[1] < logits[0]
