"""An extraction killed at any time resumes where it stopped, and refuses what contradicts."""

from __future__ import annotations

import gzip
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from local import extract_split, extractors
from local.demo.make_toy_xlsr import make_random
from local.manifests import JsonlGzWriter, manifest_path, read_jsonl_gz
from tests.support.noise_corpus import LENGTHS, TINY, extract, make_cut, write_split
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.features import find_features, load_feature_cuts
from xlsr_transducer.model.feature_info import FeatureInfo

ROOT = Path(__file__).resolve().parents[2]
SMALL_SHARDS = """
import sys
import local.extract_shard
local.extract_shard.LEAST_SECONDS = 2.0
from local.extract_features import main
main(sys.argv[1:])
"""


def shard_times(folder: Path) -> dict[str, int]:
    """When each finished shard was written."""
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("records/train/*.json")}


def contents(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "log"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def wait_for(condition, seconds: float = 300.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True)
    return [int(word) for word in listed.stdout.split()]


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_kill_9_costs_no_finished_shard_and_leaves_no_worker(data, xlsr):
    write_split(data, "train", [20000] * 240)
    options = ["--data-dir", str(data), "--xlsr", str(xlsr), "--cut", "3", "--num-jobs", "2"]
    folder = data / "features" / "3-cumulative"
    command = [sys.executable, "-c", SMALL_SHARDS, *options]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(shard_times(folder)) >= 2 or process.poll() is not None)
    workers = children(process.pid)
    process.kill()
    process.wait()
    wait_for(lambda: not any(is_alive(pid) for pid in workers))
    finished = shard_times(folder)
    assert 2 <= len(finished) < 60 and not (folder / "cuts_train.jsonl.gz").exists()
    extract(data, xlsr, "--cut", "3")
    assert shard_times(folder).items() >= finished.items()
    assert len(shard_times(folder)) == 60 and not list(folder.rglob("*.tmp"))
    for cut in load_feature_cuts(folder, "train"):
        assert cut.load_features().shape == (62, 32)


def test_ctrl_c_in_the_midst_of_workers_is_one_line_and_work_resumes_later(data, xlsr):
    write_split(data, "train", [20000] * 60)
    options = ["--data-dir", str(data), "--xlsr", str(xlsr), "--num-jobs", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "local.extract_features", *options],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert " wide, in " in process.stderr.readline()
    wait_for(lambda: children(process.pid) or process.poll() is not None)
    workers = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130 and "Traceback" not in errors
    assert errors.splitlines()[-1:] == ["interrupted"]
    wait_for(lambda: not any(is_alive(pid) for pid in workers))
    folder = data / "features" / "frontend-cumulative"
    assert not list(folder.rglob("*.tmp")) and not (folder / "cuts_train.jsonl.gz").exists()
    extract(data, xlsr, "--cut", "frontend")
    assert (folder / "cuts_train.jsonl.gz").exists()


def test_an_interrupted_extraction_ends_as_an_uninterrupted_one(data, xlsr, monkeypatch):
    whole = contents(extract(data, xlsr, "--name", "whole"))
    compute = extractors.XlsrExtractor.__call__
    for stop in (1, 2, 3):
        calls = []

        def interrupted(self, waves, calls=calls, stop=stop):
            calls.append(1)
            if len(calls) > stop:
                raise KeyboardInterrupt
            return compute(self, waves)

        monkeypatch.setattr(extractors.XlsrExtractor, "__call__", interrupted)
        with pytest.raises(KeyboardInterrupt):
            extract(data, xlsr, "--name", f"stop-{stop}")
        monkeypatch.setattr(extractors.XlsrExtractor, "__call__", compute)
        assert contents(extract(data, xlsr, "--name", f"stop-{stop}")) == whole


def test_new_text_costs_no_computation(data, xlsr):
    folder = extract(data, xlsr)
    before = shard_times(folder)
    write_split(data, "train", LENGTHS, text="uus tekst")
    extract(data, xlsr)
    assert shard_times(folder) == before
    texts = {cut.supervisions[0].text for cut in load_feature_cuts(folder, "train")}
    assert texts == {"uus tekst"}


def computed(monkeypatch) -> list[int]:
    """Collects the lengths of all waves that are computed from here on."""
    lengths: list[int] = []
    compute = extractors.XlsrExtractor.__call__

    def counted(self, waves):
        lengths.extend(len(wave) for wave in waves)
        return compute(self, waves)

    monkeypatch.setattr(extractors.XlsrExtractor, "__call__", counted)
    return lengths


def test_a_new_line_and_changed_audio_cost_the_computation_of_these_alone(data, xlsr, monkeypatch):
    folder = extract(data, xlsr)
    before = {c.id: c.load_features() for c in load_feature_cuts(folder, "train")}
    path = data / "wav" / "train-8.wav"
    soundfile.write(path, np.random.default_rng(9).uniform(-0.1, 0.1, LENGTHS[8]), 16000)
    soundfile.write(data / "wav" / "new.wav", np.full(16000, 0.1), 16000)
    manifest = manifest_path(data, "cuts", "train")
    cuts = list(read_jsonl_gz(manifest))
    with JsonlGzWriter(manifest) as writer:
        new = make_cut(data / "wav" / "new.wav", 16000, 16000, "esimene")
        for cut in [new, *cuts[:6], *cuts[7:]]:
            writer.write(cut)
    lengths = computed(monkeypatch)
    extract(data, xlsr)
    assert sorted(lengths) == [16000, LENGTHS[8]]
    after = {c.id: c.load_features() for c in load_feature_cuts(folder, "train")}
    assert list(after) == ["new", *(i for i in before if i != "train-6")]
    same = {i for i in before.keys() & after.keys() if np.array_equal(before[i], after[i])}
    assert same == before.keys() & after.keys() - {"train-8"}
    lengths.clear()
    extract(data, xlsr)
    assert lengths == []


def test_a_copied_corpus_keeps_its_features_and_old_shards_go(data, xlsr, tmp_path, monkeypatch):
    folder = extract(data, xlsr)
    shutil.copytree(data, tmp_path / "copy")  # with new times of change
    manifest = manifest_path(tmp_path / "copy", "cuts", "train")
    text = gzip.decompress(manifest.read_bytes()).decode()
    manifest.write_bytes(gzip.compress(text.replace(str(data), str(tmp_path / "copy")).encode()))
    for path in (tmp_path / "copy" / "wav").iterdir():
        os.utime(path, ns=(1, 1))
    lengths = computed(monkeypatch)
    copy = extract(tmp_path / "copy", xlsr)
    assert lengths == [] and sorted(shard_times(copy)) == sorted(shard_times(folder))
    write_split(tmp_path / "copy", "train", [20000] * 3)
    old = shard_times(copy)
    extract(tmp_path / "copy", xlsr)
    assert lengths == [20000] * 3 and not shard_times(copy).keys() & old.keys()


def test_removed_audio_keeps_its_features(data, xlsr, monkeypatch):
    folder = extract(data, xlsr)
    before = (folder / "cuts_train.jsonl.gz").read_bytes()
    shutil.rmtree(data / "wav")
    lengths = computed(monkeypatch)
    extract(data, xlsr)
    assert lengths == [] and (folder / "cuts_train.jsonl.gz").read_bytes() == before


def test_cuts_that_are_no_part_of_a_recording_are_named_and_channels_are_chosen(
    data, xlsr, monkeypatch
):
    monkeypatch.setattr(extract_split, "MAX_UNREADABLE", 20.0)
    manifest = manifest_path(data, "cuts", "train")
    cuts = list(read_jsonl_gz(manifest))
    tracks = [{"type": "MonoCut", "offset": 0.0, "cut": cuts[4]}]
    cuts[4] = {"id": "train-4", "type": "MixedCut", "tracks": tracks}
    cuts[5] = {**cuts[5], "type": "MultiCut", "channel": [0]}
    cuts[6] = {**cuts[6], "duration": None}
    cuts[7] = {**cuts[7], "supervisions": []}
    with JsonlGzWriter(manifest) as writer:
        for cut in cuts:
            writer.write(cut)
    folder = extract(data, xlsr)
    ids = [cut.id for cut in load_feature_cuts(folder, "train")]
    assert ids == [f"train-{i}" for i in range(12) if i not in (2, 3, 4, 6)]
    rows = (folder / "unreadable_train.tsv").read_text().splitlines()[1:]
    assert rows == [
        "train-4\tit is a MixedCut, not a part of one recording",
        "train-6\tthe duration is None",
    ]


def test_other_settings_in_the_same_folder_are_refused_by_name(data, xlsr):
    extract(data, xlsr, "--name", "mine")
    with pytest.raises(UserError, match="normalize: none and cumulative.*--name"):
        extract(data, xlsr, "--name", "mine", "--normalize", "none")


def test_other_weights_in_the_same_folder_are_refused(data, xlsr, tmp_path):
    extract(data, xlsr)
    with pytest.raises(UserError, match="sha256"):
        extract(data, make_random(tmp_path / "other", 4, TINY))


def test_two_extractions_do_not_write_to_one_folder(data, xlsr):
    import fcntl

    folder = extract(data, xlsr)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another extraction"):
            extract(data, xlsr)


def test_much_unreadable_audio_fails_and_repaired_audio_is_taken_up(data, xlsr, monkeypatch):
    path = data / "wav" / "train-5.wav"
    good = path.read_bytes()
    path.write_bytes(b"junk")
    with pytest.raises(UserError, match="1 utterances .8.3 %.*unreadable_train.tsv"):
        extract(data, xlsr)
    folder = data / "features" / "frontend-cumulative"
    table = (folder / "unreadable_train.tsv").read_text().splitlines()
    assert len(table) == 2 and table[1].startswith("train-5\t") and str(path) in table[1]
    assert not (folder / "cuts_train.jsonl.gz").exists()
    before = shard_times(folder)
    path.write_bytes(good)
    lengths = computed(monkeypatch)
    extract(data, xlsr)
    assert shard_times(folder).items() > before.items() and lengths == [LENGTHS[5]]
    assert sum(1 for _ in load_feature_cuts(folder, "train")) == 10


def test_a_little_unreadable_audio_is_left_out_and_named(data, xlsr, monkeypatch):
    monkeypatch.setattr(extract_split, "MAX_UNREADABLE", 10.0)
    (data / "wav" / "train-5.wav").unlink()
    folder = extract(data, xlsr)
    ids = [cut.id for cut in load_feature_cuts(folder, "train")]
    assert len(ids) == 9 and "train-5" not in ids
    assert "no such audio file" in (folder / "unreadable_train.tsv").read_text()


def test_features_beyond_float16_are_an_error_not_infinity(data, xlsr, monkeypatch):
    forward = extractors.XlsrExtractor.forward

    def loud(self, waves):
        y, lens = forward(self, waves)
        return y * 1e9, lens

    monkeypatch.setattr(extractors.XlsrExtractor, "forward", loud)
    with pytest.raises(UserError, match="do not fit float16.*train-"):
        extract(data, xlsr)


@pytest.mark.parametrize(
    "options, reason",
    [
        ("--cut waveform", "nothing to extract"),
        ("--cut 4", "layer from 1 to 3"),
        ("--cut frontend --chunk-size 16", "no effect at --cut frontend"),
        ("--cut 2 --chunk-size 15", "multiple of the subsampling factor"),
        ("--cut 2 --attention-sink-size 4", "contradicts --chunk-size -1"),
        ("--cut 2 --chunk-size 16 --normalize utterance", "--normalize utterance needs"),
        ("--cut 2 --subset 0", "--subset 0: must be at least 1"),
        ("--splits dev", "the splits are train"),
        ("--extractor s3prl --cut frontend", "layers only"),
        ("--extractor s3prl --cut 2 --chunk-size 16 --normalize none", "knows no chunks"),
        ("--extractor s3prl --cut 2 --normalize cumulative", "normalises each utterance"),
    ],
)
def test_contradictory_options_are_refused_by_name(data, xlsr, options, reason):
    with pytest.raises(UserError, match=reason):
        extract(data, xlsr, *options.split())
    assert not (data / "features").exists()


def test_a_group_norm_front_end_is_refused_for_chunks(data, tmp_path):
    group = make_random(tmp_path / "group", 3, {**TINY, "feat_extract_norm": "group"})
    with pytest.raises(UserError, match="group norm"):
        extract(data, group, "--cut", "2", "--chunk-size", "16")


def test_missing_s3prl_says_how_to_install_it(data, xlsr, monkeypatch):
    monkeypatch.setitem(sys.modules, "s3prl", None)
    monkeypatch.setitem(sys.modules, "s3prl.nn", None)
    with pytest.raises(UserError, match="pip install s3prl==0.4.18"):
        extract(data, xlsr, "--extractor", "s3prl", "--cut", "2")


def test_features_to_use_are_named_when_there_are_none_or_several(data, xlsr):
    with pytest.raises(UserError, match="holds no features: make them with ./extract_features"):
        find_features(data)
    extract(data, xlsr, "--name", "a")
    extract(data, xlsr, "--name", "b")
    with pytest.raises(UserError, match="several features.*: a, b"):
        find_features(data)
    with pytest.raises(UserError, match="called c, only a, b"):
        find_features(data, "c")
    assert find_features(data, "b").name == "b"
    with pytest.raises(UserError, match="cuts_val.jsonl.gz is missing"):
        load_feature_cuts(find_features(data, "b"), "val")


def test_a_damaged_description_is_an_error(data, xlsr):
    folder = extract(data, xlsr)
    (folder / "features.json").write_text("{")
    with pytest.raises(UserError, match="features.json is damaged"):
        FeatureInfo.load(folder)
