"""Does a long call cost accuracy? Joins the demo's test utterances to calls, and compares.

    python -m local.demo.long_audio --exp-dir exp/demo/streaming

A call has utterances of all speakers in random order, pauses of 0.3 to 3 s of faint noise between
them, and from half-way on everything is 20 dB quieter. It is recognised chunk by chunk, without
endpoints and with them, with and without --reset-encoder; and so is each of its utterances alone,
at both levels. Prints the WER of both halves: in a call a word belongs to the utterance in whose
time it came, from the middle of the pause before it to the middle of the pause after it.
The same seed gives the same calls. The demo's model is a toy network: its figures tell how the
settings compare, and nothing about XLSR.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from local.demo.live import Live, Utterance, add_model_options, read_utterances
from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.geometry import ENCODER_FRAME, SAMPLING_RATE
from xlsr_transducer.core.options import Number, Parser
from xlsr_transducer.core.tables import text_table
from xlsr_transducer.recognition.endpoint import EndpointOptions
from xlsr_transducer.recognition.scoring import ErrorRate, Pairs, error_rate
from xlsr_transducer.search import Hypothesis

PAUSE = (0.3, 3.0)  # seconds
NOISE = 0.001  # rms of the noise in a pause: -60 dB of full scale
QUIETER = 0.1  # from half-way on: -20 dB
SETTINGS = {
    "no endpoints": EndpointOptions(),
    "endpoints": EndpointOptions(True),
    "--reset-encoder": EndpointOptions(True, reset_encoder=True),
}


@dataclasses.dataclass(frozen=True)
class Call:
    """Utterances one after the other."""

    samples: np.ndarray  # (n,) float32
    numbers: list[int]  # which utterance each one is
    bounds: np.ndarray  # (utterances + 1,) seconds: from where to where words are its own
    half: int  # the number of utterances before the level falls


def noise(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """Returns faint white noise, float32."""
    return NOISE * rng.standard_normal(int(seconds * SAMPLING_RATE), dtype=np.float32)


def make_call(utterances: Sequence[Utterance], seed: int, seconds: float, lead: float) -> Call:
    """Returns a call of at least so many seconds, of which the first ``lead`` are noise."""
    rng = np.random.default_rng(seed)
    parts, numbers, middles = [noise(rng, lead)], [], [0.0]
    length, half, waiting = len(parts[0]), 0, []
    while length < seconds * SAMPLING_RATE:
        waiting = waiting or rng.permutation(len(utterances)).tolist()
        numbers.append(waiting.pop())
        pause = noise(rng, rng.uniform(*PAUSE))
        is_first_half = length < seconds * SAMPLING_RATE / 2
        half += is_first_half
        gain = np.float32(1 if is_first_half else QUIETER)
        parts += [gain * utterances[numbers[-1]].samples, gain * pause]
        length += len(parts[-2]) + len(parts[-1])
        middles.append((length - len(pause) / 2) / SAMPLING_RATE)
    return Call(np.concatenate(parts), numbers, np.array(middles), half)


def pairs_of(call: Call, found: Hypothesis, utterances: Sequence[Utterance], live: Live) -> Pairs:
    """Returns the words of each utterance of a call, and those recognised in its time."""
    owners = np.searchsorted(call.bounds, np.multiply(found.frames, ENCODER_FRAME), "right") - 1
    tokens: list[list[int]] = [[] for _ in call.numbers]
    for owner, token in zip(owners.clip(max=len(tokens) - 1), found.tokens):
        tokens[owner].append(token)
    return [(utterances[n].words, live.words(t)) for n, t in zip(call.numbers, tokens)]


def row(name: str, halves: Sequence[ErrorRate]) -> list[str]:
    """Returns a line of the table."""
    cells = [[str(r), f"{r.insertions}/{r.deletions}/{r.substitutions}"] for r in halves]
    return [name, *cells[0], *cells[1]]


def alone(live: Live, utterances: Sequence[Utterance], before: float) -> list[ErrorRate]:
    """Returns the WER of the utterances at both levels, each a stream of its own.

    Args:
      before: seconds of faint noise that come first.
    """
    rng, rates = np.random.default_rng(0), []
    for gain in (np.float32(1), np.float32(QUIETER)):
        waves = [gain * np.concatenate([noise(rng, before), u.samples]) for u in utterances]
        found = live.recognise(waves, EndpointOptions())
        rates.append(
            error_rate([(u.words, live.words(h.tokens)) for u, h in zip(utterances, found)])
        )
    return rates


def in_calls(
    live: Live, utterances: Sequence[Utterance], calls: Sequence[Call], endpoint: EndpointOptions
) -> list[ErrorRate]:
    """Returns the WER of both halves of the calls."""
    halves: tuple[Pairs, Pairs] = [], []
    for call, found in zip(calls, live.recognise([c.samples for c in calls], endpoint)):
        pairs = pairs_of(call, found, utterances, live)
        halves[0].extend(pairs[: call.half])
        halves[1].extend(pairs[call.half :])
    return [error_rate(pairs) for pairs in halves]


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=Number(float, above=0), default=60.0, help="of a call")
    parser.add_argument("--calls", type=Number(int, at_least=1), default=2)
    parser.add_argument("--seed", type=Number(int, at_least=0), default=1)
    parser.add_argument(
        "--lead", type=Number(float, at_least=0), default=30.0, help="seconds of leading silence"
    )
    add_model_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    torch.set_num_threads(1)
    utterances, live = read_utterances(args.data_dir, args.split), Live(args)
    title = ["", "WER % at full level", "ins/del/sub", "20 dB quieter", "ins/del/sub"]
    table = [title, row("alone", alone(live, utterances, 0))]
    table.append(row("alone, after 1 s of silence", alone(live, utterances, 1)))
    for lead in (0.0, args.lead):
        seeds = range(args.seed, args.seed + args.calls)
        calls = [make_call(utterances, seed, 60 * args.minutes, lead) for seed in seeds]
        for name, endpoint in SETTINGS.items():
            label = f"call, {name}" + f", {lead:g} s of silence first" * (lead > 0)
            table.append(row(label, in_calls(live, utterances, calls, endpoint)))
    print(f"{args.calls} calls of {args.minutes:g} minutes; alone: {len(utterances)} utterances")
    print(text_table(table))


if __name__ == "__main__":
    run_command(main)
