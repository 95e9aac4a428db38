"""Stored features: right numbers, right lengths, the same for any number of workers."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, MonoCut, Recording

from local import extract_shard
from local.extract_shard import make_batches, plan_shards, shard_seconds
from local.extractors import make_extractor
from local.manifests import JsonlGzWriter, manifest_path, read_jsonl_gz
from tests.support.noise_corpus import LENGTHS, WIDTH, extract, write_split
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.data.features import find_features, load_feature_cuts
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.wav2vec2 import Wav2Vec2
from xlsr_transducer.model.xlsr_checkpoint import load_xlsr

ROOT = Path(__file__).resolve().parents[2]


def num_frames(samples: int) -> int:
    return (samples - 400) // 320 + 1


@pytest.mark.parametrize(
    "options, cut, normalize, chunk",
    [
        (["--cut", "frontend"], "frontend", "cumulative", (-1, -1, 0)),
        (["--cut", "2", "--normalize", "utterance"], "2", "utterance", (-1, -1, 0)),
        (["--cut", "last", "--normalize", "none"], "last", "none", (-1, -1, 0)),
        (
            "--cut 3 --chunk-size 8 --left-context-chunks 1 --attention-sink-size 2".split(),
            "3",
            "cumulative",
            (8, 1, 2),
        ),
    ],
)
def test_stored_features_are_the_forward_of_each_wave_alone(
    data, xlsr, options, cut, normalize, chunk
):
    folder = extract(data, xlsr, *options)
    checkpoint = load_xlsr(str(xlsr))
    network = Wav2Vec2(checkpoint.config, end=cut, normalize=normalize).eval()
    network.load_state_dict({k: checkpoint.weights[k] for k in network.state_dict()})
    cuts = list(load_feature_cuts(folder, "train"))
    assert len(cuts) == 10
    for entry in cuts:
        wave = torch.from_numpy(read_audio(entry))
        with torch.no_grad():
            expected, _ = network(wave[None], torch.tensor([len(wave)]), *chunk)
        stored = entry.load_features()
        assert stored.dtype == np.float16
        assert stored.shape == expected[0].shape == (num_frames(len(wave)), network_width(cut))
        np.testing.assert_allclose(stored, expected[0].numpy(), rtol=1e-3, atol=1e-5)


def network_width(cut: str) -> int:
    return 16 if cut == "frontend" else WIDTH


def test_layer_features_are_those_of_hugging_face(data, xlsr):
    transformers = pytest.importorskip("transformers")
    reference = transformers.Wav2Vec2Model.from_pretrained(xlsr).eval()
    folder = extract(data, xlsr, "--cut", "2", "--normalize", "none")
    for cut in load_feature_cuts(folder, "train"):
        wave = torch.from_numpy(read_audio(cut))[None]
        with torch.no_grad():
            expected = reference(wave, output_hidden_states=True).hidden_states[2]
        np.testing.assert_allclose(cut.load_features(), expected[0], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("cut", ["2", "last"])
def test_s3prl_gives_the_same_features(data, xlsr, cut):
    pytest.importorskip("s3prl.nn", exc_type=Exception)
    options = ("--cut", cut, "--normalize", "utterance")
    ours = load_feature_cuts(extract(data, xlsr, *options), "train")
    theirs = load_feature_cuts(extract(data, xlsr, *options, "--extractor", "s3prl"), "train")
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(
            mine.load_features(), other.load_features(), rtol=1e-3, atol=1e-4
        )


def test_lhotse_reads_the_tar_files_in_order_also_from_a_pipe(data, xlsr):
    folder = extract(data, xlsr, "--cut", "2")
    expected = {cut.id: cut for cut in load_feature_cuts(folder, "train")}
    commands = {"cuts": "gzip -dc", "features": "cat"}  # lhotse takes lines of text from a pipe
    fields = {
        field: [f"pipe:{command} {p}" for p in sorted((folder / "train").glob(f"{field}.*"))]
        for field, command in commands.items()
    }
    assert len(fields["features"]) == 3
    for cuts in (CutSet.from_shar(in_dir=folder / "train"), CutSet.from_shar(fields=fields)):
        found = {cut.id: cut for cut in cuts}
        assert found.keys() == expected.keys()
        for name, cut in found.items():
            assert cut.start == 0 and cut.duration == expected[name].duration
            assert cut.supervisions == expected[name].supervisions
            assert np.array_equal(cut.load_features(), expected[name].load_features())


def test_an_utterance_that_left_the_lists_has_no_text_in_the_tar_files(data, xlsr):
    folder = extract(data, xlsr)
    write_split(data, "train", LENGTHS[:-1])
    extract(data, xlsr)
    found = {cut.id: cut.supervisions for cut in CutSet.from_shar(in_dir=folder / "train")}
    assert found.pop("train-11") == [] and len(found) == 9 and all(found.values())


def test_a_part_of_a_recording_gives_what_the_same_audio_in_a_file_of_its_own_gives(
    tmp_path, xlsr
):
    """For a channel that is not the first, and rates that are resampled; each a batch, as rows of
    one batch may be rounded differently."""
    data = tmp_path / "data"
    for rate in (16000, 8000):
        audio = np.random.default_rng(rate).uniform(-0.3, 0.3, (4 * rate, 2)).astype("float32")
        long, alone = data / f"long-{rate}.wav", data / f"alone-{rate}.wav"
        data.mkdir(exist_ok=True)
        soundfile.write(long, audio, rate, subtype="FLOAT")
        soundfile.write(alone, audio[rate : rate * 3, 1], rate, subtype="FLOAT")
        recording = Recording.from_file(long)
        part = MonoCut(f"part-{rate}", 1.0, 2.0, channel=1, recording=recording)
        whole = MonoCut(f"whole-{rate}", 0.0, 2.0, channel=0, recording=Recording.from_file(alone))
        manifest = manifest_path(data, "cuts", "train")
        manifest.parent.mkdir(exist_ok=True)
        (manifest.parent / "splits.json").write_text('{"train": ["train"], "val": [], "test": []}')
        with JsonlGzWriter(manifest) as writer:
            for cut in (part, whole):
                writer.write(cut)
        folder = extract(data, xlsr, "--cut", "2", "--name", str(rate), "--max-duration", "2")
        first, second = (cut.load_features() for cut in load_feature_cuts(folder, "train"))
        assert first.shape == (99, WIDTH) and np.array_equal(first, second)


def test_a_shard_that_two_workers_compute_is_one_shard(data, xlsr):
    folder = extract(data, xlsr)
    before = stored_files(folder)
    cuts = tuple(read_jsonl_gz(manifest_path(data, "cuts", "train")))
    extractor = make_extractor(load_xlsr(str(xlsr)), FeatureInfo.load(folder), "cpu")
    shard = next(plan_shards("train", cuts, 2.0))
    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            pool.submit(extract_shard.extract_shard, shard, folder, extractor, 4.0, lambda s: None)
    assert stored_files(folder) == before


def test_shards_are_large_but_not_so_large_that_workers_have_nothing_to_do():
    assert shard_seconds(10.0, 512) == 60.0
    assert shard_seconds(64 * 600.0, 512) == 600.0
    assert shard_seconds(1e9, 512) * 50 * 512 * 2 == pytest.approx(200e6)


def stored_files(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "log"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_cuts_come_in_the_order_of_the_input_and_last_as_long_as_their_frames(data, xlsr):
    folder = extract(data, xlsr)
    cuts = list(load_feature_cuts(folder, "train"))
    kept = [i for i, n in enumerate(LENGTHS) if n >= 400]
    assert [cut.id for cut in cuts] == [f"train-{i}" for i in kept]
    for cut, i in zip(cuts, kept):
        frames = num_frames(LENGTHS[i])
        assert cut.num_frames == cut.features.num_frames == frames
        assert cut.duration == pytest.approx(0.02 * frames)
        assert cut.supervisions[0].end <= cut.duration
        assert cut.supervisions[0].text == "tere"
        assert len(read_audio(cut)) == LENGTHS[i]


def test_utterances_too_short_for_a_frame_are_left_out_and_named(data, xlsr):
    folder = extract(data, xlsr)
    lines = (folder / "short_train.tsv").read_text().splitlines()
    assert lines == ["utterance\tsamples at 16 kHz", "train-2\t399", "train-3\t160"]


@pytest.mark.parametrize("rate", [8000, 22050])
def test_other_rates_are_resampled_before_anything_is_counted(tmp_path, xlsr, rate):
    data = tmp_path / "data"
    write_split(data, "train", [rate, rate // 2 + 1, rate // 50], rate)
    folder = extract(data, xlsr)
    cuts = list(load_feature_cuts(folder, "train"))
    assert [cut.num_frames for cut in cuts] == [num_frames(16000), num_frames(8001)]
    assert cuts[0].sampling_rate == 16000
    assert (folder / "short_train.tsv").read_text().splitlines()[1:] == ["train-2\t320"]


def test_batches_hold_like_lengths_and_keep_to_the_limit():
    lengths = dict(enumerate([100, 16000 * 9, 3000, 16000, 15999, 2999, 16000]))
    batches = make_batches(lengths, max_duration=2.5)
    assert batches == [[1], [3, 6], [4, 2], [5, 0]]
    for batch in batches[1:]:
        assert len(batch) * max(lengths[p] for p in batch) <= 2.5 * 16000


def test_the_folder_says_how_its_features_were_made(data, xlsr):
    options = "--cut 2 --chunk-size 16 --left-context-chunks 2 --attention-sink-size 4".split()
    folder = extract(data, xlsr, *options)
    assert folder.name == "2-cumulative-chunk-16-left-2-sink-4"
    info = FeatureInfo.load(folder)
    assert (info.cut, info.normalize, info.dtype, info.feature_dim) == (
        "2",
        "cumulative",
        "float16",
        WIDTH,
    )
    assert info.xlsr == str(xlsr) and info.sha256 == load_xlsr(str(xlsr)).sha256
    assert find_features(data) == find_features(data, folder.name) == folder


def test_features_stay_readable_where_the_data_folder_is_moved(data, xlsr, tmp_path):
    folder = extract(data, xlsr)
    expected = next(iter(load_feature_cuts(folder, "train"))).load_features()
    data.rename(tmp_path / "moved")
    moved = next(iter(load_feature_cuts(find_features(tmp_path / "moved"), "train")))
    assert np.array_equal(moved.load_features(), expected)


def test_the_shell_script_works_from_any_folder(tmp_path):
    result = subprocess.run(
        [str(ROOT / "extract_features.sh"), "--data-dir", "nowhere"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: nowhere/manifests/splits.json is missing")
