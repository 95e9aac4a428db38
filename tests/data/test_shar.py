"""Shar: utterances out of a few tar files, read at their place by training, in order by lhotse."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import CutSet

from local import make_shar
from tests.support.old_features import store_one_file_each
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.data.datamodule import Batch, DataModule, DataOptions
from xlsr_transducer.data.features import find_features
from xlsr_transducer.data.shar import read_member
from xlsr_transducer.data.tokenizer import Tokenizer, find_lang_dir


def batches(data_dir: Path, features: Path | None, lang: Path, rank: int = 0) -> list[Batch]:
    options = DataOptions(
        data_dir=data_dir, num_workers=0, num_buckets=2, max_duration=10.0, total_duration=20.0
    )
    data = DataModule(options, features, Tokenizer.load(lang))
    return list(data.train_loader(["train"], 1, 1, skip=2, rank=rank, world_size=2))


def test_folders_of_one_file_an_utterance_give_the_same_batches(
    corpus: Path, tmp_path: Path
) -> None:
    folder = find_features(corpus)
    assert len(list((folder / "train").glob("features.*.tar"))) == 2
    old = shutil.copytree(folder, tmp_path / "old")
    store_one_file_each(old, ("train",))
    lang = find_lang_dir(corpus)
    plain = batches(corpus, old, lang)
    assert len(plain) > 1
    for a, b in zip(plain, batches(corpus, folder, lang), strict=True):
        assert a.ids == b.ids and torch.equal(a.inputs, b.inputs) and not b.skipped


def test_audio_in_tar_files_is_read_as_before_to_16_bits(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    make_shar.main([f"--data-dir={corpus}", f"--out-dir={out}", "--shard-size=20"])
    lang = find_lang_dir(corpus)
    plain, packed = batches(corpus, None, lang), batches(out, None, lang)
    assert [b.ids for b in plain] == [b.ids for b in packed]
    for a, b in zip(plain, packed):
        assert torch.equal(a.input_lens, b.input_lens) and a.texts == b.texts
        torch.testing.assert_close(a.inputs, b.inputs, rtol=0, atol=2**-15)


def test_a_complete_split_stays_and_an_incomplete_one_is_written_again(
    corpus: Path, tmp_path: Path
) -> None:
    words = [f"--data-dir={corpus}", f"--out-dir={tmp_path}", "--shard-size=10"]
    make_shar.main(words)
    manifest = tmp_path / "manifests" / "cuts_val.jsonl.gz"
    first = manifest.read_bytes()
    before = (tmp_path / "train" / "recording.000000.tar").stat().st_mtime_ns
    manifest.unlink()
    (tmp_path / "val" / "recording.000009.tar").write_bytes(b"left over")
    make_shar.main(words)
    assert manifest.read_bytes() == first
    assert not (tmp_path / "val" / "recording.000009.tar").exists()
    assert (tmp_path / "train" / "recording.000000.tar").stat().st_mtime_ns == before


def test_a_truncated_tar_file_is_a_named_skip_and_a_bad_option_an_error(
    corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="--shard-size 0"):
        make_shar.main([f"--data-dir={corpus}", f"--out-dir={tmp_path}", "--shard-size=0"])
    folder = shutil.copytree(find_features(corpus), tmp_path / "features")
    tar = next((folder / "train").glob("features.*.tar"))
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    found = batches(corpus, folder, find_lang_dir(corpus))
    skipped = [str(line) for batch in found for line in batch.skipped]
    assert skipped and all(tar.name in line for line in skipped)
    assert any(batch.ids for batch in found)
    with pytest.raises(OSError, match="truncated"):
        read_member(tar, f"{tar.stat().st_size - 3}:5")


def test_audio_of_a_cut_in_the_middle_of_a_recording_is_packed_alone(
    corpus: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(corpus / "manifests", data / "manifests")
    path = data / "manifests" / "cuts_val.jsonl.gz"
    cuts = CutSet.from_jsonl(path)
    parts = CutSet.from_cuts(
        cut.truncate(offset=0.5, duration=1.0, preserve_id=True) for cut in cuts
    )
    parts.to_file(path)
    make_shar.main([f"--data-dir={data}", f"--out-dir={tmp_path / 'out'}"])
    packed = CutSet.from_jsonl(tmp_path / "out" / "manifests" / "cuts_val.jsonl.gz")
    for part, cut in zip(parts, packed):
        expected, actual = read_audio(part), read_audio(cut)
        assert len(expected) == len(actual) == 16000
        # Resampling reaches over the ends of the part.
        np.testing.assert_allclose(expected[200:-200], actual[200:-200], atol=2**-13)
