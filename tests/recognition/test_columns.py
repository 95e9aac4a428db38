"""Columns of a corpus, such as the dialect, in result files and tables."""

from __future__ import annotations

import json

from lhotse import MonoCut, Recording, SupervisionSegment

from xlsr_transducer.data.cuts import group_of
from xlsr_transducer.evaluation.groups import groups_section
from xlsr_transducer.evaluation.normalizing import Normalizer
from xlsr_transducer.evaluation.records import find_results
from xlsr_transducer.recognition.facts import facts_of
from xlsr_transducer.recognition.languages import MAX_VALUES, columns_of
from xlsr_transducer.recognition.scoring import (
    Transcript,
    error_rate,
    format_table,
    score,
    write_results,
)

TEXTS = {  # dialect, reference, recognised
    "u1": ("võru", "tere tere", "tere"),
    "u2": ("võru", "head aega", "head aega"),
    "u3": ("mulgi", "jah", "jah"),
    "u4": ("", "ei", ""),
}
TRANSCRIPTS = [Transcript(i, ref.split(), hyp.split()) for i, (_, ref, hyp) in TEXTS.items()]
FACTS = {
    i: {"language": "et", "columns": {"age": "30", **({"dialect": d} if d else {})}}
    for i, (d, _, _) in TEXTS.items()
}


def test_columns_of_a_supervision_are_facts_of_the_utterance_and_may_group_a_training():
    columns = {"dialect": "võru"}
    supervision = SupervisionSegment(
        "u", "r", 0, 1, text="a", custom={"columns": columns, "line": 7, "place": "Tartu"}
    )
    cut = MonoCut("u", 2.5, 1, 1, [supervision], recording=Recording("r", [], 16000, 64000, 4))
    facts = facts_of(cut)
    assert facts["columns"] == columns and facts["custom"] == {"line": 7, "place": "Tartu"}
    assert facts["start"] == 2.5
    assert [group_of(supervision, name) for name in ("dialect", "place", "other")] == [
        "võru", "Tartu", "",
    ]  # fmt: skip


def test_results_have_the_rates_of_each_value_of_a_column(tmp_path):
    result = write_results(tmp_path, "t", "s", TRANSCRIPTS, unread={"u4": "gone"}, facts=FACTS)
    found = result.columns["dialect"]
    alone = error_rate([(t.ref, t.hyp) for t in TRANSCRIPTS[:2]])
    assert list(found) == ["(unknown)", "mulgi", "võru"] and found["võru"].wer == alone
    assert found["(unknown)"].num_unread == 1
    summary = (tmp_path / "wer-summary-t-s.txt").read_text().split("\n\n")
    assert summary[1].splitlines() == [
        "dialect\tWER\tCER", "(unknown)\t100.00\t100.00", "mulgi\t0.00\t0.00",
        "võru\t25.00\t27.78", "worst\t25.00\t27.78", "mean\t12.50\t13.89", "gap\t25.00\t27.78",
    ]  # fmt: skip
    assert "BY DIALECT: rates" in (tmp_path / "errs-t-s.txt").read_text()
    table = format_table([result]).split("\n\n")[1].splitlines()
    assert table[0].split()[:2] == ["set", "dialect"]
    assert table[-3].split() == ["t", "worst", "25.00", "võru", "27.78", "võru"]
    lines = (tmp_path / "utterances-t-s.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["columns"] == {"age": "30", "dialect": "võru"}


def test_columns_of_numbers_or_of_many_values_have_no_table():
    def facts(*values: str) -> dict:
        return {str(i): {"columns": {"x": value}} for i, value in enumerate(values)}

    assert "x" in columns_of(facts("1", "2", "three"))
    assert "x" not in columns_of(facts("1", "2.5"))
    assert "x" in columns_of(facts(*(f"v{i}" for i in range(MAX_VALUES))))
    assert "x" not in columns_of(facts(*(f"v{i}" for i in range(MAX_VALUES + 1))))


def test_sets_of_one_value_each_are_compared_and_others_have_no_table(tmp_path):
    facts = {i: {"columns": {"domain": i}} for i in TEXTS}
    some = [
        write_results(tmp_path, f"test_{t.id}", "s", [t], facts={t.id: facts[t.id]})
        for t in TRANSCRIPTS[:2]
    ]
    table = format_table([*some, score("plain", "s", TRANSCRIPTS)]).split("\n\n")[1]
    assert [line.split()[:2] for line in table.splitlines()[2:4]] == [
        ["test_u1+test_u2", "u1"], ["test_u1+test_u2", "u2"],
    ]  # fmt: skip


def test_the_report_groups_by_a_column(tmp_path):
    write_results(tmp_path, "t", "s", TRANSCRIPTS, facts=FACTS)
    [results] = find_results(tmp_path)
    records = results.read(Normalizer.parse("none"))
    groups = groups_section(records, by=["dialect"]).data["dialect"]
    assert [(g["group"], g["utterances"]) for g in groups] == [("võru", 2), ("mulgi", 1)]
