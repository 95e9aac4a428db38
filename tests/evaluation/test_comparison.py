"""Decodes compared on the same utterances, and all experiments of a folder."""

from __future__ import annotations

import json
from pathlib import Path

import kaldialign
import numpy as np
import pytest

from tests.support.records import record
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.evaluation.comparison import (
    changed_words,
    comparison_section,
    curves_section,
)
from xlsr_transducer.evaluation.curves import draw_curves, read_history
from xlsr_transducer.evaluation.experiments import differing, experiments_in, experiments_section
from xlsr_transducer.evaluation.normalizing import Normalizer
from xlsr_transducer.evaluation.section import Section
from xlsr_transducer.evaluation.significance import compare, paired_bootstrap
from xlsr_transducer.recognition.scoring import Transcript, write_results

PLAIN = Normalizer.parse("none")


def two_decodes(gain: float, count: int = 150, seed: int = 5) -> tuple[np.ndarray, ...]:
    """Errors of two decodes that have much in common, and words, of some utterances."""
    draw = np.random.default_rng(seed)
    words = draw.integers(3, 15, count)
    both = draw.binomial(words, 0.1)
    own = [draw.binomial(words, rate) for rate in (0.05, 0.05 - gain)]
    return both + own[0], both + own[1], words


@pytest.mark.parametrize("gain", [0.0, 0.01, 0.03])
def test_interval_and_p_are_those_of_scipy(gain: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    first, second, words = two_decodes(gain)
    found = paired_bootstrap(first, second, words)

    def rate(a: np.ndarray, b: np.ndarray, n: np.ndarray, axis: int = -1) -> np.ndarray:
        return 100 * (b.sum(axis) - a.sum(axis)) / n.sum(axis)

    draw = np.random.default_rng(0)
    theirs = stats.bootstrap((first, second, words), rate, paired=True, n_resamples=9999,
                             method="percentile", vectorized=True, random_state=draw)  # fmt: skip
    interval = theirs.confidence_interval
    assert found.points == pytest.approx(float(rate(first, second, words)))
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.08)
    drawn = theirs.bootstrap_distribution
    assert found.p == pytest.approx(2 * min((drawn <= 0).mean(), (drawn >= 0).mean()), abs=0.03)
    # A test of another kind, which exchanges the decodes of utterances at random: in the limit of
    # many utterances it gives the same p.
    exchange = stats.permutation_test(
        (first, second), lambda a, b, axis: (b - a).sum(axis), permutation_type="samples",
        vectorized=True, n_resamples=9999, random_state=draw)  # fmt: skip
    assert found.p == pytest.approx(exchange.pvalue, abs=0.05)


def test_the_share_of_better_resamples_is_that_of_kaldialign() -> None:
    first, second, words = two_decodes(0.01)
    refs = [["x"] * n for n in words]
    hyps = [
        [["y"] * e + ["x"] * (n - e) for e, n in zip(errors, words)] for errors in (first, second)
    ]
    theirs = kaldialign.bootstrap_wer_ci(refs, *hyps, replications=10_000)
    found = paired_bootstrap(first, second, words)
    assert found.p == pytest.approx(2 * (1 - theirs["p_s2_improv_over_s1"]), abs=0.03)


def test_p_is_small_as_often_as_it_says_where_there_is_no_difference() -> None:
    small = 0
    for seed in range(100):
        draw = np.random.default_rng(seed)
        words = draw.integers(3, 15, 50)
        errors = [draw.binomial(words, 0.1) for _ in range(2)]
        small += paired_bootstrap(*errors, words).p < 0.1
    assert 3 <= small <= 20  # 10 expected


def test_few_utterances_prove_little() -> None:
    def p(count: int) -> float:
        return paired_bootstrap(np.ones(count), np.zeros(count), np.full(count, 5)).p

    assert [p(1), p(2), p(5)] == [1.0, 0.5, 2 / 32] and p(30) < 0.001


def test_equal_decodes_do_not_differ_and_the_same_input_gives_the_same_result() -> None:
    first, second, words = two_decodes(0.02)
    assert paired_bootstrap(first, first, words).p == 1.0
    assert paired_bootstrap(first, second, words) == paired_bootstrap(first, second, words)
    swapped = paired_bootstrap(second, first, words)
    assert swapped.points == -paired_bootstrap(first, second, words).points
    assert compare([record("a", "", "x")], [record("a", "", "")]) is None


def test_words_are_mended_and_broken_one_by_one() -> None:
    first = [record("a", "see on hea ilm", "see hea ilm"), record("b", "tere ema", "tere ema")]
    second = [record("a", "see on hea ilm", "see on hea ilma uus")]
    second += [record("b", "tere ema", "tee ema")]
    mended, broken, where = changed_words(first, second)
    assert mended == {"on": 1} and broken == {"ilm": 1, "tere": 1}
    assert where == {"on": ["a"], "ilm": ["a"], "tere": ["b"]}


def test_only_utterances_with_the_same_reference_are_compared() -> None:
    first = [record("a", "x y", "x"), record("b", "x", "x"), record("c", "x", "x")]
    second = [record("a", "x y", "x y"), record("b", "z", "x")]
    section = comparison_section({"one": first, "two": second}, label="test")
    assert [e["words"] for e in section.data["experiments"]] == [2, 2]
    assert len(section.notes) == 2
    assert section.finding.startswith("two does not differ significantly from one (p = ")
    names = [u.about.split(":")[0] for u in section.utterances[0].utterances]
    assert names == ["one", "two"]


BAD = {
    "one": {"a": [record("a", "x", "x")]},
    "nothing in common": {"a": [record("a", "x", "x")], "b": [record("b", "x", "x")]},
    "no words": {"a": [record("a", "", "x")], "b": [record("a", "", "")]},
    "empty": {"a": [], "b": []},
}


@pytest.mark.parametrize("decodes", BAD.values(), ids=BAD)
def test_what_cannot_be_compared_is_said(decodes: dict) -> None:
    section = comparison_section(decodes)
    assert isinstance(section, Section) and (section.notes or "no WER" in section.finding)


def history(folder: Path, wers: list[float]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    entry = {"train": {"pruned": 1.0}, "valid": {"pruned": 0.5}}
    records = [{"epoch": i + 1, "wer": wer, **entry} for i, wer in enumerate(wers)]
    (folder / "history.json").write_text(json.dumps(records))
    return folder


def test_curves_of_experiments_are_overlaid_and_missing_ones_named(tmp_path: Path) -> None:
    folders = [history(tmp_path / "a", [9.0, 5.0]), history(tmp_path / "b", [8.0]), tmp_path / "c"]
    section = curves_section(folders)
    assert section.data["best_validation_wer"] == {"a": 5.0, "b": 8.0}
    assert len(section.figures) == 1 and "No curves of c" in section.notes[0]
    ctc = [{"epoch": 1, "train": {"ctc": 2.0}, "valid": {"ctc": 1.0}, "wer": 7.0}]
    (tmp_path / "b" / "history.json").write_text(json.dumps(ctc))
    figure = draw_curves({folder.name: read_history(folder) for folder in folders[:2]})
    lines = [axis.get_lines() for axis in figure.axes]
    assert [line.get_label() for line in lines[0]] == ["a: pruned", "b: ctc"]
    assert lines[1][1].get_ydata().tolist() == [1.0] and lines[2][1].get_label() == "b"
    (tmp_path / "b" / "history.json").write_text('[{"epoch": 1}]')
    assert curves_section(folders[1:2]).notes


def experiment(folder: Path, settings: dict, texts: list[str], suffix: str = "greedy") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings))
    transcripts = [Transcript(f"u{i}", ["x"] * 4, text.split()) for i, text in enumerate(texts)]
    write_results(folder / "greedy_search", "test", suffix, transcripts)
    return folder


def test_a_folder_of_experiments_becomes_a_table_best_first(tmp_path: Path) -> None:
    bad = ["x x x y"] * 20
    experiment(tmp_path / "a", {"m": {"lr": 0.1, "dim": 5, "exp_dir": "a"}}, bad)
    experiment(tmp_path / "b", {"m": {"lr": 0.2, "dim": 5, "exp_dir": "b"}}, ["x x x x"] * 20)
    experiment(tmp_path / "c", {"m": {"lr": 0.1, "dim": 5}}, bad[:10] + ["x x x x"] * 10)
    (tmp_path / "other").mkdir()
    found = experiments_in(tmp_path)
    assert [path.name for path in found] == ["a", "b", "c"]
    section = experiments_section(found, "test", PLAIN)
    results, settings = section.tables
    assert [(row[0], row[3]) for row in results.rows] == [("b", 0.0), ("c", 12.5), ("a", 25.0)]
    assert results.rows[0][7] is None and results.rows[1][7] == 2 / 2**10
    assert settings.rows == [["m.lr", "0.1", "0.2", "0.1"]]
    assert experiments_section(found, "val", PLAIN).notes


def test_damaged_results_are_left_out_by_name(tmp_path: Path) -> None:
    experiment(tmp_path / "a", {"x": 1}, ["x x x x"])
    exp = experiment(tmp_path / "b", {"x": 2}, ["x x x x"])
    next(exp.rglob("recogs-*")).write_text("damaged\n")
    (exp / "settings.json").write_text("[]")
    section = experiments_section(experiments_in(tmp_path), "test", PLAIN)
    assert len(section.tables[0].rows) == 1
    assert ["recogs-test-greedy.txt" in section.notes[0], "settings.json" in section.notes[1]] == [
        True,
        True,
    ]
    with pytest.raises(UserError, match="no experiment with results here"):
        experiments_in(tmp_path / "a" / "greedy_search")


def test_settings_that_one_experiment_lacks_differ() -> None:
    assert differing({"a": {"x": 1, "y": 2}, "b": {"y": 2}}) == [["x", "1", ""]]
