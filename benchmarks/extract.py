"""What storing features costs: time above the bare forward, bytes per hour, float16 error.

    python -m benchmarks.extract [--size 300m] [--cut frontend]

makes noise of usual lengths and a network with random weights, then runs, in turns and with
one thread, the whole extraction in one process (reading, resampling, forward, writing,
manifests; not the interpreter's start nor loading the network) and the forward alone on the
same batches from memory.

    python -m benchmarks.extract --workers 1,2 [--minutes 8]

extracts the same with so many workers of a local cluster, which have loaded the network before.

    python -m benchmarks.extract --simulate 10000000

plans the shards of so many utterances that exist nowhere, and sends them to a worker that computes
nothing: seconds, memory, and the shards that are in memory at once.

    python -m benchmarks.extract --lines 100000

looks up and merges so many utterances of a manifest, as an extraction does before and after.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from lhotse import MonoCut, Recording

from benchmarks.extract_planning import measure_lines, ready_cluster, simulate
from local.demo.make_toy_xlsr import SHAPE, make_random, random_network
from local.extract_cluster import prepare_dask
from local.extract_features import check_options, extract_split, feature_info
from local.extract_features import get_parser as extraction_parser
from local.extract_shard import make_batches
from local.extract_split import Split
from local.extract_workers import InProcess, Task, Workers
from local.extractors import XlsrExtractor
from local.manifests import JsonlGzWriter, manifest_path
from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.core.options import Number
from xlsr_transducer.data.audio import num_samples, read_audio
from xlsr_transducer.data.features import load_feature_cuts
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.xlsr_checkpoint import XlsrCheckpoint, load_xlsr
from xlsr_transducer.model.xlsr_config import XlsrConfig

MEDIUM = dataclasses.replace(
    SHAPE, hidden_size=512, num_hidden_layers=8, num_attention_heads=8, intermediate_size=2048
)
SIZES = {"tiny": SHAPE, "medium": MEDIUM, "300m": XlsrConfig()}
BATCH = tuple[list[str], list[np.ndarray]]


def make_corpus(data_dir: Path, minutes: float, rate: int, split: str = "train") -> None:
    """Files of noise, 2 to 15 seconds long, and their manifest."""
    generator = np.random.default_rng(0)
    (data_dir / split).mkdir(parents=True)
    manifest_path(data_dir, "cuts", split).parent.mkdir(exist_ok=True)
    left = minutes * 60
    with JsonlGzWriter(manifest_path(data_dir, "cuts", split)) as writer:
        while left > 0:
            seconds = generator.uniform(2.0, 15.0)
            path = data_dir / split / f"{left:.3f}.wav"
            noise = 0.1 * generator.standard_normal(round(seconds * rate))
            soundfile.write(path, noise, rate)
            recording = Recording.from_file(path)
            writer.write(MonoCut(path.stem, 0, recording.duration, channel=0, recording=recording))
            left -= seconds
    splits = {"train": ["train"], "val": [], "test": []}
    (data_dir / "manifests" / "splits.json").write_text(json.dumps(splits))


def read_batches(args: argparse.Namespace, width: int) -> list[BATCH]:
    """The batches that the extraction makes, as names and samples."""
    batches = []
    split = Split(args.data_dir, args.data_dir / "features" / "none", "train")
    split.find_stored()
    for shard in split.missing_shards(width):
        cuts = [MonoCut.from_dict(dict(cut)) for cut in shard.cuts]
        lengths = {i: num_samples(cut) for i, cut in enumerate(cuts)}
        for batch in make_batches(lengths, args.max_duration):
            batches.append(([cuts[i].id for i in batch], [read_audio(cuts[i]) for i in batch]))
    return batches


def clocks() -> np.ndarray:
    """Wall time and processor time of all threads, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def time_forward(extractor: XlsrExtractor, batches: Sequence[BATCH]) -> np.ndarray:
    """Seconds of the forward alone."""
    start = clocks()
    for _, waves in batches:
        extractor.forward(waves)
    return clocks() - start


def time_extraction(
    args: argparse.Namespace, info: FeatureInfo, checkpoint: XlsrCheckpoint, folder: Path
) -> np.ndarray:
    """Seconds of everything but loading the network."""
    runner = InProcess(Task(args.xlsr, info, folder, "cpu", args.max_duration), checkpoint)
    start = clocks()
    with runner:
        extract_split(args, folder, "train", info.feature_dim, runner)
    return clocks() - start


def float16_error(
    extractor: XlsrExtractor, batches: Sequence[BATCH], folder: Path
) -> tuple[float, float]:
    """Largest absolute error, and rms of the error by rms of the features."""
    stored = {cut.id: cut for cut in load_feature_cuts(folder, "train")}
    largest = error = power = 0.0
    for names, waves in batches[-3:]:
        y, lens = extractor.forward(waves)
        for name, row, frames in zip(names, y.double().numpy(), lens):
            difference = stored[name].load_features() - row[:frames]
            largest = max(largest, float(np.abs(difference).max()))
            error += float(np.square(difference).sum())
            power += float(np.square(row[:frames]).sum())
    return largest, (error / power) ** 0.5


def measure(options: argparse.Namespace, work: Path) -> str:
    """Runs everything once and returns the row of the table."""
    config = SIZES[options.size]
    data_dir = work / "data"
    make_corpus(data_dir, options.minutes, options.rate)
    weights = random_network(config, 1).state_dict()
    checkpoint = XlsrCheckpoint(config, weights, "random", "0" * 64)
    words = ["--data-dir", str(data_dir), "--cut", options.cut, "--single-process"]
    args = extraction_parser().parse_args([*words, "--max-duration", str(options.max_duration)])
    check_options(args)
    info = feature_info(args, checkpoint)
    batches = read_batches(args, info.feature_dim)
    extractor = XlsrExtractor(checkpoint, info, "cpu")
    torch.set_num_threads(1)
    extractor.forward(batches[-1][1])  # the first use is slower
    bare, whole = [], []
    for turn in range(options.turns):
        folder = data_dir / "features" / str(turn)
        folder.mkdir(parents=True)
        bare.append(time_forward(extractor, batches))
        whole.append(time_extraction(args, info, checkpoint, folder))
        torch.set_num_threads(1)
    seconds = sum(len(wave) for _, waves in batches for wave in waves) / SAMPLING_RATE
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    gib = sum(file.st_blocks * 512 for file in files) / seconds * 3600 / 2**30
    largest, relative = float16_error(extractor, batches, folder)
    overhead = np.median(np.array(whole) / np.array(bare), axis=0) - 1
    forward, extraction = np.median(bare, axis=0), np.median(whole, axis=0)
    cells = [
        options.size,
        options.cut,
        f"{seconds / 60:.1f}",
        f"{forward[0]:.2f} / {forward[1]:.2f}",
        f"{extraction[0]:.2f} / {extraction[1]:.2f}",
        f"{100 * overhead[0]:.1f} % / {100 * overhead[1]:.1f} %",
        f"{gib:.3f}",
        f"{largest:.1e}",
        f"{relative:.1e}",
    ]
    return "| " + " | ".join(cells) + " |"


def measure_scaling(options: argparse.Namespace, work: Path) -> list[str]:
    """Returns a row for each number of workers, which have loaded the network before."""
    prepare_dask()
    xlsr = make_random(work / "xlsr", 1, SIZES[options.size].to_dict())
    words = ["--data-dir", str(work / "data"), "--xlsr", str(xlsr), "--cut", options.cut]
    args = extraction_parser().parse_args([*words, "--max-duration", str(options.max_duration)])
    info = feature_info(args, load_xlsr(str(xlsr)))
    for split, minutes in (("warm", 2.5), ("train", options.minutes)):
        make_corpus(args.data_dir, minutes, options.rate, split)
    rows, one = [], 0.0
    for count in options.workers:
        folder = work / f"features-{count}"
        info.save(folder)
        task = Task(str(xlsr), info, folder, "cpu", args.max_duration)
        with Workers(task, functools.partial(ready_cluster, count)) as workers:
            extract_split(args, folder, "warm", info.feature_dim, workers)
            start = time.perf_counter()
            extract_split(args, folder, "train", info.feature_dim, workers)
            seconds = time.perf_counter() - start
        one = one or seconds * count
        cells = [options.size, options.cut, count, options.minutes, f"{seconds:.1f}"]
        rows.append("| " + " | ".join(map(str, [*cells, f"{one / seconds:.2f}"])) + " |")
    return rows


def whole_numbers(text: str) -> list[int]:
    """``1,2``: [1, 2]."""
    return [Number(int, at_least=1)(word) for word in text.split(",")]


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="300m")
    parser.add_argument("--cut", default="frontend")
    parser.add_argument("--minutes", type=float, default=1.0, help="of audio")
    parser.add_argument("--rate", type=int, default=22050, help="of the audio files, in Hz")
    parser.add_argument("--max-duration", type=float, default=30.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers", type=whole_numbers, help="such as 1,2: scaling")
    parser.add_argument("--simulate", type=int, help="utterances that are planned and sent")
    parser.add_argument("--lines", type=int, help="utterances that are looked up and merged")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as work:
        if options.simulate:
            print(simulate(options.simulate, Path(work)))
        elif options.lines:
            print(measure_lines(options.lines, Path(work)))
        elif options.workers:
            print("| size | cut | workers | minutes of audio | seconds | times as fast |")
            print("|" + "---|" * 6)
            print("\n".join(measure_scaling(options, Path(work))))
        else:
            print_overhead(measure(options, Path(work)))


def print_overhead(row: str) -> None:
    """Prints a row with its title."""
    print("Times are wall time / processor time in seconds, medians; other load on the machine")
    print("disturbs the first, while the second counts reading ahead as if it cost time.\n")
    print(
        "| size | cut | minutes | forward | extraction | overhead | GiB per hour | largest error "
        "| relative rms error |"
    )
    print("|" + "---|" * 9)
    print(row)


if __name__ == "__main__":
    run_command(main)
