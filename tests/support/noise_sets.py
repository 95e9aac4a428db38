"""A random streaming model and sets of noise with texts: what an evaluation needs, in a second."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from local.manifests import JsonlGzWriter, manifest_path
from tests.support.noise_corpus import make_cut

RATE = 16000


def write_set(data: Path, name: str, texts: Sequence[str], seconds: Sequence[float]) -> Path:
    """Writes noise with texts as a test set; returns the manifest."""
    generator = np.random.default_rng(len(texts))
    manifest = manifest_path(data, "cuts", name)
    (data / "wav").mkdir(parents=True, exist_ok=True)
    manifest.parent.mkdir(exist_ok=True)
    with JsonlGzWriter(manifest) as writer:
        for number, (text, length) in enumerate(zip(texts, seconds)):
            path, samples = data / "wav" / f"{name}-{number}.wav", int(length * RATE)
            level = np.repeat(generator.uniform(0.01, 0.3, samples // 1600 + 1), 1600)[:samples]
            soundfile.write(path, level * generator.standard_normal(samples) / 4, RATE)
            writer.write(make_cut(path, samples, RATE, text))
    known = sorted(p.name[5:-9] for p in manifest.parent.glob("cuts_*.jsonl.gz"))
    splits = {"train": [], "val": [], "test": known}
    (manifest.parent / "splits.json").write_text(json.dumps(splits))
    return manifest
