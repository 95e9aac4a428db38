"""Trainings of classifiers: they learn, resume, take every encoder, and say what they measure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from local import extract_features
from tests.support.label_corpus import CHUNKS, LABELS, run_train
from xlsr_transducer import classify
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model, read_checkpoint

pytestmark = pytest.mark.slow


def test_a_classifier_learns_its_labels_and_reports_their_error(
    label_exp: Path, label_data: Path
) -> None:
    history = json.loads((label_exp / "history.json").read_text())
    assert history[-1]["wer"] == 0.0  # chance is 67 %
    assert history[-1]["valid"].keys() == {"classifier"}
    log = "".join(path.read_text() for path in (label_exp / "log").iterdir())
    assert "label error 0.00 % of 6 utterances" in log and "WER" not in log
    assert "done; best validation label error 0.00 %" in log
    loaded = load_model(CheckpointOptions(exp_dir=label_exp))
    assert loaded.tokenizer.tokens == sorted(LABELS)
    assert loaded.model.classifier.output.weight.shape == (3, 32)


def test_a_resumed_training_ends_with_the_same_weights(
    label_exp: Path, label_data: Path, tmp_path: Path
) -> None:
    shutil.copy(label_exp / "epoch-2.pt", tmp_path)
    run_train(label_data, tmp_path, "--adapter=none", *CHUNKS, "--resume=auto")
    straight, resumed = (read_checkpoint(e / "epoch-3.pt")["model"] for e in (label_exp, tmp_path))
    assert all(torch.equal(value, resumed[name]) for name, value in straight.items())
    with pytest.raises(UserError, match="--classifier-dim 0 and 8"):
        run_train(label_data, tmp_path, "--adapter=none", *CHUNKS, "--resume=auto",
                  "--classifier-dim=8")  # fmt: skip


def test_stored_features_frozen_layers_weighted_layers_and_masks_go_with_a_classifier(
    label_data: Path, tmp_path: Path
) -> None:
    extract_features.main([f"--data-dir={label_data}", f"--xlsr={label_data / 'xlsr'}",
                           "--single-process"])  # fmt: skip
    options = ("--weighted-layers=1", "--trainable-layers=0", "--classifier-dim=8",
               "--time-mask-prob=0.3", "--channel-mask-prob=0.1", "--cut=frontend")  # fmt: skip
    run_train(label_data, tmp_path, "--num-epochs=1", *options)
    weights = read_checkpoint(tmp_path / "epoch-1.pt")["model"]
    assert weights["heads.classifier.projection.weight"].shape == (8, 16)
    assert weights["encoder.layer_weights"].abs().sum() > 0
    history = json.loads((tmp_path / "history.json").read_text())
    assert 0 < history[0]["train"]["classifier"] < 3
    # From the waveform, with the part of XLSR that made the features.
    given = [f"--exp-dir={tmp_path}", f"--data-dir={label_data}", "--num-workers=0"]
    assert classify.main([*given, "--split=test"]) == 0


def test_a_classifier_begins_with_the_encoder_of_another_one_of_other_widths(
    label_exp: Path, label_data: Path, tmp_path: Path
) -> None:
    init = label_exp / "epoch-3.pt"
    run_train(label_data, tmp_path, "--num-epochs=1", f"--init-from={init}", "--base-lr=1e-9")
    before, after = (read_checkpoint(path)["model"] for path in (init, tmp_path / "epoch-1.pt"))
    log = "".join(path.read_text() for path in (tmp_path / "log").iterdir())
    assert f"--init-from {init}: gives the encoder; the head is new" in log
    for name in (n for n in before if n.startswith("encoder.")):
        torch.testing.assert_close(after[name], before[name])
    assert after["heads.classifier.output.weight"].shape == (3, 16)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--ctc-loss-scale=0.2"], "--heads classifier contradicts --ctc-loss-scale 0.2"),
        (["--cr-ctc-scale=0.2"], "--cr-ctc-scale 0.2 needs the CTC head"),
        (["--heads=classifier,ctc"], "a classifier stands alone"),
        (["--heads=transducer"], "lang_label holds labels, and --heads transducer needs texts"),
    ],
)
def test_options_that_a_classifier_cannot_have_are_refused(
    label_data: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_train(label_data, tmp_path / "exp", *options)
