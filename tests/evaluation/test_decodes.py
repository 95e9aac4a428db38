"""The report's sections of errors and comparisons, from the command's own result files."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("jinja2")
pytest.importorskip("starlette")  # which the support of servers needs
pytest.importorskip("transformers", minversion="4.45")

from local import baseline
from tests.support.live_server import write_checkpoint
from tests.support.noise_sets import write_set
from tests.support.tiny_hugging_face import write_ctc
from xlsr_transducer import evaluate
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.evaluation.normalizing import Normalizer
from xlsr_transducer.evaluation.records import find_results, word_errors

TEXTS = ["tere kom lo", "ai mona", "to", "Kele nimi, tasi mola", "ka"]
SECONDS = [2.1, 1.3, 0.9, 3.0, 1.7]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set whose utterances have speakers and a custom field."""
    data = tmp_path_factory.mktemp("sets")
    manifest = write_set(data, "one", TEXTS, SECONDS)
    cuts = [json.loads(line) for line in gzip.decompress(manifest.read_bytes()).splitlines()]
    for number, cut in enumerate(cuts):
        cut["supervisions"][0].update(
            speaker=f"s{number % 2}", custom={"dialect": "ab"[number > 2]}
        )
    manifest.write_bytes(gzip.compress("".join(json.dumps(c) + "\n" for c in cuts).encode()))
    return data


@pytest.fixture(scope="module")
def exp(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("all") / "exp"
    folder.mkdir()
    write_checkpoint(folder)
    (folder / "settings.json").write_text("{}")
    (folder / "history.json").write_text(
        '[{"epoch": 1, "train": {"pruned": 1}, "valid": {"pruned": 1}, "wer": 9.5}]'
    )
    return folder


def run(exp: Path, data: Path, *more: str) -> dict:
    given = [f"--exp-dir={exp}", f"--checkpoint={exp / 'pretrained.pt'}", f"--data-dir={data}"]
    given += ["--grid=16/2/4", "--attention=0", "--cpu-layers=pytorch"]
    assert evaluate.main([*given, *more]) == 0
    return json.loads((exp / "report" / "report.json").read_text())["sections"]


def test_a_report_tells_errors_groups_and_comparisons(
    exp: Path, data: Path, tmp_path: Path
) -> None:
    model = write_ctc(tmp_path / "letters")
    out = tmp_path / "baseline"
    baseline.main([f"--model={model}", f"--data-dir={data}", f"--out={out}"])
    found = run(exp, data, f"--baseline={out}", f"--baseline={model}", "--by=dialect",
                f"--experiments={exp.parent}", "--score-normalize=basic")  # fmt: skip
    records = [
        f.read(Normalizer.parse("basic"))
        for f in find_results(exp / "report" / "results")
        if "chunk-16-left-2-sink-4" in f.suffix
    ]
    assert len(records) == 1
    rate = word_errors(records[0])
    errors = found["errors-one"]
    assert (errors["errors"], errors["words"]) == (rate.errors, rate.num_ref)
    assert errors["normalized_by"] == "Whisper's basic normalisation"
    groups = found["groups-one"]
    assert {g["group"] for g in groups["speaker"]} == {"s0", "s1"}
    assert {g["group"]: g["utterances"] for g in groups["dialect"]} == {"a": 3, "b": 2}
    assert sum(g["words"] for g in groups["level"]) == rate.num_ref
    compared = found["comparison-one"]["experiments"]
    assert [e["name"] for e in compared] == ["exp", "baseline", "letters"]
    assert compared[1]["errors"] == compared[2]["errors"]
    assert compared[0]["errors"] == rate.errors
    assert found["training"]["best_validation_wer"] == {"exp": 9.5}
    assert len(found["experiments-one"]["decodes"]) >= 3
    # Without the utterances of which normalisation took out words, such as unknown ones.
    counted = [r for r in records[0] if len(r.spans) == len(r.hyp_words)]
    assert counted and found["calibration-one"]["words"] == sum(len(r.spans) for r in counted)
    page = (exp / "report" / "index.html").read_text()
    assert page.count("<audio") >= 5 and "data:audio/" in page


def test_the_second_run_reads_the_baseline_that_the_first_has_decoded(
    exp: Path, data: Path, tmp_path: Path
) -> None:
    model = write_ctc(tmp_path / "gone")
    first = run(exp, data, f"--baseline={model}")["comparison-one"]
    shutil.rmtree(model)
    assert run(exp, data, f"--baseline={model}")["comparison-one"] == first


def test_a_baseline_without_this_set_is_refused_by_name(
    exp: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "baseline.json").write_text("{}")
    with pytest.raises(UserError, match="empty: no results of one"):
        run(exp, data, f"--baseline={tmp_path / 'empty'}")
