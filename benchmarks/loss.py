"""Time and peak memory of the transducer losses, forward and backward, side by side.

    python -m benchmarks.loss [--sizes 8,200,40,500 ...] [--threads 1 2] [--growth]

Contenders: the project's PyTorch backend and k2 (smoothed loss, prune ranges, pruning, joiner,
pruned loss), and torchaudio's loss on the full (B, T, S + 1, V) logits; those that do not import
are named as not installed. Each runs in a process of its own; the repeats of all of them take
turns, so that other load on the machine hits all alike, and the median counts. Peak memory is
that of the first step in the fresh process, above what the process held before it.

Letters: B utterances, T frames, S symbols, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.loss import get_backend

ROOT = Path(__file__).resolve().parent.parent
CONTENDERS = ("torch", "k2", "torchaudio")
TITLES = {"torch": "ours", "k2": "k2 pruned", "torchaudio": "torchaudio full"}
ENOUGH_SECONDS = 30  # of one contender; after that three repeats do
GROWTH = ((8, 200, 40, 500), (8, 400, 40, 500), (8, 200, 80, 500), (8, 200, 40, 1000))


@dataclass(frozen=True)
class Job:
    """What one worker process measures."""

    contender: str
    size: tuple[int, int, int, int]
    threads: int
    device: str
    joiner_dim: int
    prune_range: int


def make_inputs(job: Job, size: Sequence[int]) -> dict[str, Tensor]:
    """Random projections for the simple loss and the joiner; all utterances of full length."""
    B, T, S, V = size
    g = torch.Generator().manual_seed(0)

    def leaf(*shape: int, scale: float = 1.0) -> Tensor:
        x = torch.randn(*shape, generator=g) * scale
        return x.to(job.device).requires_grad_(True)

    J = job.joiner_dim
    x = dict(
        am=leaf(B, T, V), lm=leaf(B, S + 1, V), enc=leaf(B, T, J), dec=leaf(B, S + 1, J),
        weight=leaf(V, J, scale=J**-0.5), bias=leaf(V),
    )  # fmt: skip
    x["symbols"] = torch.randint(1, V, (B, S), generator=g).to(job.device)
    x["boundary"] = torch.tensor([[0, 0, S, T]] * B).to(job.device)
    return x


def joiner(x: dict[str, Tensor], enc: Tensor, dec: Tensor) -> Tensor:
    return torch.nn.functional.linear(torch.tanh(enc + dec), x["weight"], x["bias"])


def pruned_step(x: dict[str, Tensor], backend_name: str, prune_range: int) -> float:
    """One training step's losses by a backend with k2's functions; returns the pruned loss."""
    k2 = get_backend(backend_name)
    simple, (px_grad, py_grad) = k2.rnnt_loss_smoothed(
        x["lm"], x["am"], x["symbols"], 0, lm_only_scale=0.25, am_only_scale=0.0,
        boundary=x["boundary"], reduction="sum", return_grad=True,
    )  # fmt: skip
    ranges = k2.get_rnnt_prune_ranges(px_grad, py_grad, x["boundary"], prune_range)
    logits = joiner(x, *k2.do_rnnt_pruning(x["enc"], x["dec"], ranges))
    pruned = k2.rnnt_loss_pruned(
        logits, x["symbols"], ranges, 0, boundary=x["boundary"], reduction="sum"
    )
    (0.5 * simple + pruned).backward()
    return pruned.item()


def full_step(x: dict[str, Tensor]) -> float:
    """The same by torchaudio's unpruned loss."""
    import torchaudio

    logits = joiner(x, x["enc"].unsqueeze(2), x["dec"].unsqueeze(1))
    loss = torchaudio.functional.rnnt_loss(
        logits, x["symbols"].int(), x["boundary"][:, 3].int(), x["boundary"][:, 2].int(),
        blank=0, reduction="sum",
    )  # fmt: skip
    loss.backward()
    return loss.item()


def make_step(job: Job, size: Sequence[int]) -> Callable[[], float]:
    x = make_inputs(job, size)

    def step() -> float:
        for value in x.values():
            value.grad = None
        if job.contender == "torchaudio":
            return full_step(x)
        return pruned_step(x, job.contender, job.prune_range)

    return step


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def first_step(step: Callable[[], float], device: str) -> tuple[float, float]:
    """Runs once; returns the loss and the peak memory above what was held before, in MiB."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = step()
        return loss, (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resident_bytes()
    loss = step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return loss, (peak - before) / 2**20


def work(job: Job) -> None:
    """A worker process: says its loss and memory, then one step's seconds per line it reads."""
    torch.set_num_threads(job.threads)
    try:
        make_step(job, (1, 12, 4, 8))()  # libraries load and set up here, not in what is measured
    except (ImportError, AttributeError, OSError, UserError) as e:
        print(json.dumps(dict(missing=str(e))), flush=True)
        return
    step = make_step(job, job.size)
    loss, mib = first_step(step, job.device)
    print(json.dumps(dict(loss=loss, mib=mib)), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()  # ends in item(), which waits for a GPU
        print(time.perf_counter() - start, flush=True)


def start_worker(job: Job) -> subprocess.Popen:
    threads = str(job.threads)
    # Threads that wait without spinning steady the timings where cores are few.
    env = dict(os.environ, OMP_NUM_THREADS=threads, OMP_WAIT_POLICY="PASSIVE", GOMP_SPINCOUNT="0")
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.loss", "--worker", json.dumps(asdict(job))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env,
    )  # fmt: skip


def measure(jobs: list[Job], repeats: int) -> list[dict]:
    """Results of jobs that are to be compared, in their order: ``missing`` or loss, mib, s."""
    workers, results = [], []
    for job in jobs:  # one after the other, so that none runs while another's memory is measured
        workers.append(start_worker(job))
        line = workers[-1].stdout.readline()
        if not line:
            raise UserError(f"the worker for {job} ended without a result (see above)")
        results.append(dict(json.loads(line), times=[]))
    for _ in range(repeats):
        for worker, result in zip(workers, results):  # noqa: B905 (both have one per job)
            times = result["times"]
            if "missing" not in result and (len(times) < 3 or sum(times) < ENOUGH_SECONDS):
                worker.stdin.write("step\n")
                worker.stdin.flush()
                times.append(float(worker.stdout.readline()))
    for worker in workers:
        worker.communicate()
    return results


def compare(size: tuple[int, ...], threads: int, args: argparse.Namespace) -> str:
    """Table rows of all contenders at one size."""
    jobs = [
        Job(c, size, threads, args.device, args.joiner_dim, args.prune_range)
        for c in args.contenders
    ]
    results = measure(jobs, args.repeats)
    reference = results[args.contenders.index("k2")] if "k2" in args.contenders else {}
    if not reference.get("times"):
        reference = None
    rows = []
    for job, r in zip(jobs, results):  # noqa: B905
        head = f"| {','.join(map(str, size))} | {threads} | {TITLES[job.contender]} |"
        if "missing" in r:
            rows.append(f"{head} not installed | | | | |")
            continue
        seconds = statistics.median(r["times"])
        ratio = "| | |"
        if reference:
            time_ratio = seconds / statistics.median(reference["times"])
            ratio = f"| {time_ratio:.2f} | {r['mib'] / reference['mib']:.2f} |"
        rows.append(
            f"{head} {1000 * seconds:.0f} ({1000 * min(r['times']):.0f}) | {r['mib']:.0f} "
            f"{ratio} {r['loss']:.2f} |"
        )
    return "\n".join(rows)


def parse_size(text: str) -> tuple[int, ...]:
    try:
        size = tuple(int(n) for n in text.split(","))
    except ValueError:
        size = ()
    if len(size) != 4 or min(size) < 1 or size[2] > size[1] or size[3] < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted B,T,S,V with S <= T, as 8,200,40,500")
    return size


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default_sizes = [(8, 200, 40, 500), (8, 400, 80, 500)]
    parser.add_argument("--sizes", nargs="+", type=parse_size, default=default_sizes)
    parser.add_argument("--growth", action="store_true", help="double T, S and V in turn instead")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--joiner-dim", type=int, default=512)
    parser.add_argument("--prune-range", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.worker:
        work(Job(**json.loads(args.worker)))
        return
    print(f"torch {torch.__version__}, {args.device}, joiner {args.joiner_dim} wide, "
          f"prune range {args.prune_range}, median (minimum) of {args.repeats}\n")  # fmt: skip
    print("| B,T,S,V | threads | loss by | ms | peak MiB | time / k2 | memory / k2 | loss |")
    print("|---|---|---|---|---|---|---|---|")
    for threads in args.threads:
        for size in GROWTH if args.growth else args.sizes:
            print(compare(size, threads, args), flush=True)


if __name__ == "__main__":
    run_command(main)
