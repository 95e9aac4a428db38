"""The experiment on teachers: its rates and intervals, and what it asks for."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from local.demo import distillation
from local.demo.distillation import SETS, difference, rate, records_of
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.evaluation.records import Record
from xlsr_transducer.recognition.scoring import Transcript, write_results


def decode(hyps: list[str]) -> list[Record]:
    refs = ["üks kaks kolm neli"] * len(hyps)
    return [
        Record(f"u{i}", ref, hyp, ref.split(), hyp.split())
        for i, (ref, hyp) in enumerate(zip(refs, hyps))
    ]


RIGHT, ONE_WRONG = "üks kaks kolm neli", "üks kaks kolm viis"


def test_trainings_are_pooled_and_utterances_are_what_is_drawn_again() -> None:
    first, second = decode([RIGHT, ONE_WRONG] * 20), decode([ONE_WRONG] * 40)
    assert rate([first]).startswith("12.50 [") and rate([first, second]).startswith("18.75 [")
    # Twice the same decodes know no more than once.
    assert rate([first]) == rate([first, first])
    low, high = map(float, re.findall(r"[\d.]+", rate([first]))[1:])
    standard_error = 100 * np.sqrt(0.5 * 0.5 / 40) / 4
    assert abs((high - low) / 2 - 1.96 * standard_error) < 0.3 * standard_error
    assert difference([first], [second]).startswith("+12.50 [+")
    assert difference([second, first], [first, first]).startswith("-6.25 [-")
    assert difference([first], [first]) == "+0.00 [+0.00, +0.00], p 1"


def test_decodes_of_several_chunk_sizes_are_told_apart(tmp_path: Path) -> None:
    texts = {"full": RIGHT, "chunk-16-left-2-sink-4": ONE_WRONG, "chunk-160-left-2-sink-4": ""}
    for view, hyp in texts.items():
        for name in SETS:
            transcripts = [Transcript(f"{name}-{i}", RIGHT.split(), hyp.split()) for i in range(3)]
            suffix = f"epoch-1-avg-1-{view}-greedy_search-max-sym-per-frame-1"
            write_results(tmp_path, name, suffix, transcripts)
    for chunk, hyp in ((-1, RIGHT), (16, ONE_WRONG), (160, "")):
        found = records_of(tmp_path, chunk)
        assert len(found) == 6 and {record.hyp for record in found} == {hyp}
    with pytest.raises(UserError, match=f"{tmp_path}: results of 0 decodes with chunk-32"):
        records_of(tmp_path, 32)


def test_it_needs_the_demo(tmp_path: Path) -> None:
    given = [f"--data-dir={tmp_path}", f"--demo-dir={tmp_path}", f"--exp-dir={tmp_path / 'exp'}"]
    with pytest.raises(UserError, match=r"frontend-cumulative: not there; run ./demo.sh first"):
        distillation.main(given)
    assert not (tmp_path / "exp").exists()
