"""Cost of streaming: chunk by chunk against Hugging Face's whole forward, and many streams.

    python -m benchmarks.streaming [--chunks 64 32 16] [--seconds 20] [--threads 1] [--repeats 5]
    python -m benchmarks.streaming --device cuda --dtype bfloat16 --parts streams \
        --streams-chunk 32 --streams 1 8 64 512 1024 2048 4096 --steps 200

Random weights at the size of XLS-R 300M (``--size tiny`` for a try). Three tables:

ratio    one utterance: Hugging Face's ``Wav2Vec2Model`` on the whole of it, our masked forward
         (``whole``), and our streaming forward chunk by chunk. All take turns, so that other
         load on the machine hits all alike; wall and CPU time, median and minimum. The ratio is
         the median over the rounds against Hugging Face's time in the same round. CPU time
         is the fairer one for one thread on a machine with other load, wall time on a GPU.
         ``--layers plain pytorch onednn auto`` measures several of ours in turns.
streams  many streams in one batch: the time of a step, audio per second, the gain in it over
         the first number of streams, and whether 99 % of the steps were done before the next
         chunk was there.
state    bytes that a stream keeps, against the formula of docs/streaming.md.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.geometry import HOP, OVERLAP, SAMPLING_RATE
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.cpu_choice import AUTO, CPU_LAYERS
from xlsr_transducer.model.cpu_inference import prepare_for_cpu
from xlsr_transducer.model.encoder import StreamingXLSREncoder
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.state import EncoderState, state_bytes
from xlsr_transducer.model.xlsr_config import XlsrConfig

SIZES = {
    "300m": XlsrConfig(),
    "tiny": XlsrConfig(
        conv_dim=(32,) * 7,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
    ),
}
PLAIN = "plain"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Clock:
    """Wall and CPU seconds of one thing, round by round."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def measure(self, work: Callable[[], None]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)


def make_encoder(args: argparse.Namespace) -> StreamingXLSREncoder:
    """Random weights on the device, in evaluation mode."""
    torch.manual_seed(0)
    encoder = StreamingXLSREncoder(SIZES[args.size], EncoderOptions())
    return encoder.to(device=args.device, dtype=DTYPES[args.dtype]).eval()


def with_layers(encoder: StreamingXLSREncoder, layers: str) -> StreamingXLSREncoder:
    """A copy, of the same parameters, as the commands recognise on a CPU with ``layers``."""
    if layers == PLAIN:
        return encoder
    encoder = copy.deepcopy(encoder, {id(p): p for p in encoder.parameters()})
    return prepare_for_cpu(encoder, layers)


def make_hugging_face(args: argparse.Namespace) -> torch.nn.Module:
    """Hugging Face's network of the same size."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    values = {
        k: list(v) if isinstance(v, tuple) else v for k, v in asdict(SIZES[args.size]).items()
    }
    network = Wav2Vec2Model(Wav2Vec2Config(**values))
    return network.to(device=args.device, dtype=DTYPES[args.dtype]).eval()


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def settings(args: argparse.Namespace, chunk_size: int) -> ChunkSettings:
    return ChunkSettings(chunk_size, args.left_context_chunks, args.attention_sink_size)


@torch.inference_mode()
def stream_utterance(encoder: StreamingXLSREncoder, wave: Tensor, chunk: ChunkSettings) -> int:
    """Encodes (n,) samples as if they arrived chunk by chunk; returns the encoder frames."""
    encoder.set_chunk(chunk)
    state = encoder.get_init_states(1, wave.device)
    state.xlsr.tail[0] = wave[:OVERLAP]
    size, frames = chunk.chunk_size * HOP, 0
    for start in range(OVERLAP, len(wave), size):
        x = wave[start : start + size]
        lens = torch.tensor([len(x)], device=wave.device)
        if len(x) < size:
            x = torch.nn.functional.pad(x, (0, size - len(x)))
        _, out_lens, state = encoder.streaming_forward(x[None], lens, state)
        frames += int(out_lens)
    return frames


def median_and_min(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f})"


def ratio_table(args: argparse.Namespace, encoder: StreamingXLSREncoder) -> str:
    """Returns times of one utterance, by a plain ``encoder`` with every kind of layers, in turn.

    There are ``--repeats`` rounds after one that does not count.
    """
    theirs = make_hugging_face(args)
    wave = 0.05 * torch.randn(int(args.seconds * SAMPLING_RATE), device=args.device)
    lens = torch.tensor([len(wave)], device=args.device)

    @torch.inference_mode()
    def hugging_face() -> None:
        theirs(wave[None].to(DTYPES[args.dtype]))
        wait(args.device)

    @torch.inference_mode()
    def whole(encoder: StreamingXLSREncoder) -> None:
        encoder(wave[None], lens)
        wait(args.device)

    def chunks(encoder: StreamingXLSREncoder, chunk: ChunkSettings) -> None:
        stream_utterance(encoder, wave, chunk)
        wait(args.device)

    jobs: dict[str, Callable[[], None]] = {"Hugging Face, whole": hugging_face}
    for layers in args.layers:
        ours = with_layers(encoder, layers)
        jobs[f"{layers}, whole"] = functools.partial(whole, ours)
        for n in args.chunks:
            chunk = settings(args, n)
            jobs[f"{layers}, {chunk.describe()}"] = functools.partial(chunks, ours, chunk)
    clocks = {name: Clock() for name in jobs}
    for repeat in range(args.repeats + 1):
        for name, work in jobs.items():
            clocks[name].measure(work)
            if repeat == 0:
                clocks[name] = Clock()
    base = clocks["Hugging Face, whole"]
    lines = [
        "| what | wall s, median (min) | CPU s, median (min) | ratio, CPU | ratio, wall | RTF |",
        "|---|---|---|---|---|---|",
    ]
    for name, clock in clocks.items():
        cpu = statistics.median(a / b for a, b in zip(clock.cpu, base.cpu))
        wall = statistics.median(a / b for a, b in zip(clock.wall, base.wall))
        lines.append(
            f"| {name} | {median_and_min(clock.wall)} | {median_and_min(clock.cpu)} | "
            f"{cpu:.3f} | {wall:.3f} | {statistics.median(clock.wall) / args.seconds:.3f} |"
        )
    return "\n".join(lines)


class Load:
    """A batch of streams that step together, and the times of their steps."""

    def __init__(self, encoder: StreamingXLSREncoder, chunk: ChunkSettings, streams: int):
        device = encoder.like.device
        encoder.set_chunk(chunk)
        self.encoder, self.chunk, self.streams = encoder, chunk, streams
        self.state: EncoderState = encoder.get_init_states(streams, device)
        self.x = 0.05 * torch.randn(streams, chunk.chunk_size * HOP, device=device)
        self.lens = torch.full((streams,), self.x.shape[1], device=device)
        self.clock = Clock()

    def step(self) -> None:
        """One chunk of every stream."""
        with torch.inference_mode():
            _, _, self.state = self.encoder.streaming_forward(self.x, self.lens, self.state)
        wait(self.x.device.type)

    def measure(self) -> None:
        self.encoder.set_chunk(self.chunk)
        self.clock.measure(self.step)

    def quantile(self, share: float) -> float:
        ordered = sorted(self.clock.wall)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def run_loads(args: argparse.Namespace, encoder: StreamingXLSREncoder) -> list[Load]:
    """Steps of every number of streams: in turns on a CPU, one after another on a GPU."""
    chunk = settings(args, args.streams_chunk)
    warm = args.left_context_chunks + 2  # until the caches are full
    if args.device == "cpu":
        loads = [Load(encoder, chunk, n) for n in args.streams]
        for i in range(warm + args.steps):
            for load in loads:
                load.measure() if i >= warm else load.step()
        return loads
    loads = []
    for n in args.streams:
        try:
            load = Load(encoder, chunk, n)
            for i in range(warm + args.steps):
                load.measure() if i >= warm else load.step()
        except torch.cuda.OutOfMemoryError:
            print(f"\n{n} streams: out of memory")
            break
        load.state = load.x = None  # for the next, larger load
        torch.cuda.empty_cache()
        loads.append(load)
    return loads


def streams_table(args: argparse.Namespace, encoder: StreamingXLSREncoder) -> str:
    """Step latency and throughput by the number of streams in a batch."""
    chunk_seconds = args.streams_chunk * HOP / SAMPLING_RATE
    loads = run_loads(args, encoder)
    lines = [
        "| streams | ms p50 | p95 | p99 | CPU ms | audio s/s | gain, wall | gain, CPU | in time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    held = 0
    for load in loads:
        p50, p95, p99 = (1000 * load.quantile(q) for q in (0.5, 0.95, 0.99))
        in_time = p99 <= 1000 * chunk_seconds
        held = max(held, load.streams) if in_time else held
        gains = [
            load.streams / loads[0].streams * statistics.median(a / b for a, b in zip(one, many))
            for one, many in (
                (loads[0].clock.wall, load.clock.wall),
                (loads[0].clock.cpu, load.clock.cpu),
            )
        ]
        cpu = 1000 * statistics.median(load.clock.cpu)
        rate = 1000 * load.streams * chunk_seconds / p50
        lines.append(
            f"| {load.streams} | {p50:.1f} | {p95:.1f} | {p99:.1f} | {cpu:.1f} | {rate:.2f} | "
            f"{gains[0]:.2f} | {gains[1]:.2f} | {'yes' if in_time else 'no'} |"
        )
    lines.append(f"\nLargest number of streams that held real time (p99): {held}")
    return "\n".join(lines)


def state_table(args: argparse.Namespace, encoder: StreamingXLSREncoder) -> str:
    """Bytes of state per stream; the part above XLSR is named apart."""
    config = SIZES[args.size]
    width, layers = config.hidden_size, config.num_hidden_layers
    size = torch.finfo(DTYPES[args.dtype]).bits // 8
    lines = ["| setting | XLSR bytes | formula | adapter bytes |", "|---|---|---|---|"]
    for n in args.chunks:
        chunk = settings(args, n)
        encoder.set_chunk(chunk)
        state = encoder.get_init_states(1, torch.device(args.device))
        adapter = state.adapter.numel() * size
        cached = chunk.attention_sink_size + chunk.left_context_chunks * n
        formula = size * width * (2 * layers * cached + 64) + 352
        xlsr = state_bytes(state) - adapter
        lines.append(f"| {chunk.describe()} | {xlsr} | {formula} | {adapter} |")
    return "\n".join(lines)


TABLES = {"ratio": ratio_table, "streams": streams_table, "state": state_table}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--size", choices=SIZES, default="300m")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the utterance")
    parser.add_argument("--chunks", nargs="+", type=int, default=[64, 32, 16])
    parser.add_argument("--left-context-chunks", type=int, default=2)
    parser.add_argument("--attention-sink-size", type=int, default=4)
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 2, 8])
    parser.add_argument("--streams-chunk", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10, help="measured steps of a batch")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds of an utterance")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--layers",
        nargs="+",
        choices=(PLAIN, *CPU_LAYERS),
        default=[AUTO],
        help="on a CPU: as the commands recognise with --cpu-layers, or as the model trains and "
        "exports; streams and state are measured with the first",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this PyTorch finds no GPU")
    for n in [*args.chunks, args.streams_chunk]:
        settings(args, n).require_streaming()
    if args.left_context_chunks < 0:
        raise UserError("--left-context-chunks -1: the cost then has no bound; give a number")
    if min(args.repeats, args.steps, args.threads, *args.streams) < 1:
        raise UserError("--repeats, --steps, --threads and --streams must be 1 or more")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    place = torch.cuda.get_device_name() if args.device == "cuda" else f"{args.threads} thread(s)"
    print(
        f"torch {torch.__version__}, {args.device} ({place}), {args.dtype}, size {args.size}, "
        f"{'/'.join(args.layers)} layers, {args.seconds:g} s of audio; streams at chunk "
        f"{args.streams_chunk}"
    )
    encoder = make_encoder(args)
    for part in args.parts:
        network = encoder if part == "ratio" else with_layers(encoder, args.layers[0])
        print(f"\n## {part}\n\n{TABLES[part](args, network)}", flush=True)


if __name__ == "__main__":
    run_command(main)
