r"""Attention against Mamba-2 in XLSR's layers: whole utterances, chunks, and what a stream keeps.

    python -m benchmarks.mixers [--seconds 2 8 32 128] [--chunks 16 32 64] [--threads 1]
    python -m benchmarks.mixers --device cuda --dtype bfloat16 --parts whole train

Random weights at the size of XLS-R 300M (``--size tiny`` for a try); everything in one process,
the kinds taking turns. Tables:

whole    forward of one utterance: attention in full context, attention in chunks (32, left
         context 2, sinks 4), and Mamba-2 both ways in full context: seconds, and peak memory
         (above the weights; of a process of its own on a CPU). Below it, at which lengths Mamba-2
         overtakes attention, if it does: between two that were measured, by interpolation.
chunk    one step of a stream: attention (left context 2, sinks 4), Mamba-2.
state    bytes of a stream's state, float32 and bfloat16, and parameters.
train    forward and backward of a batch (``--batch-seconds``): seconds of audio per second.
teach    the same with a CTC head, alone and with a teacher of the same size with attention, whose
         layers and outputs are compared: seconds, and peak memory with weights and gradients (of a
         process of its own on a CPU; what an optimizer keeps would come on top).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.streaming import DTYPES, SIZES
from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.geometry import HOP, OVERLAP, SAMPLING_RATE
from xlsr_transducer.core.options import Number, Parser
from xlsr_transducer.core.tables import text_table
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.config import ModelConfig, StreamingOptions, build_model
from xlsr_transducer.model.encoder import StreamingXLSREncoder
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.heads import LossOptions, TransducerOptions
from xlsr_transducer.model.state import state_bytes
from xlsr_transducer.training.teacher import Teacher
from xlsr_transducer.training.teacher_options import Scales

FULL, LEFT, SINKS = ChunkSettings(), 2, 4
KINDS = {
    "attention": ("attention", FULL),
    "attention, chunks": ("attention", ChunkSettings(32, LEFT, SINKS)),
    "Mamba-2": ("bimamba2", FULL),
}
PARTS = ("whole", "chunk", "state", "train", "teach")
PIECE = 10  # seconds of each utterance in a training batch
TOKENS, VOCABULARY = 40, 500  # of a piece


def encoder_of(args: argparse.Namespace, mixer: str, chunk: int = 32) -> StreamingXLSREncoder:
    """Returns a random encoder."""
    torch.manual_seed(0)
    left = (LEFT, SINKS) if mixer == "attention" else (0, 0)
    encoder = StreamingXLSREncoder(
        SIZES[args.size].without_dropout(),
        EncoderOptions(mixer=mixer, time_mask_prob=0.0, xlsr_dropout=0.0, dropout=0.0),
        chunk=ChunkSettings(chunk, *left),
    )
    return encoder.eval().to(args.device, DTYPES[args.dtype])


def measured(args: argparse.Namespace, work: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the seconds that ``work`` takes, and what it returns."""
    start = time.perf_counter()
    result = work()
    if args.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def peak_bytes(args: argparse.Namespace) -> int:
    """Returns the most memory that was in use so far."""
    if args.device == "cuda":
        return torch.cuda.max_memory_allocated()
    # Of this process alone: what getrusage tells begins with the peak of the one that started it.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024


@torch.inference_mode()
def forward(args: argparse.Namespace, kind: str, seconds: float) -> tuple[float, float]:
    """Returns seconds of one forward, the median of some, and MB of memory that it takes."""
    mixer, chunk = KINDS[kind]
    torch.set_num_threads(args.threads)
    encoder = encoder_of(args, mixer)
    x = 0.05 * torch.randn(1, int(seconds * SAMPLING_RATE), device=args.device)
    lens = torch.tensor([x.shape[1]], device=args.device)
    encoder(x[:, :SAMPLING_RATE], lens.clamp(max=SAMPLING_RATE), *chunk)
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = peak_bytes(args)
    times = [measured(args, lambda: encoder(x, lens, *chunk))[0] for _ in range(args.repeats)]
    return statistics.median(times), (peak_bytes(args) - before) / 1e6


def alone(args: argparse.Namespace, function: Callable[..., Any], *more: Any) -> Any:
    """Returns ``function(args, *more)``; on a CPU of a process of its own, whose peak memory is
    that of this call."""
    if args.device == "cuda":
        return function(args, *more)
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, (args, *more))


def whole(args: argparse.Namespace) -> None:
    """Prints the table of whole utterances, and where its columns cross."""
    lengths = sorted(args.seconds)
    rows = [("seconds", *(f"{kind}: s, MB" for kind in KINDS))]
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for seconds in lengths:
        for kind in KINDS:
            found[kind].append(alone(args, forward, kind, seconds))
        cells = [f"{values[-1][0]:.3f}, {values[-1][1]:.0f}" for values in found.values()]
        rows.append((f"{seconds:g}", *cells))
    print(text_table(rows), flush=True)
    *others, mamba = KINDS
    for other, (i, what) in itertools.product(others, enumerate(("time", "memory"))):
        ours, theirs = ([values[i] for values in found[kind]] for kind in (mamba, other))
        print(f"{what}, {mamba} and {other}: {crossing(lengths, ours, theirs)}", flush=True)


def crossing(lengths: Sequence[float], ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Returns in words at which lengths two curves cross, taken as straight between those that
    were measured, with logarithms on both axes."""
    if min(*ours, *theirs) <= 0:
        return "not measurable"
    leads = [math.log(a / b) for a, b in zip(ours, theirs)]
    points = []
    for (low, before), (high, after) in itertools.pairwise(zip(lengths, leads)):
        if before * after < 0:
            point = low * (high / low) ** (before / (before - after))
            points.append(f"at about {point:.3g} s, {'less' if after < 0 else 'more'} beyond")
    if points:
        return "they cross " + "; ".join(points)
    size = "less" if max(leads) < 0 else "more" if min(leads) > 0 else "equal"
    return f"{size} at every length of {lengths[0]:g} to {lengths[-1]:g} s: they do not cross"


@torch.inference_mode()
def chunk(args: argparse.Namespace) -> None:
    """Prints the table of steps, in turns."""
    rows = [("chunk", "attention, ms", "Mamba-2, ms", "Mamba-2 / attention")]
    for size in args.chunks:
        encoders = [encoder_of(args, mixer, size) for mixer in ("attention", "bimamba2")]
        x = 0.05 * torch.randn(args.streams, size * HOP, device=args.device)
        lens = torch.full((args.streams,), size * HOP, device=args.device)
        states = [e.get_init_states(args.streams, x.device) for e in encoders]
        times: list[list[float]] = [[], []]
        for turn in range(args.repeats * 10 + 3):
            for i, encoder in enumerate(encoders):
                step = functools.partial(encoder.streaming_forward, x, lens, states[i])
                seconds, (_, _, states[i]) = measured(args, step)
                if turn >= 3:
                    times[i].append(seconds)
        medians = [1000 * statistics.median(t) for t in times]
        ratio = statistics.median(b / a for a, b in zip(*times))
        rows.append((str(size), f"{medians[0]:.1f}", f"{medians[1]:.1f}", f"{ratio:.2f}"))
    print(text_table(rows), flush=True)


def state(args: argparse.Namespace) -> None:
    """Prints the table of states and parameters."""
    rows = [("mixer", "chunk", "float32, MB", "bfloat16, MB", "parameters, M")]
    for mixer, title in (("attention", "attention"), ("bimamba2", "Mamba-2")):
        encoder = encoder_of(args, mixer).cpu().float()
        count = sum(p.numel() for p in encoder.parameters()) / 1e6
        for size in args.chunks:
            left = (LEFT, SINKS) if mixer == "attention" else (0, 0)
            cells = []
            for dtype in (torch.float32, torch.bfloat16):
                encoder.to(dtype).set_chunk(ChunkSettings(size, *left))
                empty = encoder.get_init_states(1, torch.device("cpu"))
                cells.append(f"{state_bytes(empty) / 1e6:.2f}")
            rows.append((title, str(size), *cells, f"{count:.1f}"))
    print(text_table(rows), flush=True)


def training_batch(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns pieces of audio (N, n) and their lengths (N,)."""
    count = max(int(args.batch_seconds / PIECE), 1)
    x = 0.05 * torch.randn(count, PIECE * SAMPLING_RATE + OVERLAP, device=args.device)
    return x, torch.full((count,), x.shape[1], device=args.device)


def train(args: argparse.Namespace) -> None:
    """Prints the table of forward and backward."""
    rows = [("kind", "seconds of audio per second", "peak memory, MB")]
    for kind, (mixer, setting) in KINDS.items():
        encoder = encoder_of(args, mixer).float().train()
        encoder.xlsr.feature_extractor.requires_grad_(False)
        x, lens = training_batch(args)
        dtype = DTYPES[args.dtype]

        def step(encoder=encoder, x=x, lens=lens, setting=setting, dtype=dtype) -> None:
            with torch.autocast(args.device, dtype, enabled=dtype != torch.float32):
                out = encoder(x, lens, *setting)[0]
            out.float().square().mean().backward()
            encoder.zero_grad(set_to_none=True)

        step()
        if args.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times = [measured(args, step)[0] for _ in range(args.repeats)]
        speed = PIECE * len(x) / statistics.median(times)
        rows.append((kind, f"{speed:.1f}", f"{peak_bytes(args) / 1e6:.0f}"))
        del encoder
    print(text_table(rows), flush=True)


def taught_step(args: argparse.Namespace, mixer: str, is_taught: bool) -> tuple[float, float]:
    """Returns seconds of forward and backward, the median of some, and the peak memory in MB."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = model_config(args, mixer)
    model = build_model(config).to(args.device).train()
    model.encoder.xlsr.feature_extractor.requires_grad_(False)
    teacher = None
    if is_taught:
        teacher = Teacher(Scales(15.0, 1.0), config)
        other = model_config(args, "attention")
        teacher.take(other, build_model(other).state_dict(), torch.device(args.device))
    x, lens = training_batch(args)
    y = torch.randint(1, VOCABULARY, (len(x), TOKENS), device=args.device)
    y_lens = torch.full((len(x),), TOKENS, device=args.device)
    dtype, options = DTYPES[args.dtype], LossOptions(heads="ctc")

    def step() -> None:
        with torch.autocast(args.device, dtype, enabled=dtype != torch.float32):
            losses = model(x, lens, y, y_lens, options, FULL, teacher and teacher.lesson)
        total = options.weighted(losses, 0)
        if teacher:
            total = total + teacher.weighted(losses)
        total.sum().backward()
        model.zero_grad(set_to_none=True)

    step()
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = [measured(args, step)[0] for _ in range(args.repeats)]
    return statistics.median(times), peak_bytes(args) / 1e6


def model_config(args: argparse.Namespace, mixer: str) -> ModelConfig:
    """Returns that of a CTC model without dropout."""
    encoder = EncoderOptions(mixer=mixer, time_mask_prob=0.0, xlsr_dropout=0.0, dropout=0.0)
    features = FeatureInfo("random", "", "waveform", "cumulative", 1)
    of_heads = (TransducerOptions(), StreamingOptions(), VOCABULARY, ("ctc",))
    return ModelConfig(features, SIZES[args.size].without_dropout(), encoder, *of_heads)


def teach(args: argparse.Namespace) -> None:
    """Prints the table of what a teacher costs."""
    rows = [("student", "alone: s, MB", "taught: s, MB", "time", "memory")]
    for mixer, title in (("attention", "attention"), ("bimamba2", "Mamba-2")):
        plain, taught = (alone(args, taught_step, mixer, is_taught) for is_taught in (False, True))
        ratios = [f"x {b / a:.2f}" for a, b in zip(plain, taught)]
        cells = [f"{seconds:.2f}, {size:.0f}" for seconds, size in (plain, taught)]
        rows.append((title, *cells, *ratios))
    print(text_table(rows), flush=True)


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    positive = Number(int, at_least=1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["whole", "chunk", "state"])
    parser.add_argument("--size", choices=SIZES, default="300m")
    parser.add_argument("--seconds", nargs="+", type=float, default=[2, 8, 32, 128])
    parser.add_argument("--chunks", nargs="+", type=positive, default=[16, 32, 64])
    parser.add_argument("--streams", type=positive, default=1)
    parser.add_argument("--batch-seconds", type=float, default=100.0)
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.device}, {args.dtype}, {args.threads} threads")
    tables = dict(zip(PARTS, (whole, chunk, state, train, teach)))
    for part in args.parts:
        tables[part](args)


if __name__ == "__main__":
    run_command(main)
