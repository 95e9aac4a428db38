"""Stage 1 on corpora of other forms: Common Voice, Kaldi, NeMo, NIST files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse.kaldi import load_kaldi_data_dir
from lhotse.recipes.commonvoice import _parse_utterance

from local import prepare_manifests
from local.utterances import make_cut, read_utterances
from tests.support.corpora import (
    FOREIGN,
    import_corpus,
    imported,
    rejected,
    samples_of,
    write_audio,
    write_json_lines,
    write_lines,
)
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio import read_audio

RATE = 16000
CV_HEADER = "client_id path sentence_id sentence sentence_domain up_votes down_votes age gender"
CV_HEADER = [*CV_HEADER.split(), "accents", "variant", "locale", "segment"]


def common_voice(folder: Path, **tables: list[dict]) -> Path:
    """The folder of a language; clips that are not there yet are made."""
    for name, rows in tables.items():
        lines = ["\t".join(CV_HEADER)]
        for row in rows:
            row = {"client_id": "c0", "locale": "et", "up_votes": "2", **row}
            lines.append("\t".join(row.get(key, "") for key in CV_HEADER))
            clip = folder / "clips" / row["path"]
            if not clip.exists():
                clip.parent.mkdir(parents=True, exist_ok=True)
                wave = np.random.default_rng(len(lines)).normal(0, 0.1, 48000)
                soundfile.write(clip, wave, 48000, format="MP3")
        write_lines(folder / f"{name}.tsv", *lines)
    return folder


def clip(number: int, sentence: str, **more: str) -> dict[str, str]:
    return {"path": f"common_voice_et_{number}.mp3", "sentence": sentence, **more}


def test_common_voice_is_read_as_lhotse_reads_it(tmp_path):
    rows = [
        clip(1, '"Tere," ütles ta.', client_id="a1", age="twenties", gender="female"),
        clip(2, "Jah.", client_id="b2", accents="Saare, Hiiu", variant="saarte"),
    ]
    folder = common_voice(tmp_path / "cv" / "et", train=rows)
    found = import_corpus(folder / "train.tsv", tmp_path / "data", "--lang=fi")
    assert [s["language"] for s in found] == ["et", "et"]
    for s, row in zip(found, rows):
        row = {**dict.fromkeys(CV_HEADER, ""), **row}
        recording, expected = _parse_utterance(folder, "et", row)
        assert s["recording"]["sampling_rate"] == recording.sampling_rate
        assert s["recording"]["num_samples"] == recording.num_samples
        for key in ("id", "recording_id", "start", "duration", "channel", "text", "speaker"):
            assert s[key] == getattr(expected, key), key
        custom = {"gender": expected.gender, **expected.custom}
        columns = {key: value for key, value in custom.items() if value}
        assert s["custom"]["columns"] == {**columns, "locale": "et", "up_votes": "2"}
        assert s.get("gender", "") == expected.gender


def test_a_common_voice_folder_gives_each_split_its_table(tmp_path):
    folder = common_voice(
        tmp_path / "et", train=[clip(1, "üks")], dev=[clip(2, "kaks")], test=[clip(3, "kolm")]
    )
    lists = [f"--{split}-list=et={folder}" for split in ("train", "val", "test")]
    prepare_manifests.main([*lists, f"--data-dir={tmp_path / 'data'}"])
    for split, text in (("train", "üks"), ("val", "kaks"), ("test", "kolm")):
        assert [s["text"] for s in imported(tmp_path / "data", split)] == [text]
    (folder / "dev.tsv").unlink()
    with pytest.raises(UserError, match=r"without dev\.tsv"):
        prepare_manifests.main([*lists, f"--data-dir={tmp_path / 'data'}"])


def test_validated_as_training_leaves_out_the_official_dev_and_test(tmp_path, caplog):
    caplog.set_level("INFO")
    held_out = {"dev": [clip(2, "kaks")], "test": [clip(3, "kolm")]}
    everything = [clip(1, "üks"), *held_out["dev"], *held_out["test"], clip(4, "kolm")]
    folder = common_voice(tmp_path / "et", validated=everything, **held_out)
    lists = [f"--train-list={folder / 'validated.tsv'}", f"--val-list={folder}"]
    prepare_manifests.main([*lists, f"--test-list={folder}", f"--data-dir={tmp_path / 'data'}"])
    assert [s["text"] for s in imported(tmp_path / "data", "train")] == ["üks"]
    assert "2 lines left out: they are in the official dev.tsv or test.tsv" in caplog.text
    assert "1 lines left out: their sentence is in the official" in caplog.text
    assert not rejected(tmp_path / "data", "train")


def test_bad_lines_of_common_voice_have_their_reasons(tmp_path):
    folder = common_voice(tmp_path / "et", other=[clip(1, "üks"), clip(2, " ")])
    with open(folder / "other.tsv", "ab") as f:
        f.write(b"too\tshort\n\nc\tcommon_voice_et_1.mp3\t\xff" + b"\t" * 10 + b"\n")
    found = import_corpus(folder / "other.tsv", tmp_path / "data", "--max-rejected=90")
    assert [s["text"] for s in found] == ["üks"]
    reasons = rejected(tmp_path / "data")
    assert reasons == {3: "empty text", 4: "fields: 2 in place of 13", 6: "not UTF-8"}


# Kaldi


def kaldi_of_others(folder: Path) -> Path:
    """lhotse's folder, with audio in files in place of its pipes."""
    shutil.copytree(FOREIGN / "kaldi", folder)
    places = []
    for line in (folder / "reco2dur").read_text().splitlines():
        name, seconds = line.split()
        write_audio(folder / "wav" / f"{name}.wav", round(float(seconds) * RATE))
        places.append(f"{name} {folder / 'wav' / name}.wav")
    write_lines(folder / "wav.scp", *places)
    return folder


def same_as_lhotse(found: list[dict], folder: Path) -> None:
    recordings, expected, _ = load_kaldi_data_dir(folder, RATE)
    assert sorted(s["id"] for s in found) == sorted(expected.ids)
    for s in found:
        one, recording = expected[s["id"]], recordings[s["recording_id"]]
        for key in ("id", "recording_id", "channel", "text", "speaker"):
            assert s[key] == getattr(one, key), key
        assert s.get("gender") == one.gender
        assert s["start"] == pytest.approx(one.start, abs=0.5 / RATE)
        assert s["duration"] == pytest.approx(one.duration, abs=0.5 / RATE)
        assert s["recording"]["num_samples"] == recording.num_samples
        assert s["recording"]["sources"][0]["source"] == str(
            Path(recording.sources[0].source).resolve()
        )


def test_a_kaldi_folder_of_others_is_read_as_lhotse_reads_it(tmp_path):
    folder = kaldi_of_others(tmp_path / "kaldi")
    found = import_corpus(folder, tmp_path / "data", "--lang=en")
    same_as_lhotse(found, folder)
    assert {s["language"] for s in found} == {"en"}
    assert found[0]["custom"]["columns"] == {"gender": "m"}
    (folder / "segments").unlink()  # then an utterance is a recording
    same_as_lhotse(import_corpus(folder, tmp_path / "whole"), folder)


def meeting(folder: Path) -> Path:
    """Two recordings whose segments alternate, as their names begin with the speaker."""
    for name in ("m1", "m2"):
        write_audio(folder / f"{name}.wav", 3 * RATE)
    write_lines(folder / "wav.scp", f"m1 {folder}/m1.wav", f"m2 {folder}/m2.wav")
    rows = ["a-m1-1 m1 0.10 0.95", "a-m2-1 m2 0 1.123456", "b-m1-1 m1 0.9 2.5", "b-m2-1 m2 1.2 -1"]
    write_lines(folder / "segments", *rows)
    names = [row.split()[0] for row in rows]
    write_lines(folder / "text", *(f"{name} tere {name}" for name in names))
    write_lines(folder / "utt2spk", *(f"{name} {name[0]}" for name in names))
    write_lines(folder / "utt2lang", *(f"{n} {'et' if n[0] == 'a' else 'lv'}" for n in names))
    return folder


def test_segments_that_alternate_between_recordings_are_read_as_lhotse_reads_them(tmp_path):
    folder = meeting(tmp_path / "kaldi")
    found = import_corpus(folder, tmp_path / "data")
    same_as_lhotse(found, folder)
    assert [s["language"] for s in found] == ["et", "et", "lv", "lv"]
    pairs = [(r.id, s.id) for r, s in read_utterances(tmp_path / "data", "test")]
    assert pairs == [("m1", "a-m1-1"), ("m2", "a-m2-1"), ("m1", "b-m1-1"), ("m2", "b-m2-1")]
    found = import_corpus(f"fi={folder}", tmp_path / "finnish")
    assert {s["language"] for s in found} == {"fi"}


def test_tables_of_kaldi_in_another_order_or_with_other_ids_are_joined_by_id(tmp_path, caplog):
    caplog.set_level("INFO")
    folder = meeting(tmp_path / "kaldi")
    lines = (folder / "text").read_text().splitlines()
    write_lines(folder / "text", *lines[:0:-1], "zz more", "aa still more")
    found = import_corpus(folder, tmp_path / "data", "--max-rejected=30")
    assert [s["text"] for s in found] == [line.partition(" ")[2] for line in lines[1:]]
    assert rejected(tmp_path / "data") == {1: "empty text"}
    assert "2 lines left out: ids in text that have no audio" in caplog.text


@pytest.mark.parametrize("place", ["sph2pipe -f wav a.sph |", "| cat a.wav", "pipe:cat a.wav"])
def test_pipes_in_foreign_files_are_refused_and_never_run(tmp_path, place):
    folder = meeting(tmp_path / "kaldi")
    mark = tmp_path / "was-run"
    place = place.replace("a.", f"x; touch {mark}; cat x.")
    write_lines(folder / "wav.scp", f"m1 {folder}/m1.wav", f"m2 {place}")
    with pytest.raises(UserError, match=r"wav\.scp, line 2: asks for a program to be run"):
        import_corpus(folder, tmp_path / "data")
    assert not mark.exists() and not (tmp_path / "data/manifests/splits.json").exists()


def test_the_pipes_of_a_kaldi_folder_of_others_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"wav\.scp, line 1: asks .* \(sox -r 16000"):
        import_corpus(FOREIGN / "kaldi", tmp_path / "data")


def test_bad_lines_of_a_kaldi_folder_have_their_reasons(tmp_path):
    folder = meeting(tmp_path / "kaldi")
    with open(folder / "segments", "a") as f:
        f.write("c-1 m3 0 1\nc-2 m1 0 x\nc-3 m1\nc-4 m1 1 2\na-m1-1 m1 1 2\n")
    with open(folder / "text", "a") as f:
        f.write("c-1 a\nc-2 b\nc-3 c\n")
    assert len(import_corpus(folder, tmp_path / "data", "--max-rejected=60")) == 4
    reasons = {line: reason.split(":")[0] for line, reason in rejected(tmp_path / "data").items()}
    assert reasons == {
        5: "no such recording", 6: "times that are no seconds", 7: "fields", 8: "empty text",
        9: "empty text",
    }  # fmt: skip
    write_lines(folder / "wav.scp", "m1 raw.ark:1234", f"m2 {folder}/m2.wav")
    assert len(import_corpus(folder, tmp_path / "archive", "--max-rejected=80")) == 2
    assert "a place in an archive" in rejected(tmp_path / "archive")[1]
    (folder / "text").unlink()
    with pytest.raises(UserError, match="a Kaldi folder without text"):
        import_corpus(folder, tmp_path / "data")


# NeMo


def test_nemo_manifests_give_whole_files_and_segments(tmp_path):
    a = write_audio(tmp_path / "wav" / "a.wav", 2 * RATE)
    b = write_audio(tmp_path / "wav" / "b.wav", 3 * RATE)
    at = {"audio_filepath": "wav/b.wav"}
    path = write_json_lines(
        tmp_path / "train_manifest.json",
        {"audio_filepath": "wav/a.wav", "duration": 2.01, "text": "üks", "domain": "raadio"},
        {**at, "duration": 1.0, "offset": 0.5, "text": "kaks", "speaker": 7, "lang": "lv"},
        {**at, "duration": 1.0, "text": "kolm", "pnc": True, "tags": ["x"]},
        {**at, "duration": 1.0, "offset": 2.5, "text": "neli"},
        {**at, "duration": 4.0, "text": "viis"},
        {**at, "text": None},
        {"duration": 1.0, "text": "kuus"},
        {**at, "duration": "1", "text": "seitse"},
        {"audio_filepath": "https://example.org/a.wav", "text": "kaheksa"},
    )
    with open(path, "a") as f:
        f.write('{"audio_filepath": "wav/a.wav", \n[1]\n')
    found = import_corpus(path, tmp_path / "data", "--max-rejected=90")
    assert [(s["text"], s.get("speaker"), s["language"]) for s in found] == [
        ("üks", None, "et"), ("kaks", "7", "lv"), ("kolm", None, "et"),
    ]  # fmt: skip
    for s, expected in zip(found, [a, b[8000:24000], b[:16000]]):
        np.testing.assert_array_equal(samples_of(s), expected[:, 0])
    assert found[0]["custom"]["columns"] == {"domain": "raadio"}
    assert found[2]["custom"]["columns"] == {"pnc": "True"}
    reasons = {line: reason.split(":")[0] for line, reason in rejected(tmp_path / "data").items()}
    beyond = "segment beyond the recording"
    assert reasons == {
        4: beyond, 5: beyond, 6: "key text is no text", 7: "key audio_filepath is missing",
        8: "times that are no seconds", 9: "audio that is no file", 10: "not JSON", 11: "not JSON",
    }  # fmt: skip


def test_a_pipe_in_a_nemo_manifest_is_refused(tmp_path):
    row = {"audio_filepath": "cat a.wav |", "text": "üks"}
    path = write_json_lines(tmp_path / "m.jsonl", row)
    with pytest.raises(UserError, match=r"m\.jsonl, line 1: asks for a program"):
        import_corpus(path, tmp_path / "data")


def test_real_sphere_and_stereo_files_are_read(tmp_path):
    folder = FOREIGN / "audio"
    listed = write_lines(
        tmp_path / "list.txt",
        f"{folder}/chan3.sph|0.5|1|üks|m",
        f"{folder}/chan3.2chan.wav|0|2|k|m",
    )
    found = import_corpus(listed, tmp_path / "data", "--channel=1")
    assert [(s["channel"], len(samples_of(s))) for s in found] == [(0, 5512), (1, 22050)]
    assert {s["recording"]["sampling_rate"] for s in found} == {11025}
    cuts = [make_cut(*pair, "x") for pair in read_utterances(tmp_path / "data", "test")]
    assert [len(read_audio(cut)) for cut in cuts] == [7999, 32000]


def test_splits_json_is_written_as_ever(tmp_path):
    folder = meeting(tmp_path / "kaldi")
    import_corpus(folder, tmp_path / "data")
    splits = json.loads((tmp_path / "data/manifests/splits.json").read_text())
    assert splits == {"train": [], "val": [], "test": ["test"]}
