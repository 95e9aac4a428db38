"""prepare.sh as a user calls it, and stage 4, which checks what the others left."""

from __future__ import annotations

import fcntl
import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from local import prepare_manifests, prepare_text, validate_manifests
from local.manifests import JsonlGzWriter, read_jsonl_gz
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.sources import cuts_digest, note_source, text_digest
from xlsr_transducer.model.feature_info import FeatureInfo

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, cwd: Path, script: str = "prepare.sh") -> subprocess.CompletedProcess:
    command = ["bash", str(ROOT / script), *arguments]
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {"VIRTUAL_ENV": sys.prefix, "PATH": path}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """Stages 1, 2 and 4 from lists in another folder, by relative paths; a file is missing."""
    folder = tmp_path_factory.mktemp("my corpus")
    for split, count in (("train", 4), ("val", 2), ("easy", 1), ("hard", 1)):
        lines = [f"audio/{split}{i}.wav|Tere {split} maailm|s{i}\n" for i in range(count)]
        for i in range(count):
            (folder / "audio").mkdir(exist_ok=True)
            soundfile.write(folder / f"audio/{split}{i}.wav", np.zeros(4000 + 80 * i), 8000)
        if split == "train":
            lines.append("audio/none.wav|tere|s\n")
        (folder / f"{split}.txt").write_text("".join(lines))
    lists = ["--train-list", "train.txt", "--val-list=val.txt", "--test-list", "easy.txt"]
    rest = ["--test-list=hard.txt", "--data-dir", "out", "--vocab-size=20", "--max-rejected", "25"]
    first = run("--stage", "1", "--stop-stage", "2", *lists, *rest, cwd=folder)
    assert first.returncode == 0, first.stderr
    second = run("--stage", "4", "--data-dir", "out", "--vocab-size", "20", cwd=folder)
    return folder / "out", second


def copy_of(prepared, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared[0], tmp_path / "out"))


def test_stages_run_from_anywhere_on_relative_lists(prepared):
    data, result = prepared
    assert result.returncode == 0, result.stderr
    splits = json.loads((data / "manifests/splits.json").read_text())
    assert splits["test"] == ["easy", "hard"]
    assert (data / "lang_bpe_20/tokens.txt").is_file()
    assert "none.wav" in (data / "manifests/rejected_train.tsv").read_text()
    assert not (data / "features").exists()


def test_statistics_are_a_table_and_a_picture(prepared):
    data, result = prepared
    text = (data / "statistics.txt").read_text()
    assert text in result.stdout
    rows = {line.split("  ")[0]: line.split()[-4:] for line in text.splitlines()[1:]}
    assert rows["utterances"] == ["4", "2", "1", "1"]
    assert rows["speakers"] == ["4", "2", "1", "1"]
    assert rows["words"] == ["12", "6", "3", "3"]
    assert rows["seconds, shortest"] == ["0.50"] * 4
    assert rows["seconds, longest"] == ["0.53", "0.51", "0.50", "0.50"]
    assert float(rows["tokens per second"][0]) > 1
    assert (data / "statistics.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nonsense", "1"], "unknown option --nonsense"),
        (["--stage"], "--stage needs a value"),
        (["--stage", "one"], "--stage one: must be a stage, from 0 to 7"),
        (["--stop-stage", "8"], "--stop-stage 8: must be a stage, from 0 to 7"),
        (["--vocab-size", "0"], "--vocab-size 0: must be a whole number above 0"),
        (["--vocab-size", "-1"], "--vocab-size -1: must be a whole number above 0"),
        (["--lang", ""], "--lang needs a value"),
        (["--data-dir="], "--data-dir needs a value"),
        (["lists"], "unexpected argument 'lists'"),
        (["--train-list", "a.txt"], "--train-list and --val-list"),
        (["--stage", "1", "--data-dir", "nowhere"], "no lists"),
    ],
)
def test_bad_options_are_one_line_and_status_2(tmp_path, arguments, message):
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and message in result.stderr
    assert not list(tmp_path.iterdir())


def add_test_list(folder: Path, name: str) -> None:
    folder.mkdir(exist_ok=True)
    soundfile.write(folder / f"{name}.wav", np.zeros(4000), 8000)
    (folder / f"{name}.txt").write_text(f"{name}.wav|Tere uus!|s9\n")


def test_test_lists_alone_make_test_sets_beside_a_corpus_or_in_a_new_folder(prepared, tmp_path):
    data = copy_of(prepared, tmp_path)
    add_test_list(tmp_path / "lists", "new")
    before = {p: p.read_bytes() for p in data.rglob("*train*") if p.is_file()}
    bpe = (data / "lang_bpe_20/bpe.model").stat().st_mtime_ns
    result = run("--stop-stage=2", "--test-list=lists/new.txt", "--data-dir=out", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    splits = {"train": ["train"], "val": ["val"], "test": ["easy", "hard", "test"]}
    assert json.loads((data / "manifests/splits.json").read_text()) == splits
    assert {p: p.read_bytes() for p in before} == before
    assert (data / "lang_bpe_20/bpe.model").stat().st_mtime_ns == bpe
    [cut] = read_jsonl_gz(data / "manifests/cuts_test.jsonl.gz")
    assert (cut["id"], cut["supervisions"][0]["text"]) == ("new", "tere uus")
    validate_manifests.main(["--data-dir", str(data)])
    fresh = f"--data-dir={tmp_path / 'fresh'}"
    prepare_manifests.main([f"--test-list={tmp_path / 'lists/new.txt'}", fresh])
    prepare_text.main(["--only-tests", fresh])
    splits = {"train": [], "val": [], "test": ["test"]}
    assert json.loads((tmp_path / "fresh/manifests/splits.json").read_text()) == splits
    validate_manifests.main([fresh])


def test_a_test_list_beside_a_corpus_may_not_contradict_it(prepared, tmp_path):
    data = copy_of(prepared, tmp_path)
    audio = prepared[0].parent / "audio" / "train0.wav"
    (tmp_path / "same.txt").write_text(f"{audio}|tere|s\n")
    add_test_list(tmp_path, "new")
    where = f"--data-dir={data}"
    with pytest.raises(UserError, match="is in two splits: line 1 of the train"):
        prepare_manifests.main([f"--test-list={tmp_path / 'same.txt'}", where])
    prepare_manifests.main([f"--test-list={tmp_path / 'new.txt'}", where])
    with pytest.raises(UserError, match="keep: the training text was made with in-word"):
        prepare_text.main(["--only-tests", "--punctuation=keep", where])
    assert not (data / "manifests" / "cuts_test.jsonl.gz").exists()


def test_a_second_prepare_in_one_data_folder_is_refused_until_the_first_ends(prepared, tmp_path):
    copy_of(prepared, tmp_path)
    with open(tmp_path / "out" / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = run("--stage=4", "--data-dir=out", cwd=tmp_path)
        assert result.returncode == 2
        assert result.stderr == "error: another prepare.sh is working in out: wait for it\n"
    # That it works afterwards, the second run in ``prepared`` shows.


@pytest.mark.long
def test_relative_paths_begin_where_the_user_stands_for_every_script(tmp_path):
    (tmp_path / "local").mkdir()  # as icefall's recipes have it
    (tmp_path / "local" / "__init__.py").write_text("raise SystemExit('a foreign program')")
    (tmp_path / "my.yaml").write_text("nonsense: 1\n")
    result = run("--conf", "my.yaml", cwd=tmp_path, script="train.sh")
    assert result.returncode == 2 and "my.yaml:1:" in result.stderr
    (tmp_path / "data" / "manifests").mkdir(parents=True)
    (tmp_path / "data" / "manifests" / "splits.json").write_text("")
    for script, options in (("prepare.sh", ["--stage=4"]), ("extract_features.sh", [])):
        result = run(*options, cwd=tmp_path, script=script)
        if sys.version_info >= (3, 11):  # from there on Python can leave out the current folder
            message = "error: data/manifests/splits.json is damaged"
            assert result.returncode == 2 and message in result.stderr


def test_help_names_every_stage(tmp_path):
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0
    assert [f"stage {i} " in result.stdout for i in range(6)] == [True] * 6


def edit_cut(data: Path, split: str, **changes) -> None:
    """Changes the first cut of a split: name=value, supervision_name=value."""
    path = data / f"manifests/cuts_{split}.jsonl.gz"
    cuts = list(read_jsonl_gz(path))
    for name, value in changes.items():
        if name.startswith("supervision_"):
            cuts[0]["supervisions"][0][name.removeprefix("supervision_")] = value
        else:
            cuts[0][name] = value
    with JsonlGzWriter(path) as writer:
        for cut in cuts:
            writer.write(cut)


@pytest.mark.parametrize(
    ("split", "changes", "kind"),
    [
        ("train", {"duration": 0.0}, "not a positive number"),
        ("train", {"duration": float("nan")}, "not a positive number"),
        ("train", {"duration": 9.0}, "the cut reaches beyond"),
        ("train", {"supervision_duration": 9.0}, "the supervision reaches beyond"),
        ("train", {"supervision_text": " "}, "text is empty"),
        ("train", {"supervisions": []}, "exactly one supervision"),
        ("train", {"id": "train1"}, "same id occurs twice"),
        ("val", {"id": "train1"}, "same id occurs in train"),
    ],
)
def test_each_defect_of_a_cut_is_found(prepared, tmp_path, caplog, split, changes, kind):
    data = copy_of(prepared, tmp_path)
    edit_cut(data, split, **changes)
    with pytest.raises(UserError, match=kind):
        validate_manifests.main(["--data-dir", str(data)])
    assert f"cuts_{split}.jsonl.gz" in caplog.text


def test_the_same_audio_in_two_splits_is_found(prepared, tmp_path):
    data = copy_of(prepared, tmp_path)
    [cut] = read_jsonl_gz(data / "manifests/cuts_easy.jsonl.gz")
    edit_cut(data, "hard", recording={**cut["recording"], "id": "hard0"})
    with pytest.raises(UserError, match="same audio occurs in easy"):
        validate_manifests.main(["--data-dir", str(data)])


def make_features(data: Path, extra_frames: int = 0, dim: int = 4, short: bool = False) -> None:
    folder = data / "features/frontend"
    info = FeatureInfo(xlsr="x", sha256="0", cut="frontend", normalize="none", feature_dim=4)
    info.save(folder)
    for split in ("train", "val", "easy", "hard"):
        with JsonlGzWriter(folder / f"cuts_{split}.jsonl.gz") as writer:
            for cut in read_jsonl_gz(data / f"manifests/cuts_{split}.jsonl.gz"):
                samples = cut["recording"]["num_samples"] * 2
                cut["recording"].update(sampling_rate=16000, num_samples=samples)
                frames = (samples - 400) // 320 + 1 + extra_frames
                array = np.zeros((frames - short, dim), np.float16)
                np.save(folder / f"{cut['id']}.npy", array)
                cut["features"] = {
                    "num_frames": frames, "num_features": dim, "storage_type": "numpy_files",
                    "storage_path": ".", "storage_key": f"{cut['id']}.npy",
                }  # fmt: skip
                writer.write(cut)
        digest = cuts_digest(data / f"manifests/cuts_{split}.jsonl.gz")
        note_source(folder, f"cuts_{split}.jsonl.gz", digest)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({}, None),
        ({"extra_frames": 1}, "number of frames"),
        ({"dim": 5}, "feature dimension"),
        ({"short": True, "dim": 400}, "too short"),
    ],
)
def test_features_are_checked_against_the_audio(prepared, tmp_path, arguments, kind):
    data = copy_of(prepared, tmp_path)
    make_features(data, **arguments)
    if kind is None:
        validate_manifests.main(["--data-dir", str(data)])
    else:
        with pytest.raises(UserError, match=kind):
            validate_manifests.main(["--data-dir", str(data)])


def test_text_too_long_for_its_audio_is_named(prepared, tmp_path, caplog):
    data = copy_of(prepared, tmp_path)
    edit_cut(data, "train", supervision_text="tere maailm " * 20)
    note_source(data / "lang_bpe_20", "bpe.model", text_digest(data))
    validate_manifests.main(["--data-dir", str(data), "--lang-dir", str(data / "lang_bpe_20")])
    assert "more tokens than 40 ms frames, such as train0" in caplog.text


def test_manifests_are_gzip_without_time_or_name(prepared):
    header = (prepared[0] / "manifests/cuts_train.jsonl.gz").read_bytes()[:10]
    assert header[3] == 0 and header[4:8] == bytes(4)
    gzip.decompress((prepared[0] / "manifests/cuts_train.jsonl.gz").read_bytes())
