"""The report's numbers are those of the commands that decode, however it was interrupted."""

from __future__ import annotations

import ast
import csv
import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("jinja2")
pytest.importorskip("starlette")  # which the support of servers needs

from tests.support.decodes import tokens
from tests.support.live_server import write_checkpoint
from tests.support.noise_sets import write_set
from tests.support.random_models import write_random_model
from xlsr_transducer import decode, evaluate
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.evaluation import experiment as experiments
from xlsr_transducer.evaluation.parts import part_of, parts_of
from xlsr_transducer.recognition.audio_sets import audio_sets
from xlsr_transducer.recognition.grid import Grid

TEXTS = ["tere kom lo", "ai mona", "to", "kele nimi tasi mola", "ka"]
SECONDS = [2.1, 1.3, 0.9, 3.0, 1.7]
GRID = "--grid=8,16/1/0,4"
NUM_SETTINGS = 6  # with full context and the model's own
TIMED = {"step_s", "step_share"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("sets")
    write_set(data, "one", TEXTS, SECONDS)
    write_set(data, "two", TEXTS[:2], SECONDS[:2])
    return data


def make_exp(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder)
    return folder


def run(exp: Path, data: Path, *more: str) -> int:
    given = [f"--exp-dir={exp}", f"--checkpoint={exp / 'pretrained.pt'}", f"--data-dir={data}"]
    return evaluate.main([*given, GRID, "--attention=0", "--cpu-layers=pytorch", *more])


@pytest.fixture(scope="module")
def exp(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment with a report."""
    exp = make_exp(tmp_path_factory.mktemp("exp"))
    assert run(exp, data, "--verify=2", "--attention=2") == 0
    return exp


def rows(exp: Path) -> list[dict[str, str]]:
    """Returns the settings of the report without what the clock told."""
    with open(exp / "report" / "report.csv", newline="") as f:
        return [{k: v for k, v in row.items() if k not in TIMED} for row in csv.DictReader(f)]


def word_errors(ref: list[str], hyp: list[str]) -> int:
    """Levenshtein's distance, by another hand than kaldialign's."""
    before = list(range(len(hyp) + 1))
    for i, word in enumerate(ref, 1):
        row = [i]
        for j, other in enumerate(hyp, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (word != other)))
        before = row
    return before[-1]


def recomputed(folder: Path, setting: str, method: str = "greedy") -> float:
    """Returns the WER of all sets from the files that name the recognised words."""
    errors = words = 0
    for path in folder.glob(f"recogs-*-pretrained-{setting}-{method}*.txt"):
        lines = path.read_text().splitlines()
        for ref, hyp in zip(lines[::2], lines[1::2]):
            ref, hyp = (ast.literal_eval(line.split("=", 1)[1]) for line in (ref, hyp))
            errors, words = errors + word_errors(ref, hyp), words + len(ref)
    return 100 * errors / words


def name_of(row: dict[str, str]) -> str:
    chunk, left, sinks = (row[k] for k in ("chunk_size", "left_context_chunks",
                                           "attention_sink_size"))  # fmt: skip
    return "full" if chunk == "-1" else f"chunk-{chunk}-left-{left}-sink-{sinks}"


def test_another_scorer_finds_the_same_rates_in_the_result_files(exp: Path) -> None:
    found = rows(exp)
    assert len(found) == NUM_SETTINGS
    for row in found:
        expected = recomputed(exp / "report" / "results", name_of(row))
        assert float(row["wer"]) == pytest.approx(expected, abs=1e-9)
        assert float(row["wer_low"]) <= expected <= float(row["wer_high"])
    assert len({row["wer"] for row in found}) > 1


def test_every_setting_recognises_what_decode_does(exp: Path, data: Path) -> None:
    for chunk, left, sinks in ((8, 1, 4), (16, 2, 4)):
        given = [f"--exp-dir={exp}", f"--checkpoint={exp / 'pretrained.pt'}"]
        given += [f"--data-dir={data}", f"--decode-chunk-len={chunk}", "--num-workers=0"]
        given += [f"--left-context-chunks={left}", f"--attention-sink-size={sinks}"]
        decode.main([*given, "--split=one", "--cpu-layers=pytorch"])
        name = f"one-pretrained-chunk-{chunk}-left-{left}-sink-{sinks}"
        expected = tokens(exp / "greedy_search", name)
        assert tokens(exp / "report" / "results", name) == expected
        assert any(found for found, _ in expected.values())


def test_utterances_that_were_streamed_too_are_counted(exp: Path) -> None:
    streamed = [row for row in rows(exp) if row["chunk_size"] != "-1"]
    assert all((row["streamed"], row["differing"]) == ("4", "0") for row in streamed)
    assert "the same tokens at the same times" in (exp / "report" / "index.html").read_text()


def test_a_difference_between_streaming_and_simulation_fails_the_command(
    exp: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(exp, tmp_path / exp.name)
    real = experiments.EvaluatedSet.differing
    monkeypatch.setattr(
        experiments.EvaluatedSet, "differing", lambda one, chunk: real(one, chunk) or ["one-0"]
    )
    assert run(copy, data, "--verify=2") == 2
    assert "some differ" in (copy / "report" / "index.html").read_text()


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The settings that were computed, one name a batch."""
    names, real = [], Grid.simulate

    def simulate(grid, front, chunk):
        names.append(chunk.describe())
        return real(grid, front, chunk)

    monkeypatch.setattr(Grid, "simulate", simulate)
    return names


def test_what_is_done_is_not_done_again(exp: Path, data: Path, simulated: list[str]) -> None:
    expected = rows(exp)
    [lost] = [
        p for p in (exp / "report" / "parts").glob("*/full.json") if "one-4" in p.read_text()
    ]
    lost.unlink()
    assert run(exp, data, "--verify=2") == 0
    assert simulated == ["full"]
    assert rows(exp) == expected


def test_an_interrupted_evaluation_goes_on_and_ends_like_one_that_was_not(
    exp: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, simulated: list[str]
) -> None:
    other, counted = make_exp(tmp_path / exp.name), Grid.simulate

    def interrupted(grid, front, chunk):
        if len(simulated) == 4:
            raise KeyboardInterrupt
        return counted(grid, front, chunk)

    monkeypatch.setattr(Grid, "simulate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(other, data, "--verify=2")
    assert not (other / "report" / "index.html").exists()
    monkeypatch.setattr(Grid, "simulate", counted)
    assert run(other, data, "--verify=2") == 0
    assert len(simulated) == 2 * NUM_SETTINGS  # each setting of each set, once
    assert rows(other) == rows(exp)


@pytest.mark.long
def test_processes_find_what_one_process_finds(
    exp: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiments, "parts_of", functools.partial(parts_of, seconds=2.0))
    other = make_exp(tmp_path / exp.name)
    assert run(other, data, "--verify=2", "--jobs=2") == 0
    assert len(list((other / "report" / "parts").glob("*/utterances.json"))) == 6
    assert rows(other) == rows(exp)


def test_results_of_other_weights_searches_or_audio_are_not_taken(data: Path) -> None:
    [audio] = audio_sets(data, "one")
    cuts = list(audio.cuts)
    first = part_of(audio, cuts, Path("parts"), {"model": "a"}).folder
    assert part_of(audio, cuts, Path("parts"), {"model": "a"}).folder == first
    assert part_of(audio, cuts, Path("parts"), {"model": "b"}).folder != first
    assert part_of(audio, cuts[:-1], Path("parts"), {"model": "a"}).folder != first
    wav = Path(cuts[0].recording.sources[0].source)
    content = wav.read_bytes()
    wav.write_bytes(content + b"\0")
    assert part_of(audio, cuts, Path("parts"), {"model": "a"}).folder != first
    wav.write_bytes(content)


def test_flawed_data_is_told_in_the_report(tmp_path: Path) -> None:
    data, exp = tmp_path / "data", make_exp(tmp_path / "exp")
    write_set(data, "bad", ["", "to la", "ka", "mo ti"], [1.0, 1.2, 0.01, 1.1])
    (data / "wav" / "bad-3.wav").write_bytes(b"no audio")
    assert run(exp, data, "--attention=2") == 2
    notes = json.loads((exp / "report" / "report.json").read_text())["sections"]
    assert any("1 of 4 utterances cannot be read" in note and "bad-3" in note
               for note in notes["summary"]["notes"])  # fmt: skip
    assert any("could not be aligned" in note for note in notes["latency"]["notes"])
    assert rows(exp)[0]["words"] == "5"


@pytest.mark.parametrize("texts, seconds", [([""], [1.0]), (["to"], [0.1])])
def test_one_utterance_makes_a_report(
    texts: list[str], seconds: list[float], tmp_path: Path
) -> None:
    data, exp = tmp_path / "data", make_exp(tmp_path / "exp")
    write_set(data, "one", texts, seconds)
    assert run(exp, data, "--attention=2") == 0
    page = (exp / "report" / "index.html").read_text()
    assert " nan" not in page and "inf " not in page
    words = sum(len(text.split()) for text in texts)
    assert ("there is no word error rate" in page) == (words == 0)


@pytest.mark.parametrize(
    "option, message",
    [
        ("--grid=16/1", "three lists"),
        ("--grid=17/1/0", "multiple"),
        ("--grid=-1/1/0", "cannot stream"),
        ("--grid=16/-1/4,x", "whole number"),
        ("--budgets=0", "above 0"),
        ("--show=nobody", "no utterance of the sets has this id"),
        ("--split=nothing", "nothing"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    option: str, message: str, exp: Path, data: Path
) -> None:
    with pytest.raises(UserError, match=message):
        run(exp, data, "--attention=2", option)


def test_a_model_trained_in_full_context_is_evaluated_in_it_alone(
    exp: Path, data: Path, tmp_path: Path
) -> None:
    from xlsr_transducer.core.tensor_files import save_atomically
    from xlsr_transducer.model.checkpoint import read_checkpoint

    content = read_checkpoint(exp / "pretrained.pt")
    content["config"]["streaming"] = dict.fromkeys(content["config"]["streaming"], "")
    content["config"]["streaming"]["streaming"] = False
    tmp_path.joinpath("full").mkdir()
    save_atomically(content, tmp_path / "full" / "pretrained.pt")
    assert run(tmp_path / "full", data, "--verify=2") == 0
    found = rows(tmp_path / "full")
    assert [row["chunk_size"] for row in found] == ["-1"]
    assert found[0]["wer"] == rows(exp)[0]["wer"]
    assert "not trained for streaming" in (tmp_path / "full/report/index.html").read_text()


@pytest.mark.long
def test_a_model_with_ctc_alone_has_a_report_in_frames_of_20_ms(
    data: Path, tmp_path: Path
) -> None:
    exp = tmp_path / "ctc"
    exp.mkdir()
    write_random_model(exp / "pretrained.pt", ("ctc",), adapter="none")
    assert run(exp, data, "--verify=2", "--attention=1") == 0
    found = rows(exp)
    assert len(found) == NUM_SETTINGS and len({row["wer"] for row in found}) > 1
    for row in found:
        assert float(row["wer"]) == pytest.approx(
            recomputed(exp / "report" / "results", name_of(row), "ctc_greedy_search"), abs=1e-9
        )
    streamed = [row for row in found if row["chunk_size"] != "-1"]
    assert all((row["streamed"], row["differing"]) == ("4", "0") for row in streamed)
    # Words are aligned by CTC, and their delays told.
    assert int(streamed[0]["timed_words"]) > 0
    given = [f"--exp-dir={exp}", f"--checkpoint={exp / 'pretrained.pt'}", f"--data-dir={data}"]
    decode.main([*given, "--split=one", "--cpu-layers=pytorch", "--num-workers=0"])
    name = "one-pretrained-chunk-16-left-2-sink-4"
    expected = tokens(exp / "ctc_greedy_search", name)
    assert tokens(exp / "report" / "results", name) == expected
    assert any(frame % 2 for _, frames in expected.values() for frame in frames)


def test_two_experiments_stand_side_by_side(exp: Path, data: Path, tmp_path: Path) -> None:
    for name in "ab":
        folder = make_exp(tmp_path / name / "same")
        (folder / "pretrained.pt").rename(folder / "best-valid-wer.pt")
    given = [f"--exp-dir={tmp_path / name / 'same'}" for name in "ab"]
    given += [f"--data-dir={data}", "--grid=16/2/4", "--attention=0", "--cpu-layers=pytorch"]
    assert evaluate.main(given) == 0
    names = [row["experiment"] for row in rows(tmp_path / "a" / "same")]
    assert names == [str(tmp_path / name / "same") for name in "aabb"]
    page = (tmp_path / "a" / "same" / "report" / "index.html").read_text()
    assert all(f"Settings of {name}" in page for name in names)


def test_the_weights_of_the_grid_are_those_of_the_model(exp: Path) -> None:
    """A digest that did not depend on every weight would take results of another model."""
    from xlsr_transducer.evaluation.parts import model_digest
    from xlsr_transducer.model.checkpoint import CheckpointOptions, load_model

    loaded = load_model(CheckpointOptions(checkpoint=exp / "pretrained.pt"))
    before = model_digest(loaded)
    assert model_digest(loaded) == before
    with torch.no_grad():
        loaded.model.joiner.output_linear.bias[-1] += 1e-3
    assert model_digest(loaded) != before
