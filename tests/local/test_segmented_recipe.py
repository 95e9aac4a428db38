"""The whole recipe on utterances that are segments of one long recording with two channels.

What is computed from a segment must be what is computed from the same audio in a file.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from local import (
    extract_features,
    make_shar,
    prepare_lang,
    prepare_manifests,
    prepare_text,
    validate_manifests,
)
from tests.support.tiny_recipe import run_train
from xlsr_transducer import decode
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.data.cuts import load_cuts
from xlsr_transducer.data.features import load_feature_cuts, read_features


def join(lists: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Puts the utterances of all lists into channel 1 of one recording, with pauses; returns
    lists with times."""
    pieces, at, made = [], 0, {}
    for split, path in lists.items():
        rows = ["#path|start|end|text|speaker|half"]
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            name, text, speaker = line.split("|")
            wave, rate = soundfile.read(path.parent / name, dtype="int16")
            start, at = at, at + len(wave)
            pieces += [wave, np.full(1111, 99, np.int16)]
            half = "odd" if i % 2 else "even"
            rows.append(f"long.flac|{start / rate:.8f}|{at / rate:.8f}|{text}|{speaker}|{half}")
            at += 1111
        made[split] = folder / f"{split}.txt"
        made[split].write_text("\n".join(rows) + "\n", encoding="utf-8")
    speech = np.concatenate(pieces)
    noise = np.random.default_rng(0).integers(-9, 9, len(speech), dtype=np.int16)
    soundfile.write(folder / "long.flac", np.stack([noise, speech], 1), rate)
    return made


@pytest.fixture(scope="module")
def segmented(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder of the same utterances as ``corpus``, after stages 1 to 3."""
    folder = tmp_path_factory.mktemp("segmented")
    demo = {"train": "train", "val": "val", "test": "test_seen"}
    lists = join({split: corpus / "demo" / f"{name}.txt" for split, name in demo.items()}, folder)
    options = [f"--{split}-list={path}" for split, path in lists.items()]
    data = folder / "data"
    prepare_manifests.main([*options, f"--data-dir={data}", "--channel=1"])
    prepare_text.main([f"--data-dir={data}"])
    prepare_lang.main([f"--data-dir={data}", "--vocab-size=60"])
    level = ["--cut=frontend", "--single-process"]
    extract_features.main([f"--data-dir={data}", f"--xlsr={corpus / 'toy_xlsr'}", *level])
    return data


def pairs(segmented: Path, corpus: Path, folder: str) -> list[tuple]:
    """The cuts of both corpora, by the order of the lists."""
    loaded = (load_cuts(d / folder / "cuts_train.jsonl.gz") for d in (segmented, corpus))
    found = list(zip(*loaded, strict=True))
    assert found and all(a.supervisions[0].text == b.supervisions[0].text for a, b in found)
    return found


def test_segments_have_the_audio_and_the_features_of_files(segmented, corpus):
    for part, whole in pairs(segmented, corpus, "manifests"):
        assert part.channel == 1 and part.supervisions[0].start == 0
        np.testing.assert_array_equal(read_audio(part), read_audio(whole))
    folders = [next((d / "features").iterdir()) for d in (segmented, corpus)]
    cuts = [load_feature_cuts(folder, "train") for folder in folders]
    for part, whole in zip(*cuts, strict=True):
        a, b = read_features(part), read_features(whole)
        assert a.shape == b.shape and part.start == part.features.start
        np.testing.assert_allclose(a, b, atol=2e-3, rtol=2e-3)  # rounding of other batches


def test_stage_4_finds_nothing_wrong_and_counts_seconds_of_segments(segmented, corpus):
    validate_manifests.main([f"--data-dir={segmented}", f"--lang-dir={segmented}/lang_bpe_60"])
    table = (segmented / "statistics.txt").read_text()
    expected = sum(cut.duration for cut in load_cuts(corpus / "manifests/cuts_train.jsonl.gz"))
    [hours] = [line for line in table.splitlines() if line.startswith("hours")]
    assert float(hours.split()[1]) == pytest.approx(expected / 3600, abs=0.006)


def test_segments_are_trained_on_and_decoded_like_files(
    segmented, corpus, streaming_exp, tmp_path
):
    waveform = ["--cut", "waveform", "--xlsr", str(corpus / "toy_xlsr"), "--num-epochs", "1"]
    assert not run_train(segmented, tmp_path / "exp", *waveform)
    (tmp_path / "model").mkdir()  # without results of other tests
    for file in streaming_exp.glob("*.*"):
        if file.is_file():
            shutil.copy(file, tmp_path / "model")
    model = tmp_path / "model"
    found = []
    for data, split in ((segmented, "test"), (corpus, "test_seen")):
        where = f"--manifest={data}/manifests/cuts_{split}.jsonl.gz"
        assert decode.main([f"--exp-dir={model}", where, "--num-workers=0"]) == 0
        [path] = model.rglob(f"utterances-{split}-*.jsonl")
        found.append([json.loads(line) for line in path.read_text().splitlines()])
        [errors] = model.rglob(f"errs-{split}-*.txt")
        assert ("BY HALF" in errors.read_text()) == (data == segmented)
    texts = [{(row["ref"], row["hyp"]) for row in rows} for rows in found]
    assert texts[0] == texts[1]
    assert {row["columns"]["half"] for row in found[0]} == {"odd", "even"}


def test_segments_are_packed_as_shar_of_audio(segmented, tmp_path):
    make_shar.main([f"--data-dir={segmented}", f"--out-dir={tmp_path / 'shar'}"])
    packed = load_cuts(tmp_path / "shar/manifests/cuts_train.jsonl.gz")
    cuts = load_cuts(segmented / "manifests/cuts_train.jsonl.gz")
    for one, part in zip(packed, cuts, strict=True):
        expected = read_audio(part)
        np.testing.assert_allclose(read_audio(one), expected, atol=2**-15)
    shards = {"cuts": [], "recording": []}
    for field in shards:
        shards[field] = sorted(map(str, (tmp_path / "shar/train").glob(f"{field}.*")))
    assert [c.id for c in CutSet.from_shar(fields=shards)] == [c.id for c in cuts]
