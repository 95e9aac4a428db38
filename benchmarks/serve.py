"""How many callers a server takes in real time, and how long they wait for text.

    python -m benchmarks.serve --size toy --form int8                    # the largest number
    python -m benchmarks.serve --size 300m --form int8 --threads 2 --callers 4 8
    python -m benchmarks.serve --in-process --size 300m --device cuda --dtype bfloat16 \\
        --callers 512 1024 2048

Random weights of the size of XLS-R 300M or of the demo's toy network, which emit some 4 tokens a
second. Callers speak one call after the other, in real time, from a process of their own
(``--clients`` for several), in messages of ``--message-ms``. Latencies, p50, p95 and p99:

final     from a call's last sample to its last result
partial   from the moment when the last sample of a chunk was due to the chunk's new text

A number of callers *holds* if both p99 are below the duration of a chunk and the wait does not
grow (its median in the last third of the time is at most a quarter of a chunk above that in the
first), and no call failed.
Without ``--callers`` the largest number that holds is found by doubling, then bisection to 10 %.
Contenders, one after the other:

ours         ``python -m xlsr_transducer.serve``
one-by-one   the same server, whose steps take one stream each, the one that has waited longest
sherpa-onnx  its stock server, with a network whose layers are as large (see ``serve_sherpa.py``)

``--in-process`` measures the engine alone, in this process, with streams fed at real time's pace.
Cores: ``--server-cores 0 --client-cores 1`` keeps the two apart; otherwise they share all.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.serve_engine import RealTime
from benchmarks.serve_models import SIZES, make_config, make_network, noise, write_model
from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.geometry import HOP, SAMPLING_RATE

ONE_BY_ONE, SHERPA = "one-by-one", "sherpa-onnx"
CONTENDERS = ("ours", ONE_BY_ONE, SHERPA)
WARM = 10.0  # seconds at the start that do not count
RAMP = 5.0  # seconds within which the callers begin
PRECISION = 1.1  # of the largest number that holds
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
COLUMNS = (
    "contender",
    "callers",
    "final, ms: p50, p95, p99",
    "partial, ms: p50, p95, p99",
    "calls",
    "server, cores",
    "clients, cores",
    "sent late, ms: p99",
    "tokens/s",
    "holds",
)


def quantiles(seconds: Sequence[float]) -> list[float]:
    """Returns p50, p95 and p99."""
    ordered = sorted(seconds) or [float("nan")]
    return [ordered[min(int(q * len(ordered)), len(ordered) - 1)] for q in (0.5, 0.95, 0.99)]


def in_ms(seconds: Sequence[float]) -> str:
    """Returns p50, p95 and p99 for a table."""
    return ", ".join(f"{1000 * q:.0f}" for q in quantiles(seconds))


@dataclass
class Outcome:
    """What so many callers saw; times in seconds."""

    callers: int
    finals: list[tuple[float, float]]  # when, and how long
    partials: list[tuple[float, float]]
    late: list[tuple[float, float]]
    tokens_per_second: float
    errors: list[str]
    server_cores: float  # processor time over time
    client_cores: float

    def growth(self, seconds: float) -> float:
        """Returns by how much the median wait for partial results grew from the first third of
        the time to the last."""
        first = [s for t, s in self.partials if t < seconds / 3]
        last = [s for t, s in self.partials if t > 2 * seconds / 3]
        return statistics.median(last) - statistics.median(first) if first and last else 0.0

    def holds(self, chunk: float, seconds: float) -> bool:
        """Returns whether results kept up with real time."""
        if self.errors or not self.finals or not self.partials:
            return False
        worst = max(quantiles([s for _, s in waits])[2] for waits in (self.finals, self.partials))
        return worst < chunk and self.growth(seconds) < chunk / 4

    def row(self, name: str, chunk: float, seconds: float) -> str:
        """Returns a line of the table."""
        finals, partials, late = (
            [s for _, s in x] for x in (self.finals, self.partials, self.late)
        )
        verdict = "yes" if self.holds(chunk, seconds) else "no"
        if self.errors:
            verdict += f" ({len(self.errors)} errors: {self.errors[0]})"
        cores = (f"{self.server_cores:.2f}", f"{self.client_cores:.2f}")
        late = f"{1000 * quantiles(late)[2]:.0f}"
        counts = (len(finals), *cores, late, f"{self.tokens_per_second:.1f}", verdict)
        return line(name, self.callers, in_ms(finals), in_ms(partials), *counts)


def line(*cells: object) -> str:
    """Returns a line of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def heading(columns: Sequence[str]) -> str:
    """Returns the first two lines of a table."""
    return f"{line(*columns)}\n{'|---' * len(columns)}|"


def on_cores(cores: str) -> Callable[[], None] | None:
    """Returns what a new process does first to stay on ``cores``, such as ``0,1``."""
    return (lambda: os.sched_setaffinity(0, set(map(int, cores.split(","))))) if cores else None


def cpu_seconds(pid: int) -> float:
    """Returns the processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(name: str, args: argparse.Namespace):
    """Runs a contender's server; yields its process and port."""
    if name == SHERPA:
        from benchmarks.serve_sherpa import start

        process, port = start(args, on_cores(args.server_cores))
    else:
        module = "benchmarks.serve_one_by_one" if name == ONE_BY_ONE else "xlsr_transducer.serve"
        command = [sys.executable, "-m", module, "--port=0", "--max-sessions=100000"]
        command += write_model(args.size, args.chunk_size, args.form, args.dir)
        process = subprocess.Popen(
            [*command, *args.serve_options.split()],
            stdout=subprocess.PIPE,
            stderr=(args.dir / "server.log").open("w"),
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(args.threads)},
            preexec_fn=on_cores(args.server_cores),
        )
        announced = re.search(r":(\d+) in a browser", process.stdout.readline())
        if announced is None:
            reason = (args.dir / "server.log").read_text().strip()
            raise RuntimeError(f"{name}: the server did not start: {reason}")
        port = int(announced[1])
    try:
        yield process, port
    finally:
        process.send_signal(signal.SIGTERM if name != SHERPA else signal.SIGKILL)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def client_command(
    name: str, args: argparse.Namespace, port: int, callers: int, seed: int
) -> list:
    """Returns the command of a process of callers."""
    values = {
        "url": f"ws://127.0.0.1:{port}/",
        "callers": callers,
        "seconds": args.seconds,
        "warm": WARM,
        "ramp": RAMP,
        "message-ms": args.message_ms,
        "chunk-samples": args.chunk_size * HOP,
        "from-segment": int(name == SHERPA),
        "seed": seed,
    }
    options = [f"--{key}={value}" for key, value in values.items()]
    return [sys.executable, "-m", "benchmarks.serve_callers", *options]


def measure(name: str, args: argparse.Namespace, callers: int) -> Outcome:
    """Lets ``callers`` call a server of their own."""
    with running(name, args) as (server, port):
        shares = [
            callers // args.clients + (n < callers % args.clients) for n in range(args.clients)
        ]
        before = cpu_seconds(server.pid)
        clients = [
            subprocess.Popen(
                client_command(name, args, port, share, args.seed + n),
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                preexec_fn=on_cores(args.client_cores),
            )
            for n, share in enumerate(shares)
            if share
        ]
        found = [json.loads(client.communicate()[0].splitlines()[-1]) for client in clients]
        server_cores = (cpu_seconds(server.pid) - before) / (WARM + args.seconds)
    kinds = ("finals", "partials", "late", "errors")
    merged = {key: [x for f in found for x in f[key]] for key in kinds}
    tokens, seconds, client_cores = (
        sum(f[key] for f in found) for key in ("tokens", "seconds", "cores")
    )
    return Outcome(
        callers=callers,
        tokens_per_second=tokens / max(seconds, 1e-9),
        server_cores=server_cores,
        client_cores=client_cores,
        **merged,
    )


def largest(try_out: Callable[[int], bool], first: int) -> int:
    """Returns the largest number that holds, to ``PRECISION``; 0 if one does not."""
    good, bad, number = 0, None, first
    while bad is None or (bad > good + 1 and bad > PRECISION * good):
        if try_out(number):
            good = number
        else:
            bad = number
        number = 2 * good if bad is None else max((good + bad) // 2, 1)
    return good


def run_servers(args: argparse.Namespace) -> None:
    """Prints the table of all contenders."""
    chunk = args.chunk_size * HOP / SAMPLING_RATE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a file for each connection
    print(heading(COLUMNS), flush=True)
    held: dict[str, int] = {}
    for name in args.contenders:

        def try_out(callers: int, name: str = name) -> bool:
            outcome = measure(name, args, callers)
            print(outcome.row(name, chunk, args.seconds), flush=True)
            return outcome.holds(chunk, args.seconds)

        if args.callers:
            for callers in args.callers:
                try_out(callers)
        else:
            held[name] = largest(try_out, args.first)
    for name, callers in held.items():
        print(f"\nlargest number of callers that holds, {name}: {callers}")


def run_engine(args: argparse.Namespace) -> None:
    """Prints the table of ``--in-process``."""
    torch.set_num_threads(args.threads)
    chunk = args.chunk_size * HOP / SAMPLING_RATE
    network = make_network(make_config(args.size, args.chunk_size))
    network = network.to(device=args.device, dtype=DTYPES[args.dtype])
    audio = noise(60.0)
    waits = ("step, ms: p50, p95, p99", "wait, ms: p50, p95, p99")
    print(heading(("streams", *waits, "batch, mean", "tokens/s", "holds")), flush=True)
    for number in args.callers or [1]:
        steps = RealTime(network, number, audio, args.seed).run(WARM, args.seconds)
        tokens = steps.tokens / (steps.chunks * chunk)
        verdict = "yes" if quantiles(steps.latency)[2] < chunk else "no"
        batch = f"{statistics.mean(steps.sizes):.1f}"
        waits = (in_ms(steps.seconds), in_ms(steps.latency))
        print(line(number, *waits, batch, f"{tokens:.1f}", verdict), flush=True)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="toy")
    parser.add_argument("--form", choices=("pytorch", "onnx", "int8"), default="int8")
    parser.add_argument("--chunk-size", type=int, default=32)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=["ours"])
    parser.add_argument("--callers", type=int, nargs="+", help="numbers to measure")
    parser.add_argument("--first", type=int, default=8, help="the number to begin the search with")
    parser.add_argument("--seconds", type=float, default=40.0, help="measured time of a number")
    parser.add_argument("--message-ms", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1, help="of the server's computations")
    parser.add_argument("--clients", type=int, default=1, help="processes of callers")
    parser.add_argument("--server-cores", default="", help="such as 0,1")
    parser.add_argument("--client-cores", default="")
    parser.add_argument("--serve-options", default="", help="more options of our server")
    parser.add_argument(
        "--sherpa-options", default="", help="more options of sherpa-onnx's server"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, help="keep the models here, or find them here")
    parser.add_argument("--in-process", action="store_true", help="the engine without a server")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of --in-process")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of --in-process")
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this PyTorch finds no GPU")
    if min(args.threads, args.clients, args.first, args.message_ms, *(args.callers or [1])) < 1:
        raise UserError("--threads, --clients, --first, --message-ms, --callers must be 1 or more")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    place = torch.cuda.get_device_name() if args.device == "cuda" else f"{os.cpu_count()} cores"
    print(
        f"torch {torch.__version__}, {place}, load {os.getloadavg()[0]:.1f}; size {args.size}, "
        f"chunk {args.chunk_size}, {args.threads} thread(s); server on cores "
        f"{args.server_cores or 'all'}, clients on {args.client_cores or 'all'}\n"
    )
    if args.in_process:
        run_engine(args)
        return
    with tempfile.TemporaryDirectory() as scratch:
        args.dir = args.dir or Path(scratch)
        run_servers(args)


if __name__ == "__main__":
    run_command(main)
