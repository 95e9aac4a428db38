"""Small corpora in the forms that people have them, and what stage 1 makes of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import soundfile

from local import prepare_manifests
from local.manifests import Rejected, read_jsonl_gz, read_rejected

FOREIGN = Path(__file__).resolve().parents[1] / "fixtures" / "corpora"


def write_audio(path: Path, samples: int, rate: int = 16000, channels: int = 1) -> np.ndarray:
    """Writes noise that is another one in every file and channel; returns it, (samples, C)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(path.name.encode()))
    wave = rng.integers(-3000, 3000, (samples, channels), dtype=np.int16)
    soundfile.write(path, wave, rate)
    return wave


def write_lines(path: Path, *lines: str) -> Path:
    """Writes a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def write_json_lines(path: Path, *items: dict) -> Path:
    """Writes JSON lines, by gzip where the name ends so."""
    text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def import_corpus(corpus: Path | str, data: Path, *options: str) -> list[dict]:
    """Runs stage 1 on a corpus as the test list; returns the supervisions, each with its
    `recording`."""
    prepare_manifests.main([f"--test-list={corpus}", f"--data-dir={data}", *options])
    return imported(data)


def imported(data: Path, split: str = "test") -> list[dict]:
    """Returns the supervisions of a split, each with its `recording`."""
    folder = data / "manifests"
    recordings = {r["id"]: r for r in read_jsonl_gz(folder / f"recordings_{split}.jsonl.gz")}
    found = list(read_jsonl_gz(folder / f"supervisions_{split}.jsonl.gz"))
    assert list(dict.fromkeys(s["recording_id"] for s in found)) == list(recordings)
    return [{**s, "recording": recordings[s["recording_id"]]} for s in found]


def rejected(data: Path, split: str = "test") -> dict[int, str]:
    """Returns the reasons of rejected lines."""
    rows: list[Rejected] = list(read_rejected(data / "manifests" / f"rejected_{split}.tsv"))
    return {row.line: row.reason for row in rows}


def samples_of(supervision: dict) -> np.ndarray:
    """Returns (n,) int16 of an utterance, read by soundfile alone."""
    recording = supervision["recording"]
    [source] = recording["sources"]
    wave, rate = soundfile.read(source["source"], dtype="int16", always_2d=True)
    assert (rate, len(wave)) == (recording["sampling_rate"], recording["num_samples"])
    start = round(supervision["start"] * rate)
    end = start + round(supervision["duration"] * rate)
    return wave[start:end, supervision["channel"]]
