"""The order of training utterances: all of a manifest mixed, anew in each epoch."""

from __future__ import annotations

import gzip
import json
from functools import partial
from pathlib import Path

import pytest
from lhotse.dataset import DynamicBucketingSampler

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data import datamodule
from xlsr_transducer.data.datamodule import DataModule, DataOptions
from xlsr_transducer.data.order import Shuffled
from xlsr_transducer.data.tokenizer import Tokenizer, find_lang_dir

COUNT = 300


def manifest(folder: Path, count: int = COUNT) -> Path:
    """Cuts of 1 to 3 seconds without audio, whose ids are their places in the file."""
    path = folder / "manifests" / "cuts_train.jsonl.gz"
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt") as f:
        for i in range(count):
            seconds = 1.0 + i * 7 % 21 / 10
            recording = {
                "id": str(i), "sources": [], "sampling_rate": 16000, "channel_ids": [0],
                "num_samples": int(seconds * 16000), "duration": seconds,
            }  # fmt: skip
            supervision = {"id": str(i), "recording_id": str(i), "start": 0, "duration": seconds,
                           "channel": 0, "text": "üks"}  # fmt: skip
            cut = {
                "id": str(i), "start": 0, "duration": seconds, "channel": 0, "type": "MonoCut",
                "recording": recording, "supervisions": [supervision],
            }  # fmt: skip
            f.write(json.dumps(cut) + "\n")
    return path


def test_what_a_sampler_cannot_hold_is_mixed_all_the_same(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest(tmp_path)
    small = partial(DynamicBucketingSampler, buffer_size=30)  # as 20,000 of a large corpus
    monkeypatch.setattr(datamodule, "DynamicBucketingSampler", small)
    tokenizer = Tokenizer.load(find_lang_dir(corpus))
    options = DataOptions(data_dir=tmp_path, max_duration=10.0, num_buckets=3, num_workers=0)
    data = DataModule(options, None, tokenizer)
    orders = []
    for epoch in (1, 1, 2):
        batches = data._train_batches(["train"], data.augmenter.at(seed=1, epoch=epoch))
        orders.append([int(cut.id) for batch in batches for cut in batch])
    assert sorted(orders[0]) == list(range(COUNT))
    assert orders[0] == orders[1] != orders[2]
    first_third = orders[0][: COUNT // 3]
    assert abs(sum(first_third) / len(first_third) - COUNT / 2) < COUNT / 10


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    path = manifest(tmp_path, count=50)
    assert sorted(int(cut.id) for cut in Shuffled([path], seed=1, epoch=1)) == list(range(50))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"cuts_train\.jsonl\.gz: damaged"):
        list(Shuffled([path], seed=1, epoch=1))
