"""Trains a network to tell four synthetic languages apart, and tests it on unknown voices.

    python -m local.demo.language_identification [--seed N]

makes the corpus of local.demo.make_languages, the toy network and its features, each once. It
trains a classifier and the network's upper layers on the features and prints classify's report of
the test set: no speaker and no sentence of it occurs in training, which has ten times as much of
Estonian as of German or Spanish.
The report is kept in EXP/seed-N/language_identification.txt. The network is a toy and says nothing
about XLSR.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from local.demo.languages import add_place_options, once, place_of
from local.demo.make_languages import SPEAKERS
from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.files import write_text
from xlsr_transducer.core.options import Number, Parser

# The toy network's upper two layers learn too: it was pre-trained on Estonian alone, and its last
# layer keeps less of what tells the others apart.
CUT = 2
TRAINING = (
    "--heads", "classifier", "--encoder-dim", 144, "--max-duration", 40, "--base-lr", 0.003,
    "--encoder-lr-scale", 0.3, "--time-mask-prob", 0.2, "--time-mask-length", 8,
    "--feature-dropout", 0.1, "--num-workers", 0, "--tensorboard", 0,
)  # fmt: skip


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_place_options(parser)
    parser.add_argument("--num-updates", type=Number(int, at_least=1), default=400)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    place = place_of(args)
    place.make_corpus()
    data, exp = place.data / "identification", place.exp / "identification"
    lists = []
    for split in SPEAKERS:
        lists += [f"--{split}-list", place.audio / f"{split}_labels.txt"]
    where = ("--data-dir", data)
    level = ("--xlsr", place.toy_xlsr, "--cut", CUT, "--normalize", "utterance")
    once(
        data,
        ("./prepare.sh", *lists, *where, "--unit", "label", "--stop-stage", 2),
        ("./extract_features.sh", *where, *level, "--num-jobs", 1),
    )
    where = (*where, "--exp-dir", exp)
    steps = ("--num-updates", args.num_updates, "--seed", args.seed)
    once(exp, ("./train.sh", *where, *TRAINING, *steps, "--resume", "auto"))
    classify = (sys.executable, "-m", "xlsr_transducer.classify", *where, "--num-workers", 0)
    report = once(exp / "test", (*classify, "--split", "test"))
    print(report, end="")
    write_text(place.exp / "language_identification.txt", report)


if __name__ == "__main__":
    run_command(main)
