"""A training tells what it does: log lines, tensorboard, samples, what was not finite."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from local import replay_batch
from tests.support.tiny_recipe import run_train
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.heads import Losses
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.training.watch import learning_rates

ONE_EPOCH = ("--num-epochs", "1", "--log-interval", "2")


def log_of(exp: Path) -> str:
    return next((exp / "log").glob("log-train-*")).read_text()


def test_log_and_tensorboard_hold_losses_rates_speed_samples_and_an_alignment(
    corpus: Path, tmp_path: Path
) -> None:
    run_train(corpus, tmp_path, *ONE_EPOCH, "--tensorboard", "1", "--encoder-lr-scale", "0.5")
    number = r"[0-9.]+"
    line = (
        rf"epoch 1, step 2: simple {number}, pruned {number}, ctc {number} per token, grad norm "
        rf"{number}, lr base {number}e-\d+, encoder {number}e-\d+, \d+ s of audio per s, ETA 0:"
    )
    assert re.search(line, log_of(tmp_path))
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = set(board.Tags()["scalars"])
    for name in ("simple", "pruned", "ctc", "grad_norm", "not_finite"):
        assert f"train/{name}" in scalars
    assert {"valid/wer", "lr/base", "lr/encoder", "speed/audio_seconds_per_second"} <= scalars
    assert set(board.Tags()["images"]) == {"curves", "alignment"}
    text = board.Tensors("samples/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert text.count("\n| val_") == 4
    assert (tmp_path / "alignment.png").read_bytes().startswith(b"\x89PNG")


def test_a_resumed_training_has_one_curve_in_tensorboard(corpus: Path, tmp_path: Path) -> None:
    options = ("--num-epochs", "1", "--log-interval", "1", "--save-every-n", "2")
    for more in ((), ("--start-batch", "2")):
        run_train(corpus, tmp_path, *options, "--tensorboard", "1", *more)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    steps = [event.step for event in board.Scalars("train/simple")]
    assert steps == list(range(1, steps[-1] + 1)) and len(steps) > 3


def test_losses_that_are_not_finite_are_named_and_counted_at_the_end_of_the_epoch(
    corpus: Path, tmp_path: Path, monkeypatch
) -> None:
    forward = SpeechModel.forward

    def with_a_bad_loss(self, *args) -> Losses:
        losses = forward(self, *args)
        bad = torch.zeros_like(losses.simple)
        bad[0] = float("inf") if self.training else 0.0
        return losses._replace(simple=losses.simple + bad)

    monkeypatch.setattr(SpeechModel, "forward", with_a_bad_loss)
    run_train(corpus, tmp_path, *ONE_EPOCH)
    log = log_of(tmp_path)
    named = re.findall(r"step (\d+): loss not finite, left out: 1 of \d+ utterances: train_", log)
    assert len(named) > 2
    assert re.search(rf"epoch 1 done: train .* loss of {len(named)} utterances not finite", log)
    history = json.loads((tmp_path / "history.json").read_text())
    assert history[0]["not_finite"] == len(named) and history[0]["train"]["simple"] < 1e3


def test_a_gradient_that_is_not_finite_changes_no_weight_and_is_named_and_counted(
    corpus: Path, tmp_path: Path, monkeypatch
) -> None:
    def nan(gradient: Tensor) -> Tensor:
        return gradient * float("nan")

    forward = SpeechModel.forward

    def with_a_bad_gradient(self, *args) -> Losses:
        losses = forward(self, *args)
        if self.training:
            losses.pruned.register_hook(nan)
        return losses

    monkeypatch.setattr(SpeechModel, "forward", with_a_bad_gradient)
    with pytest.raises(UserError, match="4 steps in a row .* gradient .*replay_batch"):
        run_train(corpus, tmp_path, *ONE_EPOCH, "--max-failed-in-a-row", "4")
    log = log_of(tmp_path)
    assert len(re.findall(r"step \d+: gradient not finite, no update: train_", log)) == 4
    assert "gradient of 2 steps not finite" in log
    assert len(list((tmp_path / "failed").iterdir())) == 3


def test_inf_check_stops_a_training_with_the_module_and_keeps_the_batch(
    corpus: Path, tmp_path: Path, monkeypatch
) -> None:
    forward = torch.nn.Conv1d.forward

    def overflows(self, x: Tensor) -> Tensor:
        return forward(self, x) * (1e39 if self.kernel_size == (5,) else 1.0)

    monkeypatch.setattr(torch.nn.Conv1d, "forward", overflows)
    message = r"--inf-check: the output of encoder.adapter.conv is not finite"
    with pytest.raises(UserError, match=message):
        run_train(corpus, tmp_path, *ONE_EPOCH, "--inf-check", "1")
    (kept,) = (tmp_path / "failed").iterdir()
    with pytest.raises(UserError, match=message):
        replay_batch.main([str(kept), "--device", "cpu", "--inf-check", "1"])


def test_rates_are_told_apart_where_they_differ() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(4)]

    def rates(*scales: float) -> dict[str, float]:
        groups = [{"params": [p], "lr_scale": s, "lr": s} for p, s in zip(parameters, scales)]
        return learning_rates(torch.optim.SGD(groups, lr=1.0))

    assert rates(1.0, 1.0) == {"base": 1.0}
    assert rates(0.1, 1.0) == {"base": 1.0, "encoder": 0.1}
    assert rates(0.1, 0.05, 0.025, 1.0) == {
        "base": 1.0,
        "encoder_top": 0.1,
        "encoder_bottom": 0.025,
    }
    parameters[0].requires_grad_(False)
    assert rates(0.1, 1.0) == {"base": 1.0}
