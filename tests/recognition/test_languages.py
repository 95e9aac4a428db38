"""Error rates by language, in tables and result files."""

from __future__ import annotations

import json

import pytest

from xlsr_transducer.evaluation.groups import groups_section
from xlsr_transducer.evaluation.normalizing import Normalizer
from xlsr_transducer.evaluation.records import find_results
from xlsr_transducer.recognition.languages import UNKNOWN, Spread, value_table
from xlsr_transducer.recognition.scoring import (
    Transcript,
    error_rate,
    format_table,
    score,
    write_results,
)

TEXTS = {  # reference, recognised
    "et1": ("tere tere maailm", "tere maailm"),
    "et2": ("head aega", "head aega"),
    "lv1": ("labdien visiem", "lab dien visiem"),
    "lv2": ("jā", ""),
    "fi1": ("moi", "moi"),
}
TRANSCRIPTS = [Transcript(i, ref.split(), hyp.split()) for i, (ref, hyp) in TEXTS.items()]
FACTS = {i: {"language": i[:2], "speaker": ""} for i in TEXTS}


def test_a_spread_is_worst_mean_and_gap_whatever_the_order():
    for rates in ({"b": 30.0, "a": 10.0, "c": 20.0}, {"c": 20.0, "a": 10.0, "b": 30.0}):
        assert Spread.of(rates) == Spread("b", 30.0, 20.0, 20.0)
    assert Spread.of({"b": 5.0, "a": 5.0}) == Spread("a", 5.0, 5.0, 0.0)
    lost = Spread.of({"b": float("inf"), "a": 5.0})
    assert (lost.worst, lost.gap) == ("b", float("inf"))
    assert Spread.of(dict.fromkeys("ab", float("inf"))).gap == 0


def test_result_files_have_the_rates_of_each_language_the_worst_the_mean_and_the_gap(tmp_path):
    result = write_results(tmp_path, "t", "s", TRANSCRIPTS, unread={"lv2": "gone"}, facts=FACTS)
    alone = {
        name: error_rate([(t.ref, t.hyp) for t in TRANSCRIPTS if t.id.startswith(name)])
        for name in ("et", "fi", "lv")
    }
    assert {name: one.wer for name, one in result.languages.items()} == alone
    assert {name: one.num_unread for name, one in result.languages.items()} == {
        "et": 0, "fi": 0, "lv": 1,
    }  # fmt: skip
    # Words: et 1 of 5, fi 0 of 1, lv 3 of 3. Characters: et 5 of 25, lv 1 + 2 of 16.
    summary = (tmp_path / "wer-summary-t-s.txt").read_text().splitlines()
    assert summary[:2] == ["settings\tWER\tunread", f"s\t{result.wer.percent:.2f}\t1"]
    assert summary[2:4] == ["", "language\tWER\tCER"]
    assert summary[4:7] == ["et\t20.00\t20.00", "fi\t0.00\t0.00", "lv\t100.00\t18.75"]
    assert summary[7:] == ["worst\t100.00\t20.00", "mean\t40.00\t12.92", "gap\t100.00\t20.00"]
    errs = (tmp_path / "errs-t-s.txt").read_text()
    part = errs.split("BY LANGUAGE: ")[1].split("\n\n")[0]
    assert "lv        100.00 [" in part and "worst     100.00 lv" in part
    first = json.loads((tmp_path / "utterances-t-s.jsonl").read_text().splitlines()[0])
    assert (first["id"], first["language"]) == ("et1", "et")


def test_one_language_has_no_table_and_utterances_without_one_do_not_spoil_it(tmp_path):
    facts = {i: FACTS[i] for i in ("et1", "et2")}
    result = write_results(tmp_path, "t", "s", TRANSCRIPTS[:3], facts=facts)
    assert list(result.languages) == [UNKNOWN, "et"]
    assert "language" not in (tmp_path / "wer-summary-t-s.txt").read_text()
    assert "language" not in format_table([result, score("u", "s", TRANSCRIPTS)])
    facts["fi1"] = FACTS["fi1"]
    result = write_results(tmp_path, "t", "s", TRANSCRIPTS, facts=facts)
    lines = value_table([result]).splitlines()
    assert [line.split()[1] for line in lines[2:]] == [
        UNKNOWN, "et", "fi", "worst", "mean", "gap",
    ]  # fmt: skip
    assert lines[5].split()[2:] == ["20.00", "et", "20.00", "et"]  # not the unknown ones' 100 %


def test_sets_of_one_language_each_are_compared_with_each_other(tmp_path):
    def of(*names: str, set_name: str):
        some = [t for t in TRANSCRIPTS if t.id[:2] in names]
        return write_results(tmp_path, set_name, "s", some, facts=FACTS)

    scores = [of("et", set_name="test_et"), of("lv", set_name="test_lv")]
    table = format_table(scores).split("\n\n")[1]
    lines = [line.split() for line in table.splitlines()[2:]]
    assert [line[:2] for line in lines] == [
        ["test_et+test_lv", name] for name in ("et", "lv", "worst", "mean", "gap")
    ]
    both = of("et", "lv", set_name="val")
    assert value_table([*scores, both]).count("worst") == 2
    again = of("et", set_name="test_et_2")
    assert value_table([*scores, again]) == ""  # which one would be Estonian's?


def test_the_report_has_a_group_of_each_language(tmp_path):
    write_results(tmp_path, "t", "s", TRANSCRIPTS, facts=FACTS)
    [results] = find_results(tmp_path)
    records = results.read(Normalizer.parse("none"))
    groups = groups_section(records).data["language"]
    assert [(g["group"], g["utterances"], g["wer"]) for g in groups] == [
        ("lv", 2, 100.0), ("et", 2, 20.0), ("fi", 1, 0.0),
    ]  # fmt: skip
    assert "language" not in groups_section(records[:2]).data


@pytest.mark.parametrize("facts", [None, {}, {"et1": {"speaker": "x"}}])
def test_results_without_languages_are_as_before(tmp_path, facts):
    result = write_results(tmp_path, "t", "s", TRANSCRIPTS, facts=facts)
    assert result.languages == {}
    assert format_table([result]).count("\n") == 2
