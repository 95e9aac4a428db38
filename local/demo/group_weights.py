"""Does weighing languages help the worst one? Trains on four synthetic languages of unequal size.

    python -m local.demo.group_weights [--seed N]

makes the corpus of local.demo.make_languages, the toy network and its features, each once. It
trains a CTC model plainly, with group DRO and with CTC-DRO (and with its batches but equal
weights), three times each and with the same number of updates. It prints the character error rates
of the test sets: of each language, of the worst one, and their mean, each with the standard
deviation over the trainings. The table is kept in EXP/seed-N/group_weights.txt.

    python -m local.demo.group_weights --choose 1 [--seed N]

trains with one further seed at several step sizes and smoothings, and prints what they give in
validation: so the defaults were chosen. The network is a toy and its error rates say nothing about
XLSR; the methods are compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from local.demo.languages import Place, add_place_options, once, place_of
from local.demo.make_languages import LANGUAGES, SPEAKERS
from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.files import write_text
from xlsr_transducer.core.options import Number, Parser, str2bool
from xlsr_transducer.core.tables import text_table
from xlsr_transducer.recognition.scoring import Transcript, score

CODES = [language.code for language in LANGUAGES]
TRAININGS = 3
# What --choose tries.
STEP_SIZES = (1e-4, 1e-3)
SMOOTHINGS = (0.1, 0.5, 1.0)
# Of CTC-DRO, in a row of its own: the same batches, and weights that stay equal.
NO_STEP = 1e-12
# Adapter and linear layer learn, on stored features of the toy network; each batch is a step.
TRAINING = (
    "--heads", "ctc", "--encoder-dim", 144, "--max-duration", 20, "--base-lr", 0.003,
    "--time-mask-length", 8, "--num-workers", 0, "--tensorboard", 0,
)  # fmt: skip

Rates = dict[str, float]  # language -> character error rate in percent


@dataclasses.dataclass(frozen=True)
class Method:
    """How languages are weighed."""

    kind: str  # of --group-weights
    step_size: float = 0.0
    smoothing: float = 0.0

    @property
    def options(self) -> tuple[object, ...]:
        """Options of train.sh."""
        if self.kind == "none":
            return ("--group-batches", 1)
        given = ("--group-weights", self.kind, "--dro-step-size", self.step_size)
        return (*given, "--dro-smoothing", self.smoothing) if self.kind == "ctc-dro" else given

    def __str__(self) -> str:
        if self.kind == "none":
            return "plain"
        numbers = (self.step_size, self.smoothing)[: 2 if self.kind == "ctc-dro" else 1]
        return "-".join([self.kind, *(f"{number:g}" for number in numbers)])


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Trainings on one corpus that differ in the method and the seed alone."""

    place: Place
    num_updates: int

    @property
    def data(self) -> Path:
        """The folder of manifests and features."""
        return self.place.data / "recognition"

    def prepare(self) -> None:
        """Makes corpus, toy network, manifests, letters and features, unless they are there."""
        self.place.make_corpus()
        lists = []
        for split in SPEAKERS:
            for code in CODES:
                lists += [f"--{split}-list", f"{code}={self.place.audio}/{split}_{code}.txt"]
        where = ("--data-dir", self.data)
        level = ("--xlsr", self.place.toy_xlsr, "--cut", "last", "--normalize", "utterance")
        once(
            self.data,
            ("./prepare.sh", *lists, *where, "--unit", "char", "--stop-stage", 2),
            ("./extract_features.sh", *where, *level, "--num-jobs", 1),
        )

    def rates(self, method: Method, seed: int, split: str) -> Rates:
        """Trains with ``method``, unless that was done, and returns the error rates of a split."""
        folder = self.place.exp / f"{method}-{seed}"
        where = ("--data-dir", self.data, "--exp-dir", folder)
        steps = ("--num-updates", self.num_updates, "--seed", seed, "--resume", "auto")
        once(folder, ("./train.sh", *where, *TRAINING, *steps, *method.options))
        # The last weights, as no method's are chosen then by what is compared.
        epochs = [int(path.stem.partition("-")[2]) for path in folder.glob("epoch-*.pt")]
        last = ("--epoch", max(epochs, default=0), "--use-averaged-model", 0)
        sets = [path.name for path in self.data.glob(f"manifests/cuts_{split}*.jsonl.gz")]
        names = ",".join(re.sub(r"cuts_|\.jsonl\.gz", "", name) for name in sets)
        decode = (sys.executable, "-m", "xlsr_transducer.decode", *where, *last)
        once(folder / f"decode-{split}", (*decode, "--split", names, "--num-workers", 0))
        return rates_of(folder / "ctc_greedy_search", split)

    def table(
        self, methods: Sequence[Method], seeds: Sequence[int], split: str, num_jobs: int
    ) -> str:
        """Returns error rates of methods, as mean and standard deviation over the seeds."""
        pairs = list(itertools.product(methods, seeds))
        with ThreadPoolExecutor(num_jobs) as pool:  # of programs that they wait for
            rates = dict(zip(pairs, pool.map(lambda pair: self.rates(*pair, split), pairs)))
        rows = [("CER %", *CODES, "mean", "worst")]
        for method in methods:
            found = [rates[method, seed] for seed in seeds]
            columns = [[rates[code] for rates in found] for code in CODES]
            columns.append([float(np.mean(list(rates.values()))) for rates in found])
            columns.append([max(rates.values()) for rates in found])
            rows.append((str(method), *map(mean_and_spread, columns)))
        return text_table(rows)


def rates_of(folder: Path, split: str) -> Rates:
    """Reads the character error rate of each language from result files of decode."""
    transcripts = defaultdict(list)
    for path in sorted(folder.glob(f"utterances-{split}*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            # Utterances are named after their files: SPLIT_LANG_NUMBER.
            transcripts[entry["id"].split("_")[1]].append(
                Transcript(entry["id"], entry["ref"].split(), entry["hyp"].split())
            )
    if set(transcripts) != set(CODES):
        found, wanted = ", ".join(transcripts), ", ".join(CODES)
        raise UserError(f"{folder}: results of {found or 'no language'}, not of {wanted}")
    return {code: score(code, "", found).cer.percent for code, found in transcripts.items()}


def mean_and_spread(values: Sequence[float]) -> str:
    """Returns the mean and, of several values, the standard deviation of one."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_place_options(parser)
    add = parser.add_argument
    add("--num-updates", type=Number(int, at_least=1), default=600, help="of each training")
    add("--num-jobs", type=Number(int, at_least=1), default=1, help="trainings at a time")
    add("--choose", type=str2bool, default=False, help="try values in validation")
    step_size, positive = 1e-3, Number(float, above=0)
    add("--dro-step-size", type=positive, default=step_size, help="of CTC-DRO")
    add("--dro-smoothing", type=positive, default=1.0, help="of CTC-DRO")
    add("--group-dro-step-size", type=positive, default=step_size, help="of group DRO")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    experiment = Experiment(place_of(args), args.num_updates)
    experiment.prepare()
    seeds = [100 * args.seed + number for number in range(TRAININGS + 1)]
    plain = Method("none")
    if args.choose:
        tried = [Method("group-dro", size) for size in STEP_SIZES]
        tried += [Method("ctc-dro", size, s) for size in STEP_SIZES for s in SMOOTHINGS]
        print(experiment.table([plain, *tried], seeds[:1], "val", args.num_jobs))
        return
    methods = [
        plain,
        Method("ctc-dro", NO_STEP, args.dro_smoothing),
        Method("group-dro", args.group_dro_step_size),
        Method("ctc-dro", args.dro_step_size, args.dro_smoothing),
    ]
    table = experiment.table(methods, seeds[1:], "test", args.num_jobs)
    print(table)
    write_text(experiment.place.exp / "group_weights.txt", table + "\n")


if __name__ == "__main__":
    run_command(main)
