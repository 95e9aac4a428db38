"""Which words does silence give? Recognises sounds without speech as a live recogniser does.

    python -m local.demo.silence --exp-dir exp/demo/streaming

Each sound lasts 30 s: digital silence, white noise, a rumble and mains hum, at levels from -60 to
-20 dB of full scale. Prints the words per minute for several values of --blank-penalty, with
endpoints and --reset-encoder as for a live page, and beside them the WER of the demo's test sets.
The demo's model is a toy network: its figures tell how the settings compare, and nothing about
XLSR.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from scipy.signal import lfilter

from local.demo.live import Live, add_model_options, read_utterances
from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.core.options import Number, Parser
from xlsr_transducer.core.tables import text_table
from xlsr_transducer.recognition.endpoint import EndpointOptions
from xlsr_transducer.recognition.scoring import error_rate
from xlsr_transducer.search import Hypothesis

SECONDS = 30
LEVELS = (-60, -50, -40, -30, -20)  # dB of full scale
LIVE = EndpointOptions(True, reset_encoder=True)


def sounds(seed: int) -> dict[str, list[np.ndarray]]:
    """Returns sounds without speech by kind, float32 at 16 kHz."""
    rng, count = np.random.default_rng(seed), SECONDS * SAMPLING_RATE
    turns = 50 * np.arange(count) / SAMPLING_RATE
    shapes = {
        "white noise": rng.standard_normal(count),
        "rumble": lfilter([1.0], [1.0, -0.95], rng.standard_normal(count)),
        "hum": sum(np.sin(2 * np.pi * k * turns) / k for k in range(1, 4)),
    }
    found = {"digital silence": [np.zeros(count, dtype=np.float32)]}
    for kind, wave in shapes.items():
        wave = wave / np.sqrt(np.square(wave).mean())
        found[kind] = [(10 ** (level / 20) * wave).astype(np.float32) for level in LEVELS]
    return found


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--penalties", default="0,-1,-2,-4", help="values of --blank-penalty")
    parser.add_argument("--seed", type=Number(int, at_least=0), default=1)
    add_model_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    torch.set_num_threads(1)
    utterances, live = read_utterances(args.data_dir, args.split), Live(args)
    kinds = sounds(args.seed)

    def per_minute(found: Sequence[Hypothesis]) -> str:
        count = sum(len(live.words(h.tokens)) for h in found)
        return f"{60 * count / (SECONDS * len(found)):.1f}"

    table = [["blank penalty", "WER %", *kinds]]
    for penalty in args.penalties.split(","):
        options = dataclasses.replace(live.search_options, blank_penalty=float(penalty))
        found = live.recognise([u.samples for u in utterances], EndpointOptions(), options)
        pairs = [(u.words, live.words(h.tokens)) for u, h in zip(utterances, found)]
        rates = [per_minute(live.recognise(waves, LIVE, options)) for waves in kinds.values()]
        table.append([penalty, str(error_rate(pairs)), *rates])
    print("words per minute where nobody speaks; the WER is that of the test sets")
    print(text_table(table))


if __name__ == "__main__":
    run_command(main)
