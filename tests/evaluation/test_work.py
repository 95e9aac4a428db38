"""A process of an evaluation that dies ends it with what to do, and not with a wait."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from lhotse import CutSet

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.evaluation import work
from xlsr_transducer.evaluation.parts import Part
from xlsr_transducer.model.checkpoint import CheckpointOptions
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.recognition.audio_sets import AudioSet
from xlsr_transducer.search import SearchOptions


def die(part: Part, given: work.Work) -> None:
    os._exit(9)


@pytest.mark.slow
def test_a_process_that_is_ended_from_outside_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_decode", die)
    nothing = AudioSet("none", CutSet.from_cuts([]))
    parts = [Part(nothing, tmp_path / name) for name in "ab"]
    settings = (ChunkSettings(16, 2, 4),)
    given = work.Work(CheckpointOptions(), SearchOptions(), "pytorch", settings, settings[0])
    with pytest.raises(UserError, match="ended from outside.*fewer --jobs"):
        work.decode_parts(parts, given, 2)
    assert not list(tmp_path.iterdir())
