"""The time of a training step by its parts, and hours of audio that a device trains on per hour.

    python -m benchmarks.train --data-dir data/demo_corpus --features frontend-cumulative
    python -m benchmarks.train --size 300m --minutes 60 --cuts frontend waveform \\
        --max-durations 100 200 400

runs ``xlsr_transducer.train`` itself, on a recipe's data or on noise with random words that it
makes, for two epochs of which the first does not count. Columns:

* share of the time in forward (with the losses), backward and the optimizer's step; then what
  is left: waiting for data, and everything else (scaling and clipping the gradient, running mean,
  log lines); the two together, and together as a share of the processor time of the training
  process, which depends less on what else the machine does;
* hours of audio per hour; on a GPU from a second run, as the clock of the first waits for the
  device at every boundary;
* FLOP utilisation: matrix and convolution FLOPs of forward and backward by those of a large
  matrix product per second, measured here with the same precision. Forward FLOPs are counted
  on the padded batches; backward costs twice as many, above frozen convolutions.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import soundfile
import torch

from benchmarks.extract import SIZES
from local import extract_features, prepare_lang, prepare_manifests, prepare_text
from local.demo.make_toy_xlsr import make_random
from xlsr_transducer import train
from xlsr_transducer.core.errors import run_command
from xlsr_transducer.data.datamodule import Batch, DataModule
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.training.step import Stepper

PARTS = ("forward", "backward", "optimizer", "data", "other")
SPLITS = {"train": 1.0, "val": 0.02, "test": 0.02}
IS_CUDA = torch.cuda.is_available()


def make_recipe(options: argparse.Namespace, data_dir: Path) -> None:
    """Noise of 2 to 15 seconds with random words, prepared; a network with random weights."""
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("aeioulmnrst"), 5)) for _ in range(2000)]
    wavs = data_dir / "wav"
    wavs.mkdir(parents=True)
    for split, share in SPLITS.items():
        lines, left = [], max(options.minutes * 60 * share, 20.0)
        while left > 0:
            seconds = generator.uniform(2.0, 15.0)
            path = wavs / f"{split}_{len(lines):06d}.wav"
            soundfile.write(path, 0.1 * generator.standard_normal(round(seconds * 16000)), 16000)
            text = " ".join(generator.choice(words, round(2.5 * seconds)))
            lines.append(f"{path}|{text}|nobody\n")
            left -= seconds
        (data_dir / f"{split}.txt").write_text("".join(lines))
    lists = [f"--{split}-list={data_dir / split}.txt" for split in SPLITS]
    prepare_manifests.main([*lists, f"--data-dir={data_dir}"])
    prepare_text.main([f"--data-dir={data_dir}"])
    prepare_lang.main([f"--data-dir={data_dir}", f"--vocab-size={options.vocab_size}"])
    make_random(data_dir / "xlsr", 0, SIZES[options.size].to_dict())
    if "frontend" in options.cuts:
        words = [f"--data-dir={data_dir}", f"--xlsr={data_dir / 'xlsr'}", "--cut=frontend"]
        extract_features.main([*words, "--single-process"])


class Stopwatch:
    """Where the time of training steps goes, from the second epoch on.

    The parts follow each other without gaps: ``turn`` ends one and begins the next.
    """

    def __init__(self, waits: bool):
        """
        Args:
          waits: for the GPU, at every turn.
        """
        self.waits = waits
        self.parts: Counter[str] = Counter()  # seconds
        self.busy: Counter[str] = Counter()  # of which this process computed
        self.audio = self.flops = self.counted_audio = 0.0
        self.steps = self.epoch = self.peak = 0
        self.now, self.since = "", (0.0, 0.0)

    def turn(self, part: str) -> str:
        """Ends the part that runs, begins another; returns what ran."""
        if IS_CUDA and (self.waits or part == ""):
            torch.cuda.synchronize()
        clocks = time.perf_counter(), time.process_time()
        if self.epoch > 1 and self.now:
            self.parts[self.now] += clocks[0] - self.since[0]
            self.busy[self.now] += clocks[1] - self.since[1]
        before, self.now, self.since = self.now, part, clocks
        return before

    def inside(self, part: str, function: Callable) -> Callable:
        """``function``, whose time counts for ``part``."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            before = self.turn(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.turn(before)

        return timed

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Inside, it watches every training of this process."""
        loader, add, update = DataModule.train_loader, Stepper.add, Stepper.update
        forward = SpeechModel.forward

        def train_loader(data: DataModule, *args: Any, **kwargs: Any) -> Iterator:
            self.epoch += 1
            self.turn("data")
            for batch in loader(data, *args, **kwargs):
                self.turn("other")
                self.audio += batch.seconds if self.epoch > 1 else 0.0
                yield batch
                self.turn("data")
            self.turn("")

        def counted_forward(model: SpeechModel, *args: Any) -> Any:
            if self.epoch > 1 or not model.training or self.flops:
                return timed_forward(model, *args)
            self.flops = count_flops(model, lambda: forward(model, *args))
            return forward(model, *args)

        def counted_add(stepper: Stepper, batch: Batch) -> None:
            self.counted_audio = self.counted_audio or batch.seconds
            add(stepper, batch)

        def counted_update(stepper: Stepper, *args: Any) -> Any:
            self.steps += self.epoch > 1
            if IS_CUDA:
                self.peak = max(self.peak, torch.cuda.max_memory_allocated())
            return update(stepper, *args)

        timed_forward = self.inside("forward", forward)
        backward = self.inside("backward", torch.Tensor.backward)
        step = self.inside("optimizer", torch.optim.AdamW.step)
        with contextlib.ExitStack() as stack:
            for owner, name, new in (
                (DataModule, "train_loader", train_loader),
                (SpeechModel, "forward", counted_forward),
                (Stepper, "add", counted_add),
                (Stepper, "update", counted_update),
                (torch.Tensor, "backward", lambda loss: backward(loss)),
                (torch.optim.AdamW, "step", lambda optimizer, *a, **k: step(optimizer, *a, **k)),
            ):
                stack.enter_context(mock.patch.object(owner, name, new))
            yield


def count_flops(model: SpeechModel, forward: Callable[[], Any]) -> float:
    """FLOPs of forward and backward together, for what ``forward`` computes."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        forward()
    whole = counter.get_total_flops()
    frozen = sum(
        sum(flops.values())
        for name, flops in counter.get_flop_counts().items()
        if name.endswith("xlsr.feature_extractor")
    )
    return 3.0 * whole - 2.0 * frozen


def matrix_rate(size: int) -> float:
    """FLOPs per second of a product of square matrices, as the training would compute it."""
    device = torch.device("cuda" if IS_CUDA else "cpu")
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if IS_CUDA else torch.float32)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        a @ a
        if IS_CUDA:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / float(np.median(times[5:]))


def run(words: list[str], waits: bool) -> tuple[Stopwatch, float]:
    """Two epochs of a training; the stopwatch, and the seconds that the second took."""
    watch = Stopwatch(waits)
    if IS_CUDA:
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as exp, watch.attached():
        train.main([*words, "--exp-dir", exp, "--num-epochs", "2"])
    return watch, sum(watch.parts.values())


def measure(words: list[str], rate: float) -> list[str]:
    """The cells of a row, for the options ``words`` of a training."""
    watch, seconds = run(words, waits=True)
    shares = [100 * watch.parts[part] / seconds for part in PARTS]
    if IS_CUDA:
        free, seconds = run(words, waits=False)
        speed, peak = free.audio / seconds, f"{free.peak / 2**30:.1f}"
    else:
        speed, peak = watch.audio / seconds, "-"
    busy = 100 * (watch.busy["data"] + watch.busy["other"]) / sum(watch.busy.values())
    utilisation = 100 * watch.flops / watch.counted_audio * speed / rate
    return [
        str(watch.steps),
        *[f"{share:.1f}" for share in shares],
        f"{shares[3] + shares[4]:.1f}",
        f"{busy:.1f}",
        f"{speed:.1f}",
        f"{utilisation:.0f}",
        peak,
    ]


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, help="of a recipe; default: one of noise")
    parser.add_argument("--features", help="with --data-dir: which")
    parser.add_argument("--size", choices=SIZES, default="tiny", help="of the random network")
    parser.add_argument("--vocab-size", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=10.0, help="of noise")
    parser.add_argument(
        "--cuts", nargs="+", default=["frontend"], choices=["frontend", "waveform"]
    )
    parser.add_argument("--max-durations", nargs="+", type=float, default=[20.0])
    parser.add_argument("--matrix-size", type=int, default=8192 if IS_CUDA else 1024)
    parser.add_argument("train_options", nargs="*", help="after --: options for train")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    options = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as work:
        data_dir = options.data_dir or Path(work) / "data"
        if not options.data_dir:
            make_recipe(options, data_dir)
        rate = matrix_rate(options.matrix_size)
        device = torch.cuda.get_device_name() if IS_CUDA else "CPU"
        threads = torch.get_num_threads()
        print(f"{device}, {threads} threads, matrix rate {rate / 1e12:.3g} TFLOP/s\n")
        print(
            "| cut | batch seconds | steps | forward % | backward % | optimizer % | data % "
            "| other % | outside % | of its processor time | hours of audio per hour "
            "| FLOP utilisation % | peak GiB |"
        )
        print("|" + "---|" * 13, flush=True)
        for seconds, cut in itertools.product(options.max_durations, options.cuts):
            words = [f"--data-dir={data_dir}", f"--max-duration={seconds}", "--tensorboard=1"]
            if options.data_dir and options.features:
                words.append(f"--features={options.features}")
            if cut == "waveform":
                words += ["--cut=waveform", f"--xlsr={data_dir / 'xlsr'}"]
            cells = measure([*words, *options.train_options], rate)
            print("| " + " | ".join([cut, f"{seconds:g}", *cells]) + " |", flush=True)


if __name__ == "__main__":
    run_command(main)
