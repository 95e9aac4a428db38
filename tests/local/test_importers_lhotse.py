"""Stage 1 on lhotse's manifests: cuts, and recordings with supervisions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from lhotse import (
    AudioSource,
    CutSet,
    MonoCut,
    MultiCut,
    Recording,
    RecordingSet,
    SupervisionSegment,
    SupervisionSet,
)

from local import prepare_manifests
from local.manifests import read_jsonl_gz
from tests.support.corpora import (
    FOREIGN,
    import_corpus,
    imported,
    rejected,
    samples_of,
    write_audio,
    write_json_lines,
)
from xlsr_transducer.core.errors import UserError

RATE = 16000


def recording(path: Path, name: str, **more: object) -> Recording:
    return Recording.from_file(path, recording_id=name).to_dict() | more


def supervision(name: str, of: str, start: float, duration: float, **more: object) -> dict:
    defaults = {"channel": 0, "text": f"tere {name}", "speaker": f"s-{name}"}
    made = SupervisionSegment(name, of, start, duration, **{**defaults, **more})
    return made.to_dict()


@pytest.fixture
def pair(tmp_path) -> Path:
    """A folder with recordings, one of two channels, and supervisions that alternate."""
    folder = tmp_path / "lhotse"
    write_audio(folder / "a.wav", 3 * RATE, channels=2)
    write_audio(folder / "b.wav", 2 * RATE)
    found = [recording(folder / f"{name}.wav", name) for name in "ba"]
    write_json_lines(folder / "xy_recordings_train.jsonl.gz", *found)
    write_json_lines(
        folder / "xy_supervisions_train.jsonl.gz",
        supervision("a-1", "a", 0.25, 1.0, language="lv", gender="f"),
        supervision("b-1", "b", 0.0, 2.0, custom={"dialect": "võru", "list": [1], "n": 3}),
        supervision("a-2", "a", 0.5, 2.0000001, channel=1),
        supervision("b-2", "b", 1.0, 0.5),
    )
    return folder


def same_as_lhotse(found: list[dict], cuts: CutSet) -> None:
    """``cuts``: one for each supervision, in the same order."""
    assert [s["id"] for s in found] == [cut.supervisions[0].id for cut in cuts]
    for s, cut in zip(found, cuts):
        [one] = cut.supervisions
        for key in ("text", "speaker", "gender"):
            assert s.get(key) == getattr(one, key), key
        assert s["language"] == (one.language or "et")
        assert (s["recording_id"], s["channel"]) == (cut.recording.id, cut.channel)
        assert s["start"] == pytest.approx(cut.start, abs=0.5 / RATE)
        assert s["duration"] == pytest.approx(cut.duration, abs=0.5 / RATE)
        expected = (32768 * cut.load_audio()[0]).astype(np.int16)
        np.testing.assert_array_equal(samples_of(s), expected)


def test_recordings_and_supervisions_are_read_as_lhotse_reads_them(pair, tmp_path):
    paths = [pair / f"xy_{kind}_train.jsonl.gz" for kind in ("recordings", "supervisions")]
    recordings, supervisions = RecordingSet.from_file(paths[0]), SupervisionSet.from_file(paths[1])
    # lhotse's own order is by recording.
    made = CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
    cuts = {c.supervisions[0].id: c for c in made.trim_to_supervisions(keep_overlapping=False)}
    for i, given in enumerate([*paths, pair]):
        found = import_corpus(given, tmp_path / f"data{i}")
        same_as_lhotse(found, CutSet.from_cuts(cuts[s["id"]] for s in found))
        assert [s["id"] for s in found] == ["a-1", "b-1", "a-2", "b-2"]
        assert found[1]["custom"]["columns"] == {"dialect": "võru", "n": "3"}


def test_a_channel_keeps_its_own_supervisions(pair, tmp_path, caplog):
    caplog.set_level("INFO")
    found = import_corpus(pair, tmp_path / "data", "--channel=1")
    assert [s["id"] for s in found] == ["a-2"]
    assert "3 lines left out: not of channel 1" in caplog.text
    assert len(import_corpus(pair, tmp_path / "each", "--channel=each")) == 4


def test_cuts_are_read_as_lhotse_reads_them(pair, tmp_path):
    recordings = {r.id: r for r in RecordingSet.from_file(pair / "xy_recordings_train.jsonl.gz")}
    inside = SupervisionSegment("b-1", "b", 0.25, 0.5, text="üks", speaker="m", language="lv")
    second = SupervisionSegment("b-2", "b", 0.75, 0.25, text="kaks", custom={"quality": "poor"})
    after = SupervisionSegment("b-3", "b", 0.5, 2.0, text="kolm")
    both = SupervisionSegment("a-1", "a", 0.0, 1.0, channel=[0, 1], text="neli")
    cuts = [
        MonoCut("c1", 0.5, 1.0, 0, [inside, second, after], recording=recordings["b"]),
        MultiCut("c2", 1.0, 1.0, [0, 1], recording=recordings["a"], supervisions=[both]),
        MonoCut("c3", 0.0, 1.0, 0, recording=recordings["b"]),
        MonoCut("c4", 0.0, 1.0, 0, supervisions=[inside]),
        MonoCut("c5", 0.0, 1.0, 0, recording=recordings["b"].perturb_speed(0.9),
                supervisions=[SupervisionSegment("p", "b", 0, 1, text="viis")]),
    ]  # fmt: skip
    mixed = cuts[0].mix(cuts[2])
    path = write_json_lines(tmp_path / "cuts.jsonl.gz", *(c.to_dict() for c in [*cuts, mixed]))
    found = import_corpus(path, tmp_path / "data", "--max-rejected=80")
    cuts[0].supervisions.remove(after)
    trimmed = CutSet.from_cuts(cuts[:1]).trim_to_supervisions(keep_overlapping=False)
    same_as_lhotse(found[:2], trimmed)
    assert found[1]["custom"]["columns"] == {"quality": "poor"}
    assert (found[2]["id"], found[2]["channel"], found[2]["start"]) == ("a-1", 0, 1.0)
    reasons = {line: reason.split(":")[0] for line, reason in rejected(tmp_path / "data").items()}
    assert reasons == {
        1: "segment beyond the cut", 3: "empty text", 4: "no recording",
        5: "a recording that lhotse changes when it reads it (transforms)", 6: "a MixedCut",
    }  # fmt: skip
    found = import_corpus(path, tmp_path / "each", "--max-rejected=80", "--channel=each")
    assert [s["id"] for s in found[2:]] == ["a-1-c0", "a-1-c1"]


def test_a_recording_of_several_files_gives_each_channel_its_own(tmp_path):
    waves = {c: write_audio(tmp_path / f"array{c}.wav", RATE) for c in (1, 2)}
    pair = write_audio(tmp_path / "pair.wav", RATE, channels=2)
    sources = [AudioSource("file", [c], f"array{c}.wav") for c in (1, 2)]
    sources.append(AudioSource("file", [3, 5], "pair.wav"))
    made = Recording("m", sources, RATE, RATE, 1.0, [1, 2, 3, 5]).to_dict()
    told = [[1, 2], [2], [5], [4]]
    write_json_lines(tmp_path / "recordings.jsonl", made)
    path = write_json_lines(
        tmp_path / "supervisions.jsonl",
        *(supervision(f"u{i}", "m", 0, 0.5, channel=c) for i, c in enumerate(told)),
    )
    found = import_corpus(path, tmp_path / "data", "--max-rejected=60")
    assert [(s["id"], s["recording_id"], s["channel"]) for s in found] == [
        ("u0", "m-c1", 0), ("u1", "m-c2", 0), ("u2", "m-c5", 1),
    ]  # fmt: skip
    for s, expected in zip(found, [waves[1][:, 0], waves[2][:, 0], pair[:, 1]]):
        np.testing.assert_array_equal(samples_of(s), expected[:8000])
    assert rejected(tmp_path / "data") == {4: "no such channel: 4"}
    found = import_corpus(path, tmp_path / "each", "--max-rejected=60", "--channel=each")
    assert [s["id"] for s in found] == ["u0-c1", "u0-c2", "u2"]
    assert rejected(tmp_path / "each")[2].startswith("duplicate path")
    found = import_corpus(path, tmp_path / "two", "--max-rejected=70", "--channel=2")
    assert [s["id"] for s in found] == ["u0"]


@pytest.mark.parametrize("kind", ["command", "url", "memory"])
def test_only_files_are_read_and_commands_refused(pair, tmp_path, kind):
    path = pair / "xy_recordings_train.jsonl.gz"
    found = list(read_jsonl_gz(path))
    mark = tmp_path / "was-run"
    found[1]["sources"][0] |= {"type": kind, "source": f"touch {mark}"}
    write_json_lines(path, *found)
    if kind == "command":
        with pytest.raises(UserError, match=r"xy_recordings_train.jsonl.gz, line 2: asks for a"):
            import_corpus(pair, tmp_path / "data")
    else:
        assert len(import_corpus(pair, tmp_path / "data", "--max-rejected=60")) == 2
        assert all(f"of type {kind}" in r for r in rejected(tmp_path / "data").values())
    assert not mark.exists()


def test_cuts_of_others_are_read(tmp_path):
    folder = tmp_path / "test" / "fixtures"
    items = json.loads((FOREIGN / "lhotse" / "ami_cuts.json").read_text())
    write_audio(folder / "ami" / "ES2011a.Headset-0-40s-46s.wav", 96000)
    path = write_json_lines(tmp_path / "ami_cuts.jsonl", *items)
    found = import_corpus(path, tmp_path / "ami", f"--audio-root={tmp_path}")
    cuts = CutSet.from_file(path).trim_to_supervisions(keep_overlapping=False)
    assert [(s["id"], s["text"], s["speaker"]) for s in found] == [
        (c.supervisions[0].id, c.supervisions[0].text, c.supervisions[0].speaker) for c in cuts
    ]
    assert [(s["start"], s["duration"]) for s in found] == [(c.start, c.duration) for c in cuts]
    for name, samples in (("20", 33949), ("35", 35229)):
        write_audio(folder / "ljspeech" / "storage" / f"LJ002-00{name}.wav", samples, 22050)
    path = FOREIGN / "lhotse" / "ljspeech_cuts.jsonl"
    found = import_corpus(path, tmp_path / "lj", f"--audio-root={tmp_path}")
    for s, cut in zip(found, CutSet.from_file(path)):
        assert s["id"] == cut.supervisions[0].id and s["gender"] == "female"
        assert (s["start"], s["duration"]) == (cut.start, cut.duration)
        assert s["recording"]["num_samples"] == cut.recording.num_samples


def test_a_folder_of_several_splits_gives_each_role_its_manifest(pair, tmp_path):
    for name in ("dev", "test-other"):
        write_audio(pair / f"{name}.wav", RATE)
        made = recording(pair / f"{name}.wav", name)
        write_json_lines(pair / f"xy_recordings_{name}.jsonl.gz", made)
        one = supervision(f"{name}-1", name, 0, 1)
        write_json_lines(pair / f"xy_supervisions_{name}.jsonl.gz", one)
    lists = [f"--{split}-list={pair}" for split in ("train", "val", "test")]
    prepare_manifests.main([*lists, f"--data-dir={tmp_path / 'data'}"])
    assert len(imported(tmp_path / "data", "train")) == 4
    assert [s["id"] for s in imported(tmp_path / "data", "val")] == ["dev-1"]
    assert [s["id"] for s in imported(tmp_path / "data")] == ["test-other-1"]
    for suffix in ("recordings", "supervisions"):
        shutil.copy(pair / f"xy_{suffix}_dev.jsonl.gz", pair / f"xy_{suffix}_test-clean.jsonl.gz")
    with pytest.raises(UserError, match="several manifests, give one of them: .*test-clean"):
        import_corpus(pair, tmp_path / "data")


def test_recordings_that_are_not_there_are_named(pair, tmp_path):
    path = pair / "xy_recordings_train.jsonl.gz"
    write_json_lines(path, *list(read_jsonl_gz(path))[:1])
    assert len(import_corpus(pair, tmp_path / "data", "--max-rejected=60")) == 2
    assert set(rejected(tmp_path / "data").values()) == {f"no such recording: a in {path}"}
    path.unlink()
    with pytest.raises(UserError, match=r"whose recordings must lie beside them as xy_recordings"):
        import_corpus(pair, tmp_path / "data")


def test_a_damaged_manifest_is_an_error_and_a_bad_line_a_reason(pair, tmp_path):
    path = pair / "xy_supervisions_train.jsonl.gz"
    items = list(read_jsonl_gz(path))
    del items[1]["channel"], items[3]["id"]
    items[2]["duration"] = "long"
    write_json_lines(path, *items)
    assert len(import_corpus(pair, tmp_path / "data", "--max-rejected=80")) == 1
    assert {r.split(":")[0] for r in rejected(tmp_path / "data").values()} == {
        "no manifest of lhotse"
    }
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"xy_supervisions_train.jsonl.gz: damaged"):
        import_corpus(pair, tmp_path / "data")


def test_the_manifests_of_this_recipe_are_read_again_with_their_columns(pair, tmp_path):
    first = import_corpus(pair, tmp_path / "data")
    again = import_corpus(tmp_path / "data" / "manifests", tmp_path / "again")
    keys = ("id", "recording_id", "start", "duration", "channel", "text", "language", "recording")
    assert [[s[key] for key in keys] for s in again] == [[s[key] for key in keys] for s in first]
    columns = [s["custom"]["columns"] for s in again]
    assert columns[1] == {**first[1]["custom"]["columns"], "line": "2"}


def test_a_channel_that_the_recording_lacks_is_named(pair, tmp_path):
    path = pair / "xy_recordings_train.jsonl.gz"
    found = list(read_jsonl_gz(path))
    found[1]["sources"][0]["channels"] = found[1]["channel_ids"] = [1, 2]
    write_json_lines(path, *found)
    found = import_corpus(pair, tmp_path / "data", "--max-rejected=30")
    assert [(s["id"], s["channel"]) for s in found] == [("b-1", 0), ("a-2", 0), ("b-2", 0)]
    assert rejected(tmp_path / "data") == {1: "no such channel: 0"}
