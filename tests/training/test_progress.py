"""What a checkpoint notes of the options that decide an epoch's batches."""

from __future__ import annotations

import logging

import pytest

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.datamodule import Part
from xlsr_transducer.training.state import Progress

OPTIONS = {"seed": 1, "max_duration": 9.0, "manifests": {"train": "abc"}}


def test_parts_of_an_epoch_are_those_planned_with_other_options() -> None:
    progress = Progress()
    assert progress.use_batch_options(OPTIONS) == []
    progress.batches = 5
    assert progress.use_batch_options(OPTIONS) == []
    other = {**OPTIONS, "max_duration": 4.0}
    assert progress.use_batch_options(other) == [Part(OPTIONS, 5)]
    progress.batches = 8
    assert progress.use_batch_options(OPTIONS) == [Part(OPTIONS, 5), Part(other, 3)]
    progress.epoch, progress.batches = 2, 0
    assert progress.use_batch_options(other) == []
    assert progress.parts == [{"options": other, "first": 0}]


def test_a_changed_manifest_is_refused_within_an_epoch_and_logged_between_two(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    progress = Progress()
    progress.use_batch_options(OPTIONS)
    for now in ({"train": "def"}, {"train": "abc", "more": "abc"}, {"more": "abc"}):
        progress.batches = 5
        with pytest.raises(UserError, match="cuts_.*has changed since the first 5 batches of epo"):
            progress.use_batch_options({**OPTIONS, "manifests": now})
        assert progress.parts == [{"options": OPTIONS, "first": 0}]
    progress.epoch, progress.batches = 2, 0
    changed = {**OPTIONS, "manifests": {"train": "def"}}
    assert progress.use_batch_options(changed) == []
    assert "epoch 2 has other data than the one before: cuts_train" in caplog.text
    assert progress.parts == [{"options": changed, "first": 0}]


def test_an_epoch_that_an_older_version_began_is_refused() -> None:
    progress = Progress(batches=3, parts=[{"options": {"seed": 1}, "first": 0}])
    with pytest.raises(UserError, match="cuts_train"):
        progress.use_batch_options(OPTIONS)


def test_a_checkpoint_that_lacks_a_newer_option_goes_on_with_other_batches(caplog):
    progress = Progress()
    progress.use_batch_options(OPTIONS)
    progress.batches = 4
    newer = {**OPTIONS, "pause_prob": 0.0}
    with caplog.at_level("INFO"):
        assert progress.use_batch_options(newer) == [Part(OPTIONS, 4)]
    assert "pause_prob None and 0.0" in caplog.text
