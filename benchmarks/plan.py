"""The cost of an epoch of ten million utterances before its first batch.

    python -m benchmarks.plan [--utterances 10000000] [--sizes 1000 10000 100000]

plans epochs from the arrays of a synthetic index, each in a fresh process: time, and peak memory
above that of the imports. Then it makes corpora of ``--sizes`` utterances, whose audio is all the
same file, with their indexes, and measures what a training does that resumes in the middle of an
epoch: it opens the index, counts the corpus, plans the epoch and reads one batch.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile

from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.geometry import SAMPLING_RATE, encoder_frames
from xlsr_transducer.data.augment import SPEEDS
from xlsr_transducer.data.datamodule import DataModule, DataOptions
from xlsr_transducer.data.plan import Plan, PlanOptions, Utterances, load_array, make_plan

LONGEST = 15.0  # seconds, of the corpora
CASES = {
    "plain": {},
    "speed perturbation": {"speeds": SPEEDS},
    "bound on frames x tokens": {"max_frames_tokens": 0.2},
    "batches of one group": {"group_batches": True},
    "of one group, of equal duration": {"matched": True},
    "Shar, 10,000 tar files": {},
}


class Letters:
    """Stands for a BPE model: a token for each word."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text."""
        return [[3 + len(word) for word in text.split()] for text in texts]

    def to_bytes(self) -> bytes:
        """The bytes that identify it."""
        return b"a token for each word"


def write_arrays(folder: Path, count: int) -> None:
    """Writes what an index of usual utterances holds."""
    rng = np.random.default_rng(0)
    seconds = np.clip(rng.gamma(3.0, 2.0, count), 0.3, 35.0)
    np.save(folder / "seconds.npy", seconds)
    np.save(folder / "frames.npy", encoder_frames(seconds).astype(np.int32))
    np.save(folder / "tokens.npy", (6 * seconds).astype(np.int32))
    np.save(folder / "groups.npy", rng.integers(0, 50, count).astype(np.int32))
    np.save(folder / "shards.npy", (np.arange(count) // 1000).astype(np.int32))
    np.save(folder / "zeros.npy", np.zeros(count, dtype=np.int32))


def plan_epoch(folder: Path, case: str) -> tuple[float, float, float, int, float]:
    """Returns seconds of wall and of processor time, peak MiB, batches, and how full they are."""
    names = ("seconds", "frames", "tokens", "groups", "shards", "zeros")
    arrays = {name: load_array(folder / f"{name}.npy") for name in names}
    before, clocks = peak_mib(), (time.perf_counter(), time.process_time())
    utterances = Utterances(
        seconds=arrays["seconds"],
        frames=arrays["frames"],
        tokens=arrays["tokens"],
        needed=arrays["tokens"],
        usable=arrays["zeros"] == 0,
        groups=arrays["groups"],
        shards=arrays["shards" if "Shar" in case else "zeros"],
    )
    options = PlanOptions(200.0, min_utterance=0.1, max_utterance=30.0, **CASES[case])
    plan = make_plan(utterances, options, seed=1, epoch=1)
    wall, busy = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
    return wall, busy, peak_mib() - before, len(plan), filling(plan)


def filling(plan: Plan) -> float:
    """Returns seconds of audio by seconds of padded batches."""
    return float(plan.seconds.sum() / (plan.sizes * plan.longest).sum())


def peak_mib() -> float:
    """Returns the most memory that this process had so far; the system's ``ru_maxrss`` would count
    the process that started it too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def in_fresh_process(function: Callable, *args: object) -> tuple:
    """Returns what ``function`` returns in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def write_corpus(data_dir: Path, count: int) -> None:
    """Writes a manifest of utterances with texts, all of them parts of one file."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("aeioulmnrst"), 5)) for _ in range(2000)]
    (data_dir / "manifests").mkdir(parents=True)
    wav = data_dir / "noise.wav"
    samples = int(LONGEST * SAMPLING_RATE)
    soundfile.write(wav, 0.1 * rng.standard_normal(samples), SAMPLING_RATE)
    source = {"type": "file", "channels": [0], "source": str(wav)}
    with open(data_dir / "manifests" / "cuts_train.jsonl", "w") as f:
        for i in range(count):
            seconds, name = round(float(rng.uniform(2.0, LONGEST)), 2), f"utterance_{i:08d}"
            text = " ".join(rng.choice(words, round(2.5 * seconds)))
            recording = {
                "id": name, "sources": [source], "sampling_rate": SAMPLING_RATE,
                "num_samples": samples, "duration": LONGEST, "channel_ids": [0],
            }  # fmt: skip
            supervision = {"id": name, "recording_id": name, "start": 0, "duration": seconds,
                           "channel": 0, "text": text}  # fmt: skip
            cut = {"id": name, "start": 0, "duration": seconds, "channel": 0, "type": "MonoCut",
                   "supervisions": [supervision], "recording": recording}  # fmt: skip
            f.write(json.dumps(cut) + "\n")


def first_batch(data_dir: Path) -> tuple[float, float, float]:
    """Returns seconds of wall and of processor time to the first batch, and peak MiB."""
    before, clocks = peak_mib(), (time.perf_counter(), time.process_time())
    data = DataModule(DataOptions(data_dir, num_workers=0), None, Letters())  # type: ignore[arg-type]
    middle = int(data.summary(["train"]).seconds / data.options.max_duration / 2)
    batch = next(iter(data.train_loader(["train"], epoch=1, seed=1, skip=middle)))
    assert batch.ids and not batch.skipped
    wall, busy = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
    return wall, busy, peak_mib() - before


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--utterances", type=int, default=10_000_000, help="of the epoch planned")
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=[1000, 10_000, 100_000], help="of the corpora"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    print(f"An epoch of {options.utterances} utterances:\n")
    print("| | seconds, wall / processor | peak MiB | batches | audio in padded batches |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as work:
        write_arrays(Path(work), options.utterances)
        for case in CASES:
            wall, busy, mib, batches, full = in_fresh_process(plan_epoch, Path(work), case)
            print(f"| {case} | {wall:.1f} / {busy:.1f} | {mib:.0f} | {batches} | {full:.1%} |")
    print("\nThe first batch of an epoch that is resumed in the middle:\n")
    print("| utterances | making the index, once | first batch, wall / processor | peak MiB |")
    print("|---|---|---|---|")
    for count in options.sizes:
        with tempfile.TemporaryDirectory() as work:
            write_corpus(Path(work), count)
            (_, index, _), (wall, busy, mib) = (
                in_fresh_process(first_batch, Path(work)) for _ in range(2)
            )
            print(f"| {count} | {index - busy:.1f} s | {wall:.2f} / {busy:.2f} s | {mib:.0f} |")


if __name__ == "__main__":
    run_command(main)
