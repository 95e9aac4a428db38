"""What a grid saves that computes the front end once: against a separate pass per setting.

    python -m benchmarks.grid [--size 300m] [--grid 16,32,64/1,2/0,4] [--seconds 10] [--repeats 3]

Random weights at the size of XLS-R 300M, or the demo's toy network (``--size toy``), on noise. A
round encodes one utterance with every setting, as ``evaluate`` does, from one output of the front
end (``shared``), and as separate decodes do, from the waveform each time (``separate``). Both take
turns, so that other load on the machine hits both alike. Searches are left out: they cost the
same in both.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.streaming import SIZES, Clock, median_and_min, wait
from local.demo.make_toy_xlsr import SHAPE
from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.core.options import Number, Parser
from xlsr_transducer.evaluation.options import GRIDS, EvaluateOptions
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.cpu_choice import AUTO, CPU_LAYERS
from xlsr_transducer.model.cpu_inference import prepare_for_cpu
from xlsr_transducer.model.encoder import StreamingXLSREncoder
from xlsr_transducer.model.encoder_options import EncoderOptions

NETWORKS = {"300m": SIZES["300m"], "toy": SHAPE}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(NETWORKS), default="300m")
    parser.add_argument("--grid", default="short", help=f"as in evaluate: {', '.join(GRIDS)}, ...")
    parser.add_argument("--seconds", type=Number(float, at_least=1), default=10.0)
    parser.add_argument("--repeats", type=Number(int, at_least=1), default=3, help="rounds")
    parser.add_argument("--threads", type=Number(int, at_least=1), default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--cpu-layers", choices=CPU_LAYERS, default=AUTO)
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this PyTorch finds no GPU")
    return args


def make_encoders(args: argparse.Namespace) -> tuple[StreamingXLSREncoder, StreamingXLSREncoder]:
    """Returns a random encoder from the waveform, and its part above the front end."""
    torch.manual_seed(0)
    whole = StreamingXLSREncoder(NETWORKS[args.size], EncoderOptions())
    upper = StreamingXLSREncoder(NETWORKS[args.size], EncoderOptions(), "frontend")
    weights = whole.state_dict()
    upper.load_state_dict({name: weights[name] for name in upper.state_dict()})
    encoders = [e.to(args.device).eval() for e in (whole, upper)]
    if args.device == "cpu":
        encoders = [prepare_for_cpu(e, args.cpu_layers) for e in encoders]
    return encoders[0], encoders[1]


def measure(args: argparse.Namespace, settings: Sequence[ChunkSettings]) -> dict[str, Clock]:
    """Returns the times of both ways, and of the front end alone, after a round that does not
    count."""
    whole, upper = make_encoders(args)
    wave = 0.05 * torch.randn(1, int(args.seconds * SAMPLING_RATE), device=args.device)
    lens = torch.tensor([wave.shape[1]], device=args.device)
    outputs: dict[str, list[Tensor]] = {}

    @torch.inference_mode()
    def front_end() -> None:
        whole.xlsr.front_end(wave, lens)
        wait(args.device)

    @torch.inference_mode()
    def shared() -> None:
        x, x_lens = whole.xlsr.front_end(wave, lens)
        outputs["shared"] = [upper.encode(x, x_lens, *chunk)[0] for chunk in settings]
        wait(args.device)

    @torch.inference_mode()
    def separate() -> None:
        outputs["separate"] = [whole.encode(wave, lens, *chunk)[0] for chunk in settings]
        wait(args.device)

    jobs = {"front end": front_end, "shared": shared, "separate": separate}
    clocks = {name: Clock() for name in jobs}
    for repeat in range(args.repeats + 1):
        for name, job in jobs.items():
            clocks[name].measure(job)
        if repeat == 0:
            clocks = {name: Clock() for name in jobs}
            off = max(float((a - b).abs().max()) for a, b in zip(*outputs.values()))
            if off > 1e-3:
                raise AssertionError(f"the two ways differ by {off}")
    return clocks


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    settings = [ChunkSettings(), *EvaluateOptions(grid=args.grid).settings()]
    clocks = measure(args, settings)
    base = clocks["separate"]
    print(
        f"torch {torch.__version__}, {args.device}, {args.threads} thread(s), size {args.size}, "
        f"{len(settings)} settings, {args.seconds:g} s of audio\n\n"
        "| what | wall s, median (min) | CPU s, median (min) | ratio, CPU | ratio, wall |\n"
        "|---|---|---|---|---|"
    )
    for name, clock in clocks.items():
        cpu = statistics.median(a / b for a, b in zip(clock.cpu, base.cpu))
        wall = statistics.median(a / b for a, b in zip(clock.wall, base.wall))
        times = f"{median_and_min(clock.wall)} | {median_and_min(clock.cpu)}"
        print(f"| {name} | {times} | {cpu:.3f} | {wall:.3f} |")


if __name__ == "__main__":
    run_command(main)
