"""Stage 1 on data sets of Hugging Face: on disk, as parquet, and streamed by name."""

from __future__ import annotations

import builtins
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from local import prepare_manifests
from local.importers.columns import Roles, columns_option
from tests.support.corpora import import_corpus, imported, rejected, samples_of, write_audio
from xlsr_transducer.core.errors import UserError

datasets = pytest.importorskip("datasets")

RATE = 16000


@pytest.fixture(autouse=True)
def without_network(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def waves(tmp_path) -> dict[str, np.ndarray]:
    return {f"{n}.wav": write_audio(tmp_path / f"{n}.wav", RATE + i) for i, n in enumerate("abcd")}


def table(folder: Path, names: str = "abcd", **columns: list) -> datasets.Dataset:
    """A data set whose audio is embedded, as on the hub."""
    found = {
        "audio": [
            {"path": f"{n}.wav", "bytes": (folder / f"{n}.wav").read_bytes()} for n in names
        ],
        "sentence": [f"lause {n}" for n in names],
        "client_id": [f"k-{n}" for n in names],
        "age": [20, None, 30, 40][: len(names)],
        "gender": [0, 1, -1, 1][: len(names)],
        **columns,
    }
    features = datasets.Features({
        "audio": datasets.Audio(sampling_rate=RATE), "sentence": datasets.Value("string"),
        "client_id": datasets.Value("string"), "age": datasets.Value("int64"),
        "gender": datasets.ClassLabel(names=["naine", "mees"]),
        **{name: datasets.Value("string") for name in columns},
    })  # fmt: skip
    return datasets.Dataset.from_dict(found).cast(features)


def is_whole(found: list[dict], waves: dict[str, np.ndarray], names: str = "abcd") -> None:
    assert [s["id"] for s in found] == [*names]
    assert [s["text"] for s in found] == [f"lause {n}" for n in names]
    assert [s["speaker"] for s in found] == [f"k-{n}" for n in names]
    for s, name in zip(found, names):
        np.testing.assert_array_equal(samples_of(s), waves[f"{name}.wav"][:, 0])


def test_a_saved_data_set_is_read_and_its_audio_written_once(tmp_path, waves, caplog):
    caplog.set_level("INFO")
    table(tmp_path).save_to_disk(tmp_path / "saved")
    data = tmp_path / "data"
    found = import_corpus(tmp_path / "saved", data)
    is_whole(found, waves)
    assert "audio in audio, text in sentence, speaker in client_id" in caplog.text
    assert [s["custom"]["columns"] for s in found] == [
        {"age": "20", "gender": "naine"}, {"gender": "mees"}, {"age": "30"},
        {"age": "40", "gender": "mees"},
    ]  # fmt: skip
    files = sorted((data / "audio").rglob("*.wav"))
    assert [f.name for f in files] == [f"0000000{n}.wav" for n in (1, 2, 3, 4)]
    before = [f.stat().st_mtime_ns for f in files]
    manifests = {p.name: p.read_bytes() for p in (data / "manifests").iterdir()}
    import_corpus(tmp_path / "saved", data)
    assert [f.stat().st_mtime_ns for f in files] == before
    assert {p.name: p.read_bytes() for p in (data / "manifests").iterdir()} == manifests
    # A data set that was changed is read anew.
    shutil.rmtree(tmp_path / "saved")
    table(tmp_path, "ab").save_to_disk(tmp_path / "saved")
    is_whole(import_corpus(tmp_path / "saved", data), waves, "ab")


def test_an_interrupted_import_goes_on_where_it_stopped(tmp_path, waves, monkeypatch):
    table(tmp_path).save_to_disk(tmp_path / "saved")
    data, written = tmp_path / "data", []
    module = prepare_manifests.open_corpora.__globals__["hugging_face"]
    write = module.write_bytes

    def fail_at_the_third(path: Path, content: bytes) -> None:
        if len(written) == 2:
            raise ConnectionError("the network is away\nin many words")
        written.append(path.name)
        write(path, content)

    monkeypatch.setattr(module, "write_bytes", fail_at_the_third)
    message = r"saved: stopped after 2 rows \(the network is away\); start again to resume"
    with pytest.raises(UserError, match=message):
        import_corpus(tmp_path / "saved", data)
    assert not (data / "manifests" / "supervisions_test.jsonl.gz").exists()
    [journal] = data.glob("audio/*/rows.jsonl")
    with open(journal, "a") as f:
        f.write('{"path": "half a li')
    monkeypatch.setattr(module, "write_bytes", lambda *a: (written.append(a[0].name), write(*a)))
    is_whole(import_corpus(tmp_path / "saved", data), waves)
    assert written == [f"0000000{n}.wav" for n in (1, 2, 3, 4)]
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert len(lines) == 6 and lines[-1] == {"complete": True}


@pytest.mark.parametrize("form", ["dict", "parquet", "name"])
def test_each_role_has_its_split(tmp_path, waves, form):
    parts = {"train": "ab", "validation": "c", "test": "d"}
    made = {name: table(tmp_path, names) for name, names in parts.items()}
    folder, lists = tmp_path / "set", []
    if form == "dict":
        datasets.DatasetDict(made).save_to_disk(folder)
    else:
        for name, one in made.items():
            (folder / "data").mkdir(parents=True, exist_ok=True)
            one.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    given = f"hf:{folder}" if form == "name" else folder
    lists = [f"--{split}-list={given}" for split in ("train", "val", "test")]
    prepare_manifests.main([*lists, f"--data-dir={tmp_path / 'data'}"])
    for split, names in zip(("train", "val", "test"), parts.values()):
        is_whole(imported(tmp_path / "data", split), waves, names)
    if form == "name":
        found = import_corpus(f"{given}::train", tmp_path / "other")
        is_whole(found, waves, "ab")
        with pytest.raises(UserError, match="::nosuch: cannot be read"):
            import_corpus(f"{given}::nosuch", tmp_path / "other")


def test_audio_in_files_stays_where_it_is(tmp_path, waves):
    rows = {"audio": [str(tmp_path / "a.wav"), "gone.wav"], "text": ["üks", "kaks"]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    [found] = import_corpus(tmp_path / "saved", tmp_path / "data", "--max-rejected=50")
    assert found["recording"]["sources"][0]["source"] == str((tmp_path / "a.wav").resolve())
    assert rejected(tmp_path / "data") == {2: "missing file"}


def test_an_ending_is_found_where_the_data_set_names_none(tmp_path):
    soundfile.write(tmp_path / "x.flac", np.ones(1600, np.int16), RATE)
    rows = {
        "audio": [{"path": None, "bytes": (tmp_path / "x.flac").read_bytes()}],
        "text": ["üks"],
    }
    rows = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio())
    rows.save_to_disk(tmp_path / "saved")
    [found] = import_corpus(tmp_path / "saved", tmp_path / "data")
    assert os.path.basename(found["recording"]["sources"][0]["source"]) == "00000001.flac"
    assert found["id"] == "00000001"


def test_columns_that_may_be_the_text_are_refused_by_name_and_can_be_given(tmp_path, waves):
    table(tmp_path, text=["x"] * 4, id=["u1", "u2", "u3", "u4"]).save_to_disk(tmp_path / "saved")
    message = r"text may be text or sentence: give --columns text=NAME, one of audio, sentence"
    with pytest.raises(UserError, match=message):
        import_corpus(tmp_path / "saved", tmp_path / "data")
    option = "--columns=text=sentence,speaker=age"
    found = import_corpus(tmp_path / "saved", tmp_path / "data", option)
    assert [s["id"] for s in found] == ["u1", "u2", "u3", "u4"]
    assert [s["text"] for s in found] == [f"lause {n}" for n in "abcd"]
    assert found[0]["speaker"] == "20" and found[0]["custom"]["columns"]["client_id"] == "k-a"
    with pytest.raises(UserError, match="no column nosuch; there are audio, sentence"):
        import_corpus(tmp_path / "saved", tmp_path / "data", "--columns=text=nosuch")
    with pytest.raises(UserError, match="ROLE=NAME"):
        import_corpus(tmp_path / "saved", tmp_path / "data", "--columns=words=text")


def test_a_table_without_text_is_refused():
    features = {"audio": datasets.Audio(), "labels": datasets.Value("string")}
    with pytest.raises(UserError, match="x: the column of the text has no usual name: give"):
        Roles.of(features, {}, "x")
    roles = Roles.of(features, columns_option("text=labels"), "x")
    assert (roles.audio, roles.text, roles.speaker) == ("audio", "labels", "")


def test_a_missing_library_is_named(tmp_path, waves, monkeypatch):
    table(tmp_path).save_to_disk(tmp_path / "saved")
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="needs the package datasets: pip install datasets"):
        import_corpus(tmp_path / "saved", tmp_path / "data")


def test_code_in_the_folder_of_a_data_set_is_not_run(tmp_path, waves):
    folder = tmp_path / "set"
    folder.mkdir()
    table(tmp_path).to_parquet(folder / "test.parquet")
    mark = tmp_path / "was-run"
    (folder / "set.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    is_whole(import_corpus(folder, tmp_path / "data"), waves)
    try:
        import_corpus(f"hf:{folder}", tmp_path / "name")
    except UserError:
        pass
    assert not mark.exists()
