"""Errors, groups, confidences and references that look wrong."""

from __future__ import annotations

import math
import random
from pathlib import Path

import kaldialign
import numpy as np
import pytest
import soundfile
from lhotse import CutSet, SupervisionSegment

from tests.support.records import record
from xlsr_transducer.data.audio import cut_of_file
from xlsr_transducer.evaluation.calibration import calibrate, calibration_section, confident_words
from xlsr_transducer.evaluation.errors import collect, errors_section, worst_first
from xlsr_transducer.evaluation.groups import by_edges, by_quarters, groups_section, level
from xlsr_transducer.evaluation.normalizing import Normalizer
from xlsr_transducer.evaluation.references import flag, references_section
from xlsr_transducer.evaluation.section import Section
from xlsr_transducer.evaluation.snippets import MAX_SECONDS, snippet, snippets
from xlsr_transducer.recognition.audio_sets import AudioSet
from xlsr_transducer.recognition.scoring import GAP

PLAIN = Normalizer.parse("none")
EXAMPLE = [
    record("a", "see on hea ilm", "see hea ilma juba", 0.9, speaker="mari", seconds=2.0),
    record("b", "tere", "tere", 0.9, speaker="mari", seconds=1.0),
    record("c", "ilm on", "ilma", 0.5, speaker="jüri", seconds=4.0),
]
BAD_SETS = {
    "an empty set": [],
    "one utterance": [record("a", "tere", "tee", 0.5, seconds=1.0, speaker="mari")],
    "references without words": [record("a", "", "tee", 0.5), record("b", "", "")],
    "an utterance that cannot be read": [record("a", "tere", "", unread="no such file")],
    "nothing known": [record("a", "tere ema", "tere"), record("b", "on", "on")],
}


def audio_set(folder: Path, waves: dict[str, np.ndarray], rate: int = 16000) -> AudioSet:
    cuts = []
    for name, wave in waves.items():
        soundfile.write(folder / f"{name}.wav", wave, rate, subtype="FLOAT")
        cut = cut_of_file(folder / f"{name}.wav")
        cut.supervisions = [SupervisionSegment(name, name, 0, cut.duration, text="x")]
        cuts.append(cut)
    return AudioSet("set", CutSet.from_cuts(cuts))


def test_confusions_are_counted_as_an_alignment_by_hand_has_them() -> None:
    found = collect(EXAMPLE)
    assert found["substituted"] == {("ilm", "ilma"): ["a", "c"]}
    assert found["deleted"] == {("on", GAP): ["a", "c"]}
    assert found["inserted"] == {(GAP, "juba"): ["a"]}


def test_the_counts_agree_with_another_scorer() -> None:
    draw = random.Random(3)
    records = [
        record(str(i), *(" ".join(draw.choices("abcd", k=draw.randint(0, 8))) for _ in range(2)))
        for i in range(200)
    ]
    counts = kaldialign.batch_error_rate(
        [r.ref_words for r in records], [r.hyp_words for r in records]
    )
    section = errors_section(records, PLAIN)
    assert section.data["errors"] == counts["total"] == sum(r.num_errors for r in records)
    assert section.data["words"] == counts["ref_len"]


def test_the_worst_utterances_come_first_and_right_ones_not_at_all() -> None:
    assert [r.id for r in worst_first(EXAMPLE)] == ["a", "c"]


def test_a_cased_text_gets_a_second_rate() -> None:
    records = [record("a", "Tere, ema.", "tere ema")]
    [plain, again] = errors_section(records, PLAIN).tables[0].rows
    assert (plain[1], again[1]) == (100.0, 0.0)
    assert len(errors_section(EXAMPLE, PLAIN).tables[0].rows) == 1


@pytest.mark.parametrize("records", BAD_SETS.values(), ids=BAD_SETS)
def test_bad_data_are_notes_and_no_errors(records: list) -> None:
    sections = [
        errors_section(records, PLAIN, label="x"),
        groups_section(records, by=["dialect"], label="x"),
        calibration_section(records, "x"),
        references_section(records, {}, label="x"),
    ]
    assert all(isinstance(section, Section) and section.title for section in sections)
    assert all(sections[number].notes for number in (1, 3))


def test_the_page_holds_the_audio_of_the_shown_utterances_alone(tmp_path: Path) -> None:
    tone = 0.3 * np.sin(np.arange(16000) / 9)
    audio = audio_set(tmp_path, {name: tone for name in "abc"})
    [shown] = errors_section(EXAMPLE, PLAIN, audio).utterances
    assert [u.id for u in shown.utterances] == ["a", "c"] and all(
        u.audio for u in shown.utterances
    )
    assert sum(len(u.audio) for u in shown.utterances) < 20_000
    (tmp_path / "a.wav").unlink()
    found, notes = snippets(audio, {"a", "c"})
    assert list(found) == ["c"] and "No audio of a" in notes[0]


def test_a_snippet_sounds_as_the_audio_and_has_an_end(tmp_path: Path) -> None:
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(16000 * 40) / 16000)
    (tmp_path / "x").write_bytes(snippet(tone))
    samples, rate = soundfile.read(tmp_path / "x")
    assert len(samples) / rate == pytest.approx(MAX_SECONDS, abs=0.2)
    spectrum = np.abs(np.fft.rfft(samples[:rate]))
    assert int(spectrum.argmax()) == pytest.approx(440, abs=2)


def test_groups_hold_each_utterance_once_and_their_own_rate() -> None:
    records = [
        record(str(i), "x y", hyp, seconds=1.0 + i, custom={"age": i, "d": "ab"[i % 2]})
        for i, hyp in enumerate(["x z", "x y", "x y"] * 8)
    ]
    section = groups_section(records, by=["age", "d"])
    assert section.data["age"][0]["utterances"] == 6 and len(section.data["age"]) == 4
    assert [g["group"] for g in section.data["d"]] == ["a", "b"]
    for groups in section.data.values():
        assert sum(g["utterances"] for g in groups) == len(records)
        errors = sum(g["wer"] * g["words"] / 100 for g in groups)
        assert errors == pytest.approx(8, abs=0.01)
    assert any("WER by speaker" in note for note in section.notes)


def test_a_group_is_called_hard_only_where_both_sides_have_enough_to_tell() -> None:
    def by_speaker(wrong: dict[str, int], count: int = 40) -> str:
        return groups_section([
            record(f"{s}{i}", "x y", "x z" if i < wrong[s] else "x y", speaker=s)
            for s in wrong for i in range(count)
        ]).finding  # fmt: skip

    assert by_speaker({"mari": 30, "jüri": 6}).startswith("By speaker, mari is harder: 37.50 [")
    nothing = "No group is harder than the rest beyond the intervals."
    assert by_speaker({"mari": 9, "jüri": 6}) == nothing
    assert by_speaker({"mari": 30, "jüri": 0}) == nothing
    assert by_speaker({"mari": 8, "jüri": 5}, count=10) == nothing


def test_a_field_with_a_value_for_each_utterance_is_no_group() -> None:
    records = [record(str(i), "x", "x", custom={"text": str(i)}) for i in range(40)]
    section = groups_section(records, by=["text"])
    assert "text" not in section.data
    assert any("nearly every utterance" in note for note in section.notes)


def test_edges_belong_to_the_group_above() -> None:
    records = [record(str(i), "x", "x") for i in range(4)]
    groups = by_edges(records, {"0": 1.9, "1": 2.0, "2": 5.0}, (2.0, 5.0), "s")
    assert [(g.name, [r.id for r in g.records]) for g in groups] == [
        ("below 2 s", ["0"]), ("2 to 5 s", ["1"]), ("5 and more s", ["2"])
    ]  # fmt: skip
    assert sum(len(g.records) for g in by_quarters(records, dict.fromkeys("0123", 1.0), "")) == 4


def test_the_level_is_the_rms_without_an_offset(tmp_path: Path) -> None:
    square = np.tile([1.0, -1.0], 800)
    assert level(square) == pytest.approx(0)
    assert level(square * 0.01 + 0.3) == pytest.approx(-40, abs=1e-6)
    assert level(np.zeros(10)) == level(np.zeros(0)) == -120
    audio = audio_set(tmp_path, {"a": square * 0.1, "c": square * 0.001})
    found = groups_section(EXAMPLE, audio).data["level"]
    assert [(g["group"], g["utterances"]) for g in found] == [
        ("below -50 dBFS", 1), ("-20 and more dBFS", 1)
    ]  # fmt: skip


def test_calibration_error_is_the_gap_that_was_built_in() -> None:
    draw = np.random.default_rng(4)
    confidence = draw.uniform(0.3, 0.9, 40_000)
    right = draw.random(40_000) < confidence
    assert calibrate(confidence, right).expected_error < 0.02
    boasting = calibrate(confidence + 0.1, right)
    assert boasting.expected_error == pytest.approx(0.1, abs=0.02) and boasting.bias > 0.08
    assert calibrate([1.0, 1.0], [True, False]).expected_error == pytest.approx(0.5)


def test_confidences_belong_to_recognised_words() -> None:
    assert confident_words(EXAMPLE[0]) == [(0.9, True), (0.9, True), (0.9, False), (0.9, False)]
    joined = record("a", "x", "x y", 0.5)
    assert confident_words(type(joined)("a", "x", "x y", ["x"], ["xy"], joined.spans)) == []


def test_each_rule_flags_what_it_describes_and_nothing_else() -> None:
    good = [record(f"good{i}", "see on hea ilm", "see on hea ilm", 0.95) for i in range(30)]
    other = record("other", "see on hea ilm", "mine ära koju kohe", 0.95)
    unsure = record("unsure", "see on hea ilm", "mine ära koju kohe", 0.6)
    gap = record("gap", "a b c d e f g h i j", "a b c d e f", 0.99)
    fast = record("fast", "aaaaaaaaaa " * 7, "aaaaaaaaaa " * 7, 0.95, seconds=2.0)
    alignment = {f"good{i}": -0.1 - 0.01 * (i % 7) for i in range(30)} | {"unsure": -4.0}
    found = flag([*good, other, unsure, gap, fast], alignment)
    assert {f.record.id: f.rules for f in found} == {
        "other": ["other words"], "gap": ["words without sound"], "fast": ["too fast"],
        "unsure": ["poor alignment"],
    }  # fmt: skip
    assert not flag([unsure], {"unsure": -4.0})


def test_shares_are_of_utterances_that_could_be_read() -> None:
    records = [record("x", "a b", "c d", 0.95), record("y", "a", "a", 0.95)]
    records += [record("z", "a", "", unread="gone")]
    section = references_section(records)
    assert section.finding == "1 of 2 references (50.0 %) look wrong."
    assert math.isclose(section.data["utterances"], 2)
