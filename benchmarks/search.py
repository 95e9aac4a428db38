"""Speed of the searches on the same encoder output, with k2's fast_beam_search beside them.

    python -m benchmarks.search [--threads 1] [--device cpu] [--streaming 8]

Random networks, sharpened (large output weights) and with a blank bias searched so that greedy
search finds about ``--tokens`` tokens per utterance. What is timed is what follows the encoder:
projections, decoder, joiner, search and reading out the best hypotheses. The repeats of all
contenders take turns, so that other load on the machine hits all alike, and the median counts;
the processor time beside it hardly depends on other load. k2's search gets the same projected
encoder output and the same networks; where k2 is not installed it is named so. Its hypotheses
are compared with those of our 'strict' flavour.

On a CPU our searches use the layers that our commands use there (model/cpu_inference.py); k2's
search is measured with PyTorch's own layers, as its users have it, and with ours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.model.cpu_inference import prepare_for_cpu
from xlsr_transducer.model.decoder import Decoder
from xlsr_transducer.model.joiner import Joiner
from xlsr_transducer.search import Heads, Search, SearchOptions, make_search
from xlsr_transducer.search.k2.lattices import LatticeSearch

FAST = "fast_beam_search 20/8/64"
K2 = f"k2 {FAST}"
K2_SWAPPED = f"{K2}, our layers"
Run = Callable[[], list[list[int]]]  # token sequences of one pass over the batch


def make_networks(args: argparse.Namespace) -> tuple[Decoder, Joiner, nn.Linear]:
    """Random networks, the last a CTC head, moved to the device."""
    torch.manual_seed(args.seed)
    decoder = Decoder(args.vocab_size, args.dim).eval()
    joiner = Joiner(args.dim, args.dim, args.dim, args.vocab_size).eval()
    ctc_output = nn.Linear(args.dim, args.vocab_size).eval()
    with torch.no_grad():
        joiner.output_linear.weight *= args.sharpness
        ctc_output.weight *= args.sharpness
    return decoder.to(args.device), joiner.to(args.device), ctc_output.to(args.device)


def run_search(search: Search, x: Tensor, lens: Tensor, piece: int) -> list[list[int]]:
    """All frames, ``piece`` at a time (0: at once)."""
    state = search.init_state(len(lens), x.device)
    step = piece or x.shape[1]
    for at in range(0, x.shape[1], step):
        part = x[:, at : at + step]
        state = search.advance(part, (lens - at).clamp(0, part.shape[1]), state)
    return [h.tokens for h in search.results(state)]


def set_blank_bias(heads: Heads, bias: Tensor, x: Tensor, lens: Tensor, tokens: int) -> float:
    """Bisects the bias of blank until greedy search over ``heads`` finds ``tokens`` per utterance.

    Args:
      bias: (V,) that of the layer which these heads end in.
    """
    low, high, mean = 0.0, 100.0, 0.0
    search = make_search(SearchOptions(), heads)
    for _ in range(14):
        middle = (low + high) / 2
        with torch.no_grad():
            bias[search.blank_id] = middle
        found = run_search(search, x[:8], lens[:8], 0)
        mean = sum(map(len, found)) / len(found)
        if abs(mean - tokens) < 1:
            break
        low, high = (middle, high) if mean > tokens else (low, middle)
    return mean


def contenders(args: argparse.Namespace, x: Tensor, lens: Tensor) -> tuple[dict[str, Run], float]:
    """What is measured, by name, and the mean number of tokens that greedy search finds."""
    decoder, joiner, ctc_output = make_networks(args)
    given = (x, lens, args.tokens)
    mean = set_blank_bias(Heads(decoder, joiner), joiner.output_linear.bias, *given)
    set_blank_bias(Heads(ctc_output=ctc_output), ctc_output.bias, *given)
    chosen = {
        "greedy_search": SearchOptions(),
        f"modified_beam_search {args.beam_size}": SearchOptions(
            decoding_method="modified_beam_search", beam_size=args.beam_size
        ),
        FAST: SearchOptions(decoding_method="fast_beam_search"),
        f"{FAST} strict": SearchOptions(
            decoding_method="fast_beam_search", fast_beam_flavour="strict"
        ),
        "ctc_greedy_search": SearchOptions(decoding_method="ctc_greedy_search"),
        f"ctc_prefix_beam_search {args.beam_size}": SearchOptions(
            decoding_method="ctc_prefix_beam_search", beam_size=args.beam_size
        ),
    }
    runs: dict[str, Run] = {}
    fast_decoder, fast_joiner, fast_ctc = (
        prepare_for_cpu(deepcopy(m)) for m in (decoder, joiner, ctc_output)
    )
    for name, options in chosen.items():
        search = make_search(options, Heads(fast_decoder, fast_joiner, fast_ctc))
        runs[name] = lambda search=search: run_search(search, x, lens, args.streaming)
    networks = {K2: (decoder, joiner), K2_SWAPPED: (fast_decoder, fast_joiner)}
    try:
        for name, pair in networks.items():
            search = LatticeSearch(chosen[f"{FAST} strict"], *pair)
            runs[name] = lambda search=search: run_search(search, x, lens, 0)
    except UserError as e:
        print(f"without k2: {e}\n")
    return runs, mean


def measure(runs: dict[str, Run], device: str, repeats: int) -> dict[str, tuple[float, float]]:
    """Median seconds of each contender: on the clock, and of processor time."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start, used = time.perf_counter(), time.process_time()
            run()  # reads hypotheses out, and so waits for a GPU
            times[name].append((time.perf_counter() - start, time.process_time() - used))
    medians = {}
    for name, values in times.items():
        clock, cpu = (statistics.median(column) for column in zip(*values))
        medians[name] = clock, cpu
    return medians


def table(times: dict[str, tuple[float, float]], found: dict[str, list], batch: int) -> str:
    """The results in markdown; ratios of time to k2's where it was measured."""
    rows = [
        "| search | utterances/s | ratio to k2 | per s of processor time | ratio to k2 | tokens |",
        "|---|---|---|---|---|---|",
    ]
    for name, (clock, cpu) in times.items():
        ratios = ["k2 is not installed"] * 2
        if K2 in times:
            ratios = [f"{k2 / own:.1f}" for k2, own in zip(times[K2], (clock, cpu))]
        tokens = sum(map(len, found[name])) / batch
        rows.append(
            f"| {name} | {batch / clock:.1f} | {ratios[0]} | {batch / cpu:.1f} | {ratios[1]} "
            f"| {tokens:.1f} |"
        )
    return "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--frames", type=int, default=250)
    parser.add_argument("--vocab-size", type=int, default=500)
    parser.add_argument("--dim", type=int, default=512, help="width of all networks")
    parser.add_argument("--tokens", type=int, default=60, help="wanted per utterance")
    parser.add_argument("--sharpness", type=float, default=10.0)
    parser.add_argument("--beam-size", type=int, default=4)
    parser.add_argument("--streaming", type=int, default=0, help="frames per piece; 0: all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(args.seed)
    x = torch.randn(args.batch, args.frames, args.dim, generator=generator).to(args.device)
    lens = torch.full((args.batch,), args.frames, device=args.device)

    runs, mean = contenders(args, x, lens)
    found = {name: run() for name, run in runs.items()}  # warms up
    times = measure(runs, args.device, args.repeats)
    print(
        f"torch {torch.__version__}, {args.device}, {args.threads} thread(s); batch {args.batch}, "
        f"T {args.frames}, V {args.vocab_size}, {args.dim} wide, greedy finds {mean:.0f} tokens, "
        f"median of {args.repeats}\n"
    )
    print(table(times, found, args.batch))
    if K2 in found:
        pairs = zip(found[K2], found[f"{FAST} strict"])
        same = sum(a == b for a, b in pairs)
        print(f"\nk2 and our 'strict' flavour agree on {same} of {args.batch} hypotheses.")


if __name__ == "__main__":
    run_command(main)
