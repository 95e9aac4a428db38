"""Exported formats at XLS-R 300M's size: bytes on disk, time to load, real-time factor.

    python -m benchmarks.export [--seconds 8] [--chunk-size 32] [--repeats 3] [--threads 1]

Random weights. Contenders:

torch float32      PyTorch as the model trains and exports
torch prepared     the same with the layers that the commands recognise with on a CPU
torch bfloat16     PyTorch's own layers
torch int8         linear layers by ``torch.ao.quantization.quantize_dynamic``
onnx float32, onnx int8   files of ``export --onnx 1 --int8 1`` in onnxruntime

Each is measured in a process of its own, one after the other in several rounds, so that other
load hits all alike and one model at a time is in memory: the time to load it, one utterance,
and chunk steps of one stream once its caches are full. Processor time; ratios are medians over
the rounds of the ratio to the first contender in the same round.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.streaming import SIZES
from xlsr_transducer.core.compat import shapes_only
from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.geometry import HOP, SAMPLING_RATE
from xlsr_transducer.exporting import onnx_format, onnx_graphs
from xlsr_transducer.exporting.formats import FormatOptions, Job
from xlsr_transducer.exporting.scripted import OfflineEncoder
from xlsr_transducer.model.checkpoint import LoadedModel
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.config import ModelConfig, StreamingOptions, build_model
from xlsr_transducer.model.cpu_inference import prepare_for_cpu
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.heads import TransducerOptions
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.recognition.onnx_models import OnnxEncoder, OnnxStreamingEncoder, open_session

CONTENDERS = (
    "torch float32",
    "torch prepared",
    "torch bfloat16",
    "torch int8",
    "onnx float32",
    "onnx int8",
)
WARM, STEPS = 3, 6  # of one stream: until its caches are full, and measured


def make_job(args: argparse.Namespace) -> Job:
    """A model of random values."""
    features = FeatureInfo("random", "", "waveform", "cumulative", 1, ChunkSettings(), "", "")
    config = ModelConfig(
        features=features,
        xlsr=SIZES[args.size],
        encoder=EncoderOptions(),
        transducer=TransducerOptions(),
        streaming=StreamingOptions(True, str(args.chunk_size)),
        vocab_size=500,
        heads=("transducer",),
    )
    model = build_model(config, whole=True).requires_grad_(False).eval()
    loaded = LoadedModel(model, config, types.SimpleNamespace(tokens=[]))
    return Job(loaded, config.streaming.default(), "random", args.dir, FormatOptions())


def write_files(args: argparse.Namespace) -> None:
    """What the contenders load."""
    torch.manual_seed(0)
    job = make_job(args)
    model = job.loaded.model
    torch.save(model.state_dict(), args.dir / "float32.pt")
    half = {name: value.bfloat16() for name, value in model.state_dict().items()}
    torch.save(half, args.dir / "bfloat16.pt")
    quantized = copy.deepcopy(model)
    quantize_linears(quantized)
    torch.save(quantized.state_dict(), args.dir / "int8.pt")
    del half, quantized
    with torch.no_grad(), onnx_graphs.traceable(model):
        about = onnx_format.describe(job)
        for write in (onnx_format.write_offline, onnx_format.write_streaming):
            onnx_format.quantize(write(job, model, "", args.dir, about), args.dir)


def quantize_linears(model: SpeechModel) -> None:
    """PyTorch's dynamic quantization of XLSR's linear layers, in place."""
    warnings.simplefilter("ignore")
    xlsr = model.encoder.xlsr
    torch.ao.quantization.quantize_dynamic(xlsr, {nn.Linear}, torch.qint8, inplace=True)


def load(args: argparse.Namespace, job: Job) -> tuple[nn.Module, nn.Module]:
    """The contender's encoder for whole utterances, and the one for chunks.

    Args:
      job: of a model without values.
    """
    if args.worker.startswith("onnx"):
        suffix = ".int8" * args.worker.endswith("int8")
        files = [args.dir / onnx_format.names(job, suffix, kind)[0] for kind in (False, True)]
        return OnnxEncoder(open_session(files[0])), OnnxStreamingEncoder(open_session(files[1]))
    kind = "bfloat16" if args.worker == "torch bfloat16" else "float32"
    model = job.loaded.model
    weights = torch.load(args.dir / f"{kind}.pt", weights_only=True)
    model.load_state_dict(weights, assign=True)
    model.requires_grad_(False)
    if args.worker == "torch prepared":
        prepare_for_cpu(model)
    if args.worker == "torch int8":
        quantize_linears(model)
    return OfflineEncoder(model.encoder, job.chunk), model.encoder


def make_empty(args: argparse.Namespace) -> Job:
    with shapes_only():
        return make_job(args)


def seconds_of(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, float]:
    """Processor seconds: to load, for an utterance, and for a chunk step."""
    warnings.simplefilter("ignore")
    encoders: list[nn.Module] = []
    job = make_empty(args)
    times = {"load": seconds_of(lambda: encoders.extend(load(args, job)))}
    whole, streaming = encoders
    wave = 0.05 * torch.randn(1, int(args.seconds * SAMPLING_RATE))
    whole(wave[:, :SAMPLING_RATE], torch.tensor([SAMPLING_RATE]))
    times["whole"] = seconds_of(lambda: whole(wave, torch.tensor([wave.shape[1]])))
    state = streaming.get_init_states(1, torch.device("cpu"))
    x = 0.05 * torch.randn(1, args.chunk_size * HOP)
    steps = []
    for _ in range(WARM + STEPS):
        start = time.process_time()
        _, _, state = streaming.streaming_forward(x, torch.tensor([x.shape[1]]), state)
        steps.append(time.process_time() - start)
    times["step"] = statistics.median(steps[WARM:])
    return times


def run_worker(name: str, args: argparse.Namespace, argv: Sequence[str]) -> dict[str, float]:
    """``measure`` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.export", *argv]
    command += ["--worker", name, "--dir", str(args.dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def megabytes(name: str, args: argparse.Namespace) -> str:
    """Of the file that streams; PyTorch has one for both ways."""
    kind = name.split()[1]
    if name.startswith("onnx"):
        suffix = ".int8" * (kind == "int8")
        path = args.dir / onnx_format.names(make_empty(args), suffix, True)[0]
    else:
        path = args.dir / f"{'float32' if kind == 'prepared' else kind}.pt"
    return f"{path.stat().st_size / 1e6:.0f}"


def format_results(rounds: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> str:
    """The table of docs/benchmarks.md."""
    chunk = args.chunk_size * HOP / SAMPLING_RATE
    lines = [
        "| | MB | load, s | RTF, whole | ratio | RTF, chunk step | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    base = next(iter(rounds.values()))
    for name, times in rounds.items():
        loads, wholes, steps = ([t[key] for t in times] for key in ("load", "whole", "step"))
        ratios = [
            statistics.median(t[key] / b[key] for t, b in zip(times, base))
            for key in ("whole", "step")
        ]
        lines.append(
            f"| {name} | {megabytes(name, args)} | {statistics.median(loads):.1f} | "
            f"{statistics.median(wholes) / args.seconds:.3f} | {ratios[0]:.2f} | "
            f"{statistics.median(steps) / chunk:.3f} | {ratios[1]:.2f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="300m")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of the utterance")
    parser.add_argument("--chunk-size", type=int, default=32)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dir", type=Path, help="keep the files here, or find them here")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        torch.set_num_threads(args.threads)
        print(json.dumps(measure(args)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        args.dir = args.dir or Path(scratch)
        args.dir.mkdir(parents=True, exist_ok=True)
        if not list(args.dir.glob("*.int8.onnx")):
            write_files(args)
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in args.contenders}
        for number in range(args.repeats):
            for name in args.contenders:
                rounds[name].append(run_worker(name, args, argv))
                print(f"round {number + 1}, {name}: {rounds[name][-1]}", file=sys.stderr)
        print(format_results(rounds, args))


if __name__ == "__main__":
    run_command(main)
