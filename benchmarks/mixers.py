r"""Attention against Mamba-2 in XLSR's layers: whole utterances, chunks, and what a stream keeps.

    python -m benchmarks.mixers [--seconds 2 8 32 128] [--chunks 16 32 64] [--threads 1]
    python -m benchmarks.mixers --device cuda --dtype bfloat16 --parts whole train

Random weights at the size of XLS-R 300M (``--size tiny`` for a try); everything in one process,
the kinds taking turns. Tables:

whole    forward of one utterance: attention in full context, attention in chunks (32, left
         context 2, sinks 4), and Mamba-2 both ways in full context: seconds, and peak memory
         (above the weights; of a process of its own on a CPU).
chunk    one step of a stream: attention (left context 2, sinks 4), Mamba-2.
state    bytes of a stream's state, float32 and bfloat16, and parameters.
train    forward and backward of a batch (``--batch-seconds``): seconds of audio per second.
"""

from __future__ import annotations

import argparse
import functools
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks.streaming import DTYPES, SIZES
from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.geometry import HOP, OVERLAP, SAMPLING_RATE
from xlsr_transducer.core.options import Number, Parser
from xlsr_transducer.core.tables import text_table
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.encoder import StreamingXLSREncoder
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.state import state_bytes

FULL, LEFT, SINKS = ChunkSettings(), 2, 4
KINDS = {
    "attention": ("attention", FULL),
    "attention, chunks": ("attention", ChunkSettings(32, LEFT, SINKS)),
    "Mamba-2": ("bimamba2", FULL),
}
PARTS = ("whole", "chunk", "state", "train")


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
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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


def whole(args: argparse.Namespace) -> None:
    """Prints the table of whole utterances."""
    rows = [("seconds", *(f"{kind}: s, MB" for kind in KINDS))]
    for seconds in args.seconds:
        cells = []
        for kind in KINDS:
            if args.device == "cuda":
                found = forward(args, kind, seconds)
            else:  # a process of its own, whose peak memory is that of this forward
                with get_context("spawn").Pool(1) as pool:
                    found = pool.apply(forward, (args, kind, seconds))
            cells.append(f"{found[0]:.3f}, {found[1]:.0f}")
        rows.append((f"{seconds:g}", *cells))
    print(text_table(rows), flush=True)


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


def train(args: argparse.Namespace) -> None:
    """Prints the table of forward and backward."""
    rows = [("kind", "seconds of audio per second", "peak memory, MB")]
    for kind, (mixer, setting) in KINDS.items():
        encoder = encoder_of(args, mixer).float().train()
        encoder.xlsr.feature_extractor.requires_grad_(False)
        count = max(int(args.batch_seconds / 10), 1)
        x = 0.05 * torch.randn(count, 10 * SAMPLING_RATE + OVERLAP, device=args.device)
        lens = torch.full((count,), x.shape[1], device=args.device)
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
        speed = 10 * count / statistics.median(times)
        rows.append((kind, f"{speed:.1f}", f"{peak_bytes(args) / 1e6:.0f}"))
        del encoder
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
    tables = {"whole": whole, "chunk": chunk, "state": state, "train": train}
    for part in args.parts:
        tables[part](args)


if __name__ == "__main__":
    run_command(main)
