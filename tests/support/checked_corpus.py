"""Manifests for the checks of stage 4, and what the checks say."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import soundfile

from local import validate_manifests
from local.checks.faults import Problems
from tests.support.silent_corpus import cut_of, write_manifest


def utterance(name: str, text: str, seconds: float = 2.0, line: int = 1, **more) -> dict:
    """A cut of line ``line`` in the list "a.txt"; its recording has no file.

    Args:
      more: fields of the supervision, such as ``speaker``.
    """
    custom = {"line": line, "list": "a.txt"}
    return cut_of(name, seconds, text, **{"language": "et", "custom": custom, **more})


def recorded(
    path: Path, samples: np.ndarray, rate: int = 16000, text: str = "tere tulemast", **settings
) -> dict:
    """A cut of a whole new audio file, named after it.

    Args:
      settings: of ``soundfile.write``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **settings)
    info = soundfile.info(path)
    return on_file(utterance(path.stem, text), path, info.frames, rate, info.channels)


def on_file(cut: dict, path: Path, samples: int, rate: int, channels: int = 1) -> dict:
    """Gives a cut a file, all of which it is."""
    seconds, numbers = samples / rate, list(range(channels))
    source = {"type": "file", "channels": numbers, "source": str(path)}
    recording = {"id": cut["id"], "sources": [source], "sampling_rate": rate, "duration": seconds,
                 "num_samples": samples, "channel_ids": numbers}  # fmt: skip
    [supervision] = cut["supervisions"]
    supervision = {**supervision, "duration": seconds}
    return {**cut, "duration": seconds, "recording": recording, "supervisions": [supervision]}


def part_of(cut: dict, name: str, start: float, seconds: float, channel: int = 0) -> dict:
    """A segment of a cut's recording."""
    [supervision] = cut["supervisions"]
    supervision = {**supervision, "id": name, "duration": seconds, "channel": channel}
    return {**cut, "id": name, "start": start, "duration": seconds, "channel": channel,
            "supervisions": [supervision]}  # fmt: skip


def check(data: Path, *options: str, **splits: list[dict]) -> dict[str, list[tuple[str, ...]]]:
    """Finds the flags of splits ``train``, ``val`` and ``test``, those that are given, as stage 4
    does.

    Returns:
      The flags of each split: (utterance, kind, value, detail), and list and line where they are
      not those of ``utterance``.

    Raises:
      UserError: of faults.
    """
    write_splits(data, splits)
    arguments = [f"--data-dir={data}", "--num-jobs=1", *options]
    args = validate_manifests.get_parser().parse_args(arguments)
    problems = Problems()
    _, utterances = validate_manifests.check_cuts(data, list(splits), None, problems)
    problems.raise_if_any()
    validate_manifests.find_flags(args, utterances, is_speech=True, has_audio=True)
    return {split: flagged(data, split) for split in splits}


def write_splits(data: Path, splits: dict[str, list[dict]]) -> None:
    """Writes the manifests of cuts."""
    for split, cuts in splits.items():
        write_manifest(data, split, cuts)
    names = {role: [role] if role in splits else [] for role in ("train", "val", "test")}
    (data / "manifests" / "splits.json").write_text(json.dumps(names))


def stage_4(data: Path, *options: str, **splits: list[dict]) -> dict[str, list[str]]:
    """Runs the whole command; returns the table of flags in statistics.txt: label -> cells."""
    write_splits(data, splits)
    validate_manifests.main([f"--data-dir={data}", *options])
    _, table = (data / "statistics.txt").read_text().split("\nflagged utterances")
    lines = table.splitlines()[1:]
    cells = [[cell.strip() for cell in line.split("  ") if cell] for line in lines]
    return {label: values for label, *values in cells}


def flagged(data: Path, split: str) -> list[tuple[str, ...]]:
    """The table of a split's flags."""
    with open(data / f"flagged_{split}.tsv", encoding="utf-8", newline="") as f:
        heading, *rows = csv.reader(f, delimiter="\t", quoting=csv.QUOTE_NONE)
    assert heading == ["utterance", "kind", "value", "detail", "list", "line"]
    return [tuple(row[:4] if row[4:] == ["a.txt", "1"] else row) for row in rows]
