"""Stage 1 of prepare.sh: lists to manifests, and the reason for every line that is left out."""

from __future__ import annotations

import collections
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import RecordingSet, SupervisionSet

from local.manifests import read_rejected
from local.prepare_manifests import main
from local.probe_audio import AudioProblem, probe_audio
from xlsr_transducer.core.errors import UserError

RATE = 8000


def write_audio(path: Path, samples: int = 4000, channels: int = 1, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    wave = 0.1 * rng.standard_normal((samples, channels))
    soundfile.write(path, wave[:, 0] if channels == 1 else wave, rate)
    return path


def write_list(path: Path, *lines: str, end: str = "\n", bom: bool = False) -> Path:
    text = "".join(line + end for line in lines)
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.encode("utf-8"))
    return path


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A folder with a good validation list, to which tests add the training list."""
    write_audio(tmp_path / "v.wav")
    write_list(tmp_path / "val.txt", "v.wav|tere|s1")
    return tmp_path


def prepare(corpus: Path, *options: str) -> Path:
    data = corpus / "data"
    lists = ["--train-list", f"{corpus}/train.txt", "--val-list", f"{corpus}/val.txt"]
    main([*lists, "--data-dir", str(data), *options])
    return data / "manifests"


def load(manifests: Path, split: str = "train") -> tuple[list, list]:
    recordings = RecordingSet.from_file(manifests / f"recordings_{split}.jsonl.gz")
    supervisions = SupervisionSet.from_file(manifests / f"supervisions_{split}.jsonl.gz")
    return list(recordings), list(supervisions)


def truncate(path: Path, fraction: float = 0.6) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    return path


def test_each_kind_of_bad_line_gets_its_reason_and_the_rest_goes_through(corpus):
    write_audio(corpus / "good.wav")
    write_audio(corpus / "good2.wav")
    write_audio(corpus / "empty.wav", samples=0)
    truncate(write_audio(corpus / "cut.wav"))
    truncate(write_audio(corpus / "cut.flac"))
    (corpus / "noise.wav").write_bytes(b"this is no audio file at all")
    (corpus / "folder.wav").mkdir()
    (corpus / "train.txt").write_bytes(
        "\n".join([
            "good.wav|üks kaks|s1", "nowhere.wav|kolm|s1", "noise.wav|neli|s1",
            "cut.wav|viis|s1", "cut.flac|viis|s1", "v2.wav|  |s1", "good.wav", "good2.wav|kuus",
            "empty.wav|seitse|s1", "./good.wav|kaheksa|s2", "folder.wav|a|s1", "|a|s1",
            "good2.wav|üheksa|s2",
        ]).encode() + b"\ngood3.wav|\xf5un|s1\n"
    )  # fmt: skip
    manifests = prepare(corpus, "--max-rejected", "95")
    rows = {line: reason for line, reason, *_ in read_rejected(manifests / "rejected_train.tsv")}
    expected = {
        2: "missing file", 3: "unreadable audio", 4: "truncated audio", 5: "truncated audio",
        6: "empty text", 7: "too few fields", 8: "too few fields", 9: "zero duration",
        10: "duplicate path: first in line 1", 11: "missing file", 12: "missing file",
        14: "not UTF-8",
    }  # fmt: skip
    assert list(rows) == list(expected)
    assert [line for line in rows if not rows[line].startswith(expected[line])] == []
    recordings, supervisions = load(manifests)
    assert [s.text for s in supervisions] == ["üks kaks", "üheksa"]
    assert [r.id for r in recordings] == ["good", "good2"]
    assert [s.recording_id for s in supervisions] == ["good", "good2"]
    assert [s.custom["line"] for s in supervisions] == [1, 13]


def test_too_many_rejected_lines_fail_but_leave_the_table(corpus):
    lines = [f"{write_audio(corpus / f'{i}.wav').name}|tere|s" for i in range(98)]
    write_list(corpus / "train.txt", *lines, "gone1.wav|tere|s", "gone2.wav|tere|s")
    with pytest.raises(UserError, match=r"2 of 100 lines .*rejected_train\.tsv"):
        prepare(corpus)
    assert len(list(read_rejected(corpus / "data/manifests/rejected_train.tsv"))) == 2
    assert not list((corpus / "data/manifests").glob("*.jsonl.gz*"))
    assert len(load(prepare(corpus, "--max-rejected", "2"))[0]) == 98


def test_a_list_without_any_usable_line_fails_at_every_limit(corpus):
    write_list(corpus / "train.txt", "gone.wav|tere|s")
    with pytest.raises(UserError, match="none of 1 lines"):
        prepare(corpus, "--max-rejected", "100")


def test_bars_in_the_text_comments_blank_lines_bom_and_crlf(corpus):
    for i in range(3):
        write_audio(corpus / f"{i}.wav")
    lines = ["0.wav|a|b || c|s 1", "", "# a comment|x|y", "  ", "1.wav| õ\u2028ö |s2", "2.wav|c|"]
    write_list(corpus / "train.txt", *lines, end="\r\n", bom=True)
    _, supervisions = load(prepare(corpus))
    texts = [(s.text, s.speaker, s.custom["line"]) for s in supervisions]
    assert texts == [("a|b || c", "s 1", 1), ("õ\u2028ö", "s2", 5), ("c", None, 6)]


def test_utf16_list_is_named_as_such(corpus):
    (corpus / "train.txt").write_bytes("v.wav|a|b\n".encode("utf-16"))
    with pytest.raises(UserError, match="UTF-16"):
        prepare(corpus)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8000, 44100])
def test_formats_channels_and_rates_load_with_the_promised_length(corpus, kind, channels, rate):
    write_audio(corpus / f"a.{kind}", samples=rate + 7, channels=channels, rate=rate)
    write_list(corpus / "train.txt", f"a.{kind}|tere|s")
    [recording], [supervision] = load(prepare(corpus))
    assert (recording.sampling_rate, recording.num_channels) == (rate, channels)
    assert recording.num_samples == len(soundfile.read(corpus / f"a.{kind}")[0])
    assert recording.load_audio(channels=0).shape == (1, recording.num_samples)
    assert supervision.channel == 0
    assert supervision.duration == recording.duration == recording.num_samples / rate


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3", "aiff"])
@pytest.mark.parametrize("fraction", [0.5, 0.97])
def test_truncated_audio_is_found_in_every_format(tmp_path, kind, fraction):
    path = write_audio(tmp_path / f"a.{kind}", samples=80000)
    assert probe_audio(str(path)).num_samples == 80000
    truncate(path, fraction)
    with pytest.raises(AudioProblem, match="truncated"):
        probe_audio(str(path))


def test_wav_from_a_pipe_without_length_is_not_called_truncated(tmp_path):
    path = write_audio(tmp_path / "a.wav", samples=4000)
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    assert probe_audio(str(path)).num_samples == 4000


def test_audio_root_replaces_the_folder_of_the_list(corpus):
    write_audio(corpus / "audio/deep/a.wav")
    write_audio(corpus / "audio/v.wav")
    write_list(corpus / "train.txt", "deep/a.wav|tere|s", f"{corpus}/v.wav|tere|s")
    write_list(corpus / "val.txt", "v.wav|tere|s")
    recordings, _ = load(prepare(corpus, "--audio-root", str(corpus / "audio")))
    sources = [r.sources[0].source for r in recordings]
    assert sources == [str((corpus / p).resolve()) for p in ("audio/deep/a.wav", "v.wav")]
    with pytest.raises(UserError, match="--audio-root"):
        prepare(corpus, "--audio-root", str(corpus / "nowhere"))


def test_the_same_audio_in_two_splits_is_an_error_through_links_too(corpus):
    write_audio(corpus / "a.wav")
    (corpus / "link.wav").symlink_to(corpus / "v.wav")
    write_list(corpus / "train.txt", "a.wav|tere|s", "link.wav|tere|s")
    with pytest.raises(UserError, match="two splits.*line 2 of the train.*line 1 of the val"):
        prepare(corpus)
    (corpus / "train.txt").write_bytes((corpus / "val.txt").read_bytes())
    with pytest.raises(UserError, match="two splits"):
        prepare(corpus)


def test_ids_are_unique_over_all_splits_and_stable(corpus):
    for folder in "abc":
        write_audio(corpus / folder / "x y.wav")
    write_list(corpus / "train.txt", "a/x y.wav|tere|s", "b/x y.wav|tere|s")
    write_list(corpus / "val.txt", "c/x y.wav|tere|s")
    manifests = prepare(corpus)
    ids = [r.id for split in ("train", "val") for r in load(manifests, split)[0]]
    assert ids[0] == "x_y" and len(set(ids)) == 3
    assert all(i.startswith("x_y-") for i in ids[1:])
    before = {p.name: p.read_bytes() for p in manifests.iterdir()}
    prepare(corpus)
    assert {p.name: p.read_bytes() for p in manifests.iterdir()} == before


def test_test_splits_are_named_after_their_lists_if_there_are_several(corpus):
    for name in ("train", "t1", "t2"):
        write_audio(corpus / f"{name}.wav")
        write_list(corpus / f"{name}.txt", f"{name}.wav|tere|s")
    one = ["--test-list", f"{corpus}/t1.txt"]
    manifests = prepare(corpus, *one)
    assert json.loads((manifests / "splits.json").read_text())["test"] == ["test"]
    manifests = prepare(corpus, *one, "--test-list", f"{corpus}/t2.txt")
    splits = json.loads((manifests / "splits.json").read_text())
    assert splits == {"train": ["train"], "val": ["val"], "test": ["t1", "t2"]}
    with pytest.raises(UserError, match="rename"):
        prepare(corpus, *one, *one)


def test_order_of_the_list_is_kept_and_headers_are_read_by_several_threads(corpus, monkeypatch):
    import threading

    import local.importers.probing as module

    threads: collections.Counter = collections.Counter()
    barrier = threading.Barrier(2, timeout=20)

    def probe(block, prober):
        threads[threading.get_ident()] += 1
        if len(block) == 64:  # the two full blocks of the training list
            barrier.wait()
        return original(block, prober)

    original = module.probe_block
    monkeypatch.setattr(module, "probe_block", probe)
    names = [f"{i}.wav" for i in range(150)]
    for name in names:
        write_audio(corpus / name, samples=10)
    write_list(corpus / "train.txt", *(f"{name}|tere|s" for name in names))
    recordings, _ = load(prepare(corpus, "--num-jobs", "2"))
    assert [r.id + ".wav" for r in recordings] == names
    assert len(threads) >= 2
