"""Stage 1 on lists with times, columns and channels, and what several splits may share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from local import prepare_manifests
from local.importers import probing
from local.utterances import RecordingPool, make_cut, read_utterances
from tests.support.corpora import (
    import_corpus,
    imported,
    rejected,
    samples_of,
    write_audio,
    write_lines,
)
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio import read_audio

RATE = 16000
CV_HEADER = "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender"
CV_HEADER = [*CV_HEADER.split(), "accents", "variant", "locale", "segment"]


def test_a_list_with_times_gives_parts_of_recordings_in_its_order(tmp_path):
    a = write_audio(tmp_path / "a.wav", 3 * RATE)
    b = write_audio(tmp_path / "b.wav", 2 * RATE)
    listed = write_lines(
        tmp_path / "list.txt",
        "a.wav|0.5|1.25|üks | kaks|mari", "b.wav|0|2.0|kolm|jüri", "a.wav|1.25|3|neli|jüri",
    )  # fmt: skip
    found = import_corpus(listed, tmp_path / "data")
    assert [s["id"] for s in found] == ["a-00000500", "b", "a-00001250"]
    assert [s["text"] for s in found] == ["üks | kaks", "kolm", "neli"]
    assert [(s["start"], s["duration"]) for s in found] == [(0.5, 0.75), (0, 2), (1.25, 1.75)]
    for s, expected in zip(found, [a[8000:20000], b, a[20000:]]):
        np.testing.assert_array_equal(samples_of(s), expected[:, 0])
    cuts = [make_cut(*pair, "x") for pair in read_utterances(tmp_path / "data", "test")]
    for cut, s in zip(cuts, found):
        assert cut.supervisions[0].start == 0
        np.testing.assert_array_equal(read_audio(cut), samples_of(s) / np.float32(32768))


def test_times_beyond_the_recording_by_20_ms_are_clipped_and_others_are_named(tmp_path, caplog):
    write_audio(tmp_path / "a.wav", RATE)
    listed = write_lines(
        tmp_path / "list.txt",
        "a.wav|0.2|1.02|üks|m", "a.wav|0.3|1.03|kaks|m", "a.wav|0.5|0.5|kolm|m",
        "a.wav|0.6|0.2|neli|m", "a.wav|x|0.2|viis|m", "a.wav|0.2|1.01|kuus|m",
        "a.wav|0.25|0.75|  |m", "none.wav|0|1|seitse|m", "a.wav|1e400|2|kaheksa|m", "a.wav|1|2",
    )  # fmt: skip
    [only] = import_corpus(listed, tmp_path / "data", "--max-rejected=95")
    assert (only["start"], only["duration"]) == (0.2, 0.8)
    assert "clipped" in caplog.text
    reasons = {line: reason.split(":")[0] for line, reason in rejected(tmp_path / "data").items()}
    times = "times that are no seconds"
    assert reasons == {
        2: "segment beyond the recording", 3: "zero duration", 4: "zero duration", 5: times,
        6: "duplicate path", 7: "empty text", 8: "missing file", 9: times, 10: "too few fields",
    }  # fmt: skip


@pytest.mark.parametrize("has_times", [False, True])
def test_a_header_names_columns_which_end_each_line(tmp_path, has_times):
    write_audio(tmp_path / "a.wav", RATE)
    write_audio(tmp_path / "b.wav", RATE)
    fields = "path|start|end|text|speaker" if has_times else "path|text|speaker"
    times = "|0|1" if has_times else ""
    listed = write_lines(
        tmp_path / "list.txt", f"#{fields}|dialect|source",
        f"a.wav{times}|1|2|üks|mari|võru|raadio", f"b.wav{times}|kaks|jüri|mulgi|",
        f"b.wav{times}|kaks|jüri",
    )  # fmt: skip
    found = import_corpus(listed, tmp_path / "data", "--max-rejected=40")
    assert [(s["text"], s["speaker"]) for s in found] == [("1|2|üks", "mari"), ("kaks", "jüri")]
    columns = [s["custom"]["columns"] for s in found]
    assert columns == [{"dialect": "võru", "source": "raadio"}, {"dialect": "mulgi"}]
    assert list(rejected(tmp_path / "data")) == [4]


@pytest.mark.parametrize("header", ["#path|text|dialect", "#path|text|speaker|", "#path|start"])
def test_a_header_that_names_other_fields_is_refused(tmp_path, header):
    write_audio(tmp_path / "a.wav", RATE)
    listed = write_lines(tmp_path / "list.txt", header, "a.wav|tere|mari|x")
    with pytest.raises(UserError, match=r"list\.txt, line 1"):
        import_corpus(listed, tmp_path / "data")


def test_numbers_in_a_text_with_bars_do_not_make_times(tmp_path):
    for name in "abc":
        write_audio(tmp_path / f"{name}.wav", RATE)
    listed = write_lines(
        tmp_path / "list.txt", "a.wav|1|2|kolm|m", "b.wav|tere|m", "c.wav|jah|ja|ei|m"
    )
    assert [s["text"] for s in import_corpus(listed, tmp_path / "data")] == [
        "1|2|kolm", "tere", "jah|ja|ei",
    ]  # fmt: skip


def test_channels_of_a_recording_are_chosen(tmp_path):
    wave = write_audio(tmp_path / "a.wav", RATE, channels=2)
    write_audio(tmp_path / "b.wav", RATE)
    listed = write_lines(tmp_path / "list.txt", "a.wav|tere|m", "b.wav|jah|m")
    expected = {"": [0, 0], "--channel=0": [0, 0], "--channel=1": [1, 0]}
    for i, (option, channels) in enumerate(expected.items()):
        found = import_corpus(listed, tmp_path / f"data{i}", *filter(None, [option]))
        assert [s["channel"] for s in found] == channels
        np.testing.assert_array_equal(samples_of(found[0]), wave[:, channels[0]])
    found = import_corpus(listed, tmp_path / "each", "--channel=each")
    assert [s["id"] for s in found] == ["a-c0", "a-c1", "b"]
    assert [s["channel"] for s in found] == [0, 1, 0]
    found = import_corpus(listed, tmp_path / "third", "--channel=2", "--max-rejected=60")
    assert [s["id"] for s in found] == ["b"]
    assert rejected(tmp_path / "third")[1].startswith("no such channel: 2, the file has 2")


def test_the_header_of_a_recording_is_read_once_whatever_the_number_of_threads(
    tmp_path, monkeypatch
):
    probed = []
    probe = probing.probe_audio
    monkeypatch.setattr(probing, "probe_audio", lambda a: (probed.append(a), probe(a))[1])
    for name in "ab":
        write_audio(tmp_path / f"{name}.wav", 4 * RATE)
    (tmp_path / "c.wav").write_bytes(b"no audio")
    rows = [f"{'abc'[i % 3]}.wav|{i / 100:.2f}|{i / 100 + 0.5:.2f}|t{i}|m" for i in range(300)]
    listed = write_lines(tmp_path / "list.txt", *rows)
    options = ["--num-jobs=4", "--max-rejected=40"]
    assert len(import_corpus(listed, tmp_path / "data", *options)) == 200
    assert len(set(rejected(tmp_path / "data").values())) == 1
    assert sorted(probed) == [str((tmp_path / f"{n}.wav").resolve()) for n in "abc"]


@pytest.mark.parametrize("value", ["-1", "x", ""])
def test_a_wrong_channel_is_an_error(tmp_path, value):
    with pytest.raises(UserError, match="must be a channel, from 0 up, or each"):
        import_corpus(tmp_path, tmp_path / "data", f"--channel={value}")


def prepare_two(tmp_path: Path, train: list[str], val: list[str]) -> None:
    lists = [write_lines(tmp_path / "train.txt", *train), write_lines(tmp_path / "val.txt", *val)]
    options = [f"--train-list={lists[0]}", f"--val-list={lists[1]}"]
    prepare_manifests.main([*options, f"--data-dir={tmp_path / 'data'}"])


def test_splits_may_share_a_recording_as_long_as_segments_do_not_overlap(tmp_path, caplog):
    write_audio(tmp_path / "a.wav", 4 * RATE, channels=2)
    first = ["a.wav|0|1|üks|m", "a.wav|2|3|kaks|m"]
    prepare_two(tmp_path, first, ["a.wav|1|2|kolm|m", "a.wav|3|4|neli|m"])
    assert "1 recordings are in another split too, such as a" in caplog.text
    ids = [s["id"] for split in ("train", "val") for s in imported(tmp_path / "data", split)]
    assert ids == ["a-00000000", "a-00002000", "a-00001000", "a-00003000"]
    # A test set that joins later knows what the others use.
    later = write_lines(tmp_path / "test.txt", "a.wav|2.5|2.75|viis|m")
    message = "two splits.*overlap: line 2 of the train list and line 1 of the test list"
    with pytest.raises(UserError, match=message):
        import_corpus(later, tmp_path / "data")
    assert not (tmp_path / "data/manifests/supervisions_test.jsonl.gz").exists()


@pytest.mark.parametrize("val", ["a.wav|0.9|1.5|kolm|m", "a.wav|0|4|kõik|m"])
def test_segments_that_overlap_in_two_splits_are_an_error(tmp_path, val):
    write_audio(tmp_path / "a.wav", 4 * RATE)
    with pytest.raises(UserError, match="overlap: line 1 of the (train|val) list and line 1 of"):
        prepare_two(tmp_path, ["a.wav|0|1|üks|m"], [val])


def test_the_same_segment_in_two_splits_is_an_error_at_once(tmp_path):
    write_audio(tmp_path / "a.wav", 4 * RATE)
    with pytest.raises(UserError, match="is in two splits: line 1 of the train list and line 1"):
        prepare_two(tmp_path, ["a.wav|0|1|üks|m"], ["a.wav|0.0|1.0|kolm|m"])


def test_recordings_are_given_out_as_often_as_they_are_wanted_in_any_order():
    recordings = [{"id": name} for name in "abcde"]
    wanted = list("cabacdeea")
    pool = RecordingPool(iter(recordings), wanted)
    assert [pool.take(name)["id"] for name in wanted] == wanted
    assert pool.is_used_up()
    pool = RecordingPool(iter(recordings), "af")
    assert pool.take("f") is None and not pool.is_used_up()


@pytest.mark.parametrize(
    "content", [b"client_id\tfile\nx\ty\n", b"\x1f\x8b\x08nonsense", b"[\n{}\n]\n", b'{"a": 1}\n']
)
def test_what_cannot_be_recognised_is_named_with_what_was_looked_for(tmp_path, content):
    path = tmp_path / "corpus.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"corpus\.txt.*looked for a list path.*Kaldi.*NeMo"):
        import_corpus(path, tmp_path / "data")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder: not understood; looked for"):
        import_corpus(tmp_path / "folder", tmp_path / "data")
