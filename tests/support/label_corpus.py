"""A corpus for a classifier: sounds whose kind is their label, in lists of `path|label|speaker`,
and a tiny network for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from local import prepare_labels, prepare_manifests
from local.demo.make_toy_xlsr import make_random
from tests.support.noise_corpus import TINY
from xlsr_transducer import train

LABELS = ("clicks", "hiss", "low hum")  # labels may hold spaces
SIZES = {"train": 24, "val": 6, "test": 9}


def sound(label: str, seconds: float, seed: int) -> np.ndarray:
    """Returns (n,) samples at 16 kHz; an unknown label sounds like a hum."""
    rng = np.random.default_rng(seed)
    count = int(seconds * 16000)
    if label == "hiss":
        return rng.normal(0, 0.1, count)
    if label == "clicks":
        return np.where(np.arange(count) % rng.integers(500, 700) < 8, 0.5, 0.0)
    turns = rng.uniform(90, 130) * np.arange(count) / 16000
    return 0.1 * sum(np.sin(2 * np.pi * k * turns) / k for k in (1, 2, 3))


def write_list(folder: Path, split: str, labels: list[str], seconds: float = 0.5) -> Path:
    """Writes files of growing length and their list; returns the list."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, label in enumerate(labels):
        name = f"{split}-{i}.wav"
        wave = sound(label, seconds + 0.037 * i, 1000 * len(split) + i)
        soundfile.write(folder / name, wave, 16000)
        lines.append(f"{name}|{label}|speaker {i % 4}\n")
    path = folder / f"{split}.txt"
    path.write_text("".join(lines))
    return path


def prepare(data: Path, lists: dict[str, Path], *options: str) -> None:
    """Runs stages 1 and 2 on lists of splits."""
    flags = [f"--{name}-list={path}" for name, path in lists.items()]
    prepare_manifests.main([*flags, f"--data-dir={data}"])
    prepare_labels.main([f"--data-dir={data}", *options])


def make(folder: Path) -> Path:
    """Returns a data folder after stage 2, with a tiny network in ``xlsr``."""
    lists = {
        split: write_list(folder / "lists", split, [LABELS[i % 3] for i in range(size)])
        for split, size in SIZES.items()
    }
    prepare(folder / "data", lists)
    make_random(folder / "data" / "xlsr", 1, TINY)
    return folder / "data"


TRAINING = (
    "--heads=classifier",
    "--cut=waveform",
    "--num-epochs=3",
    "--max-duration=10",
    "--num-buckets=2",
    "--num-workers=0",
    "--base-lr=0.01",
    "--time-mask-prob=0",
    "--encoder-dim=16",
    "--tensorboard=0",
)
CHUNKS = ("--streaming=1", "--chunk-size=8", "--left-context-chunks=1", "--attention-sink-size=2")


def run_train(data: Path, exp: Path, *more: str) -> int:
    """Trains three epochs, unless ``more`` says otherwise; returns the exit status."""
    given = [f"--data-dir={data}", f"--exp-dir={exp}", f"--xlsr={data / 'xlsr'}"]
    return train.main([*given, *TRAINING, *more])


@pytest.fixture(scope="session")
def label_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder after stage 2."""
    return make(tmp_path_factory.mktemp("labels"))


@pytest.fixture(scope="session")
def label_exp(label_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A streaming classifier without an adapter, which has learnt the labels."""
    exp = tmp_path_factory.mktemp("exp-labels")
    run_train(label_data, exp, "--adapter=none", *CHUNKS)
    return exp
