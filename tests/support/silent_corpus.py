"""A manifest of utterances without audio, for what reads manifests and no more."""

from __future__ import annotations

import gzip
import json
from pathlib import Path


def cut_of(name: str, seconds: float, text: str, language: str | None = None, **more) -> dict:
    """The dictionary of a cut; its recording has no sources."""
    recording = {
        "id": name, "sources": [], "sampling_rate": 16000, "channel_ids": [0],
        "num_samples": int(seconds * 16000), "duration": seconds,
    }  # fmt: skip
    supervision = {"id": name, "recording_id": name, "start": 0, "duration": seconds,
                   "channel": 0, "text": text, "language": language, **more}  # fmt: skip
    return {
        "id": name, "start": 0, "duration": seconds, "channel": 0, "type": "MonoCut",
        "recording": recording, "supervisions": [supervision],
    }  # fmt: skip


def write_manifest(data_dir: Path, split: str, cuts: list[dict], is_gzip: bool = True) -> Path:
    """Writes the manifest of a split, as ``.jsonl.gz`` or ``.jsonl``."""
    path = data_dir / "manifests" / f"cuts_{split}.jsonl{'.gz' * is_gzip}"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(cut) + "\n" for cut in cuts).encode()
    path.write_bytes(gzip.compress(lines) if is_gzip else lines)
    return path


def some_cuts(count: int, prefix: str = "u") -> list[dict]:
    """Utterances of 1 to 3 seconds in two languages."""
    return [
        cut_of(f"{prefix}{i}", 1.0 + i * 7 % 21 / 10, "a" * (i % 5), ("et", "fi")[i % 2])
        for i in range(count)
    ]


class Letters:
    """A tokenizer with a token for each letter."""

    def __init__(self, name: str = "letters", repeats: int = 1):
        self.name, self.repeats, self.encoded = name, repeats, 0

    def encode(self, texts: list[str]) -> list[list[int]]:
        self.encoded += len(texts)
        return [[ord(letter) for letter in text] * self.repeats for text in texts]

    def to_bytes(self) -> bytes:
        return self.name.encode()
