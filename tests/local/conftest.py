"""What tests of an extraction share: a tiny network, and a corpus of noise."""

from __future__ import annotations

from pathlib import Path

import pytest

from local import extract_shard
from local.demo.make_toy_xlsr import make_random
from tests.support.noise_corpus import LENGTHS, TINY, write_split


@pytest.fixture(scope="session")
def xlsr(tmp_path_factory) -> Path:
    return make_random(tmp_path_factory.mktemp("xlsr"), 3, TINY)


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """Twelve utterances of 160 to 31999 samples, in shards of two seconds."""
    monkeypatch.setattr(extract_shard, "LEAST_SECONDS", 2.0)
    write_split(tmp_path / "data", "train", LENGTHS)
    return tmp_path / "data"
