"""Error rates, their intervals, and icefall's result files."""

from __future__ import annotations

import ast
import json
import random

import numpy as np
import pytest

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.recognition.scoring import (
    Transcript,
    error_rate,
    format_table,
    score,
    write_results,
)
from xlsr_transducer.search import Hypothesis

EXAMPLE = [
    Transcript("b-2", "see on hea ilm".split(), "see hea ilma juba".split()),
    Transcript("a-1", "tere".split(), "tere".split()),
    Transcript("c-3", [], ["õhk"]),
]


def edit_distance(ref, hyp) -> int:
    """Plain dynamic programming, to check against."""
    row = list(range(len(hyp) + 1))
    for i, r in enumerate(ref, 1):
        last, row[0] = row[0], i
        for j, h in enumerate(hyp, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (r != h))
    return row[-1]


def test_a_second_rate_stands_without_case_and_punctuation_where_texts_have_them(tmp_path):
    cased = [
        Transcript("a", "Tere, Mari!".split(), "tere Mari.".split()),
        Transcript("b", "Kuidas läheb?".split(), "Kuidas läks?".split()),
    ]
    result = write_results(tmp_path, "test", "greedy", cased)
    assert (result.wer.percent, result.plain_wer.percent) == (75.0, 25.0)
    summary = (tmp_path / "wer-summary-test-greedy.txt").read_text().splitlines()
    assert summary[1] == "greedy\t75.00\t0"
    assert summary[-2:] == ["without case and punctuation\tWER", "greedy\t25.00"]
    errs = (tmp_path / "errs-test-greedy.txt").read_text()
    assert "\n%WER without case and punctuation = 25.00 [" in errs
    lower = score("other", "greedy", EXAMPLE)
    assert lower.plain_wer is None
    heading, _, *rows = format_table([result, lower]).splitlines()
    assert heading.endswith("WER % without case and punctuation")
    assert [row.split("  ")[-1].strip() for row in rows] == [str(result.plain_wer), str(lower.wer)]
    assert "without" not in format_table([lower])


def test_counts_equal_a_plain_edit_distance():
    draw = random.Random(1)
    pairs = []
    for _ in range(200):
        sizes = draw.randint(0, 7), draw.randint(0, 7)
        pairs.append(tuple([draw.choice("abcd") for _ in range(n)] for n in sizes))
    rate = error_rate(pairs)
    assert rate.errors == sum(edit_distance(r, h) for r, h in pairs)
    assert rate.num_ref == sum(len(r) for r, _ in pairs)
    assert rate.percent == pytest.approx(100 * rate.errors / rate.num_ref)
    assert rate.insertions - rate.deletions == sum(len(h) - len(r) for r, h in pairs)


def test_the_interval_covers_the_true_rate_about_as_often_as_it_says():
    draw = random.Random(2)
    hits = 0
    for _ in range(60):
        pairs = []
        for _ in range(80):
            pairs.append((["x"] * 10, ["y" if draw.random() < 0.2 else "x" for _ in range(10)]))
        rate = error_rate(pairs)
        hits += rate.low <= 20 <= rate.high
    assert 50 <= hits <= 60


def test_the_interval_is_reproducible_and_holds_the_rate():
    pairs = [(list("abcd"), list("abce"[: i % 5])) for i in range(30)]
    assert error_rate(pairs) == error_rate(pairs)
    rate = error_rate(pairs)
    assert rate.low < rate.percent < rate.high


def test_the_interval_is_that_of_sets_drawn_with_replacement():
    draw = np.random.default_rng(3)
    sizes, errors = draw.integers(3, 12, 50), draw.integers(0, 4, 50)
    pairs = [(["x"] * n, ["y"] * k + ["x"] * (n - k)) for n, k in zip(sizes, errors)]
    rows = draw.integers(0, 50, (20000, 50))
    rates = 100 * errors[rows].sum(1) / sizes[rows].sum(1)
    rate = error_rate(pairs)
    assert rate.high - rate.percent == pytest.approx(1.96 * rates.std(), rel=0.1)
    assert rate.high - rate.percent == pytest.approx(rate.percent - rate.low)


def test_empty_references_and_empty_sets_are_scored():
    nothing = score("t", "s", [])
    assert (nothing.wer.percent, nothing.wer.low, nothing.wer.high) == (0, 0, 0)
    silent = score("t", "s", [Transcript("a", [], [])])
    assert silent.wer.percent == 0
    chatter = score("t", "s", [Transcript("a", [], ["x"])])
    assert chatter.wer.percent == float("inf") == chatter.wer.high
    one = score("t", "s", [Transcript("a", [], ["x"]), EXAMPLE[1]])
    assert (one.wer.percent, one.wer.low, one.wer.high) == (100, 0, float("inf"))
    mixed = score("t", "s", EXAMPLE)
    assert (mixed.wer.insertions, mixed.wer.deletions, mixed.wer.substitutions) == (2, 1, 1)
    assert mixed.wer.percent == pytest.approx(80)


def test_characters_count_one_space_between_words():
    rate = score("t", "s", [Transcript("a", ["ab", "c"], ["abc"])]).cer
    assert (rate.deletions, rate.errors, rate.num_ref) == (1, 1, 4)


def test_recogs_are_icefalls_lines_sorted_by_id(tmp_path):
    write_results(tmp_path, "test", "greedy", EXAMPLE)
    lines = (tmp_path / "recogs-test-greedy.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "a-1:\tref=['tere']"
    assert lines[1] == "a-1:\thyp=['tere']"
    assert lines[4] == "c-3:\tref=[]"
    assert ast.literal_eval(lines[5].split("hyp=")[1]) == ["õhk"]


def test_errs_show_alignments_confusions_and_counts_per_word(tmp_path):
    write_results(tmp_path, "test", "greedy", EXAMPLE)
    text = (tmp_path / "errs-test-greedy.txt").read_text(encoding="utf-8")
    assert text.startswith("%WER = 80.00\nErrors: 2 insertions, 1 deletions, 1 substitutions, ")
    assert "over 5 reference words (3 correct)" in text
    assert "b-2:\tsee (on->*) hea (ilm->ilma juba)\n" in text
    assert "c-3:\t(*->õhk)\n" in text
    sections = text.split("\n\n")
    assert sections[2].splitlines() == ["SUBSTITUTIONS: count ref -> hyp", "1   ilm -> ilma"]
    assert sections[3].splitlines() == ["DELETIONS: count ref", "1   on"]
    assert sections[4].splitlines()[1:] == ["1   juba", "1   õhk"]
    stats = dict(line.split("   ") for line in sections[5].splitlines()[1:])
    assert stats["ilm"] == "0 1 1 0" and stats["ilma"] == "0 1 0 1" and stats["see"] == "1 0 1 1"


def test_the_summary_names_the_settings(tmp_path):
    write_results(tmp_path, "test", "beam-4", EXAMPLE)
    text = (tmp_path / "wer-summary-test-beam-4.txt").read_text()
    assert text == "settings\tWER\tunread\nbeam-4\t80.00\t0\n"


def test_a_star_in_the_text_is_a_word_like_any_other(tmp_path):
    result = write_results(tmp_path, "t", "s", [Transcript("a", ["*", "b"], ["*"])])
    assert (result.wer.deletions, result.wer.errors) == (1, 1)
    text = (tmp_path / "errs-t-s.txt").read_text()
    assert "a:\t* (b->*)\n" in text and "over 2 reference words (1 correct)" in text


def test_tokens_carry_ids_frames_and_log_probs(tmp_path):
    emitted = {t.id: Hypothesis([5, 6], [0, 9], -1.0, [-0.25, -0.5]) for t in EXAMPLE}
    write_results(tmp_path, "test", "s", EXAMPLE, emitted)
    lines = (tmp_path / "tokens-test-s.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(lines[0])
    expected = {"set": "test", "id": "a-1", "text": "tere", "tokens": [5, 6], "frames": [0, 9]}
    assert first == {**expected, "log_probs": [-0.25, -0.5]}
    assert len(lines) == 3
    assert not list(tmp_path.glob(".*")), "temporary files remain"


def test_two_utterances_of_one_id_and_missing_hypotheses_are_refused(tmp_path):
    with pytest.raises(UserError, match="a-1 occurs 2 times"):
        write_results(tmp_path, "t", "s", [EXAMPLE[1], EXAMPLE[1]])
    with pytest.raises(UserError, match="no hypothesis for utterance a-1"):
        write_results(tmp_path, "t", "s", [EXAMPLE[1]], {})


def test_the_table_has_a_line_per_score_and_the_number_of_words():
    table = format_table([score("test", "greedy", EXAMPLE), score("val", "beam", EXAMPLE[1:2])])
    lines = table.splitlines()
    assert len(lines) == 4 and lines[2].startswith("test  greedy") and "80.00 [" in lines[2]
    assert lines[2].split()[-4:] == ["5", "2/1/1", "3", "0"]
