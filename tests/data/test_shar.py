"""Shar: the same utterances out of a few tar files, read at their place."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import CutSet

from local import make_shar
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.data.datamodule import Batch, DataModule, DataOptions
from xlsr_transducer.data.features import find_features, load_feature_cuts
from xlsr_transducer.data.shar import read_member
from xlsr_transducer.data.tokenizer import Tokenizer, find_lang_dir


def batches(data_dir: Path, features: Path | None, lang: Path, rank: int = 0) -> list[Batch]:
    options = DataOptions(
        data_dir=data_dir, num_workers=0, num_buckets=2, max_duration=10.0, total_duration=20.0
    )
    data = DataModule(options, features, Tokenizer.load(lang))
    return list(data.train_loader(["train"], 1, 1, skip=2, rank=rank, world_size=2))


def test_features_in_tar_files_give_the_same_batches_on_every_process(
    corpus: Path, tmp_path: Path
) -> None:
    out = tmp_path / "packed"
    words = [f"--data-dir={corpus}", "--features=frontend-cumulative", f"--out-dir={out}"]
    make_shar.main([*words, "--shard-size=8"])
    assert len(list((out / "train").glob("features.*.tar"))) == 4
    moved = tmp_path / "moved"
    shutil.move(out, moved)  # paths count from the folder
    lang = find_lang_dir(corpus)
    for rank in (0, 1):
        plain = batches(corpus, find_features(corpus), lang, rank)
        packed = batches(corpus, find_features(corpus, str(moved)), lang, rank)
        assert [b.ids for b in plain] == [b.ids for b in packed] and len(plain) > 1
        assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(plain, packed))
        assert not any(b.skipped for b in packed)
    # It is what lhotse calls Shar.
    shar = {cut.id: cut.load_features() for cut in CutSet.from_shar(in_dir=moved / "train")}
    cut = next(iter(load_feature_cuts(find_features(corpus), "train")))
    assert len(shar) == 30 and np.array_equal(shar[cut.id], cut.load_features())


def test_audio_in_tar_files_is_read_as_before_to_16_bits(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    make_shar.main([f"--data-dir={corpus}", "--audio=1", f"--out-dir={out}", "--shard-size=20"])
    lang = find_lang_dir(corpus)
    plain, packed = batches(corpus, None, lang), batches(out, None, lang)
    assert [b.ids for b in plain] == [b.ids for b in packed]
    for a, b in zip(plain, packed):
        assert torch.equal(a.input_lens, b.input_lens) and a.texts == b.texts
        torch.testing.assert_close(a.inputs, b.inputs, rtol=0, atol=2**-15)


def test_a_complete_split_stays_and_an_incomplete_one_is_written_again(
    corpus: Path, tmp_path: Path, caplog
) -> None:
    words = [f"--data-dir={corpus}", f"--out-dir={tmp_path}", "--shard-size=10"]
    make_shar.main(words)
    first = (tmp_path / "cuts_val.jsonl.gz").read_bytes()
    before = (tmp_path / "train" / "features.000000.tar").stat().st_mtime_ns
    (tmp_path / "cuts_val.jsonl.gz").unlink()
    (tmp_path / "val" / "features.000009.tar").write_bytes(b"left over")
    make_shar.main(words)
    assert (tmp_path / "cuts_val.jsonl.gz").read_bytes() == first
    assert not (tmp_path / "val" / "features.000009.tar").exists()
    assert (tmp_path / "train" / "features.000000.tar").stat().st_mtime_ns == before


def test_a_truncated_tar_file_is_a_named_skip_and_a_bad_option_an_error(
    corpus: Path, tmp_path: Path
) -> None:
    words = [f"--data-dir={corpus}", f"--out-dir={tmp_path}"]
    with pytest.raises(UserError, match="--shard-size 0"):
        make_shar.main([*words, "--shard-size=0"])
    make_shar.main(words)
    tar = tmp_path / "train" / "features.000000.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    found = batches(corpus, tmp_path, find_lang_dir(corpus))
    skipped = [str(line) for batch in found for line in batch.skipped]
    assert skipped and all("features.000000.tar" in line for line in skipped)
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
    make_shar.main([f"--data-dir={data}", "--audio=1", f"--out-dir={tmp_path / 'out'}"])
    packed = CutSet.from_jsonl(tmp_path / "out" / "manifests" / "cuts_val.jsonl.gz")
    for part, cut in zip(parts, packed):
        expected, actual = read_audio(part), read_audio(cut)
        assert len(expected) == len(actual) == 16000
        # Resampling reaches over the ends of the part.
        np.testing.assert_allclose(expected[200:-200], actual[200:-200], atol=2**-13)
