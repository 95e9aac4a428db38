"""A small corpus of noise with its manifest, a tiny network, and the extraction of both."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment

from local.extract_features import main
from local.manifests import JsonlGzWriter, manifest_path

WIDTH = 32
TINY = {
    "conv_dim": [16] * 7,
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
# Samples at 16 kHz: one frame twice, too short twice, then usual lengths.
LENGTHS = (400, 719, 399, 160, 9000, 16000, 720, 23456, 31999, 12345, 20000, 16001)


def write_split(data: Path, split: str, lengths, rate: int = 16000, text: str = "tere") -> None:
    """Noise of these lengths in samples, and the manifest of cuts as stage 2 leaves it."""
    generator = np.random.default_rng(len(split))
    (data / "wav").mkdir(parents=True, exist_ok=True)
    manifest = manifest_path(data, "cuts", split)
    manifest.parent.mkdir(exist_ok=True)
    with JsonlGzWriter(manifest) as writer:
        for number, length in enumerate(lengths):
            path = data / "wav" / f"{split}-{number}.wav"
            soundfile.write(path, generator.uniform(-0.3, 0.3, length), rate)
            writer.write(make_cut(path, length, rate, text))
    splits = {"train": ["train"], "val": [], "test": []}
    (manifest.parent / "splits.json").write_text(json.dumps(splits))


def make_cut(path: Path, length: int, rate: int, text: str) -> MonoCut:
    recording = Recording.from_dict(
        {
            "id": path.stem,
            "sources": [{"type": "file", "channels": [0], "source": str(path)}],
            "sampling_rate": rate,
            "num_samples": length,
            "duration": length / rate,
        }
    )
    supervision = SupervisionSegment(path.stem, path.stem, 0, length / rate, text=text)
    return MonoCut(path.stem, 0, length / rate, 0, [supervision], recording=recording)


def extract(data: Path, xlsr: Path, *options: str, jobs=("--single-process",)) -> Path:
    """Runs the command and returns the folder of the features."""
    main(["--data-dir", str(data), "--xlsr", str(xlsr), "--max-duration", "4", *jobs, *options])
    folders = list((data / "features").iterdir())
    return max(folders, key=lambda folder: (folder / "features.json").stat().st_mtime_ns)
