"""What does a teacher give? Trainings on the demo's corpus that differ in who teaches.

    ./demo.sh
    python -m local.demo.distillation [--seeds 3] [--num-jobs 2]

takes corpus, features, toy network and first model of ./demo.sh and trains, each with the same
number of updates, one thread, and once only (what is there is not trained again):

ways       the five ways of CALD (docs/distillation.md): attention as it is, which teaches the
           others; Mamba-2 without a teacher; with that one; with its snapshots in turn; and with
           those in the first half alone. Every model is trained for full context and for chunks of
           32 frames. All but the third start from the demo's first model, that one from its
           teacher.
streaming  a full-context teacher and students that start from it, trained for chunks of 16 frames
           (320 ms), with and without its teaching.

It prints word error rates of the test sets, whose utterances are drawn again for the intervals,
and keeps the tables in EXP/ways.txt and EXP/streaming.txt. The network is a toy and its error
rates say nothing about XLSR; the ways are compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from local.demo.languages import once
from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.files import write_text
from xlsr_transducer.core.options import Number, Parser
from xlsr_transducer.core.tables import text_table
from xlsr_transducer.evaluation.normalizing import Normalizer
from xlsr_transducer.evaluation.records import Record, find_results, shared
from xlsr_transducer.evaluation.significance import Difference, paired_bootstrap

FEATURES, FIRST_MODEL = "frontend-cumulative", "full/best-valid-wer.pt"
SETS = ("test_seen", "test_unseen")
FULL = -1  # of chunk sizes
SNAPSHOTS = 8
# The widths of the demo's first model; each batch is a step, on stored features.
TRAINING = (
    "--features", FEATURES, "--encoder-dim", 144, "--decoder-dim", 128, "--joiner-dim", 192,
    "--ctc-loss-scale", 0.3, "--dropout", 0.15, "--feature-dropout", 0.1, "--xlsr-dropout", 0.05,
    "--max-duration", 20, "--base-lr", 0.002, "--encoder-lr-scale", 0.5, "--num-workers", 0,
    "--tensorboard", 0,
)  # fmt: skip
BOTH_VIEWS = ("--streaming", 1, "--chunk-size", "32,-1")
MAMBA = (*BOTH_VIEWS, "--mixer", "bimamba2")
CHUNKS = ("--streaming", 1, "--chunk-size", 16, "--left-context-chunks", 2,
          "--attention-sink-size", 4)  # fmt: skip

Decoded = dict[int, list[Record]]  # by chunk size


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Trainings on the demo's corpus."""

    data: Path
    demo: Path  # of its trainings
    exp: Path
    pool: ThreadPoolExecutor  # of programs that it waits for

    def train(self, name: str, num_updates: int, seed: int, *options: object) -> Path:
        """Trains, unless that was done; returns the folder."""
        folder = self.exp / f"{name.replace(' ', '-')}-{num_updates}-{seed}"
        where = ("--data-dir", self.data, "--exp-dir", folder)
        steps = ("--num-updates", num_updates, "--seed", seed, "--resume", "auto")
        once(folder, ("./train.sh", *where, *TRAINING, *steps, *options))
        return folder

    def decode(self, folder: Path, chunks: Sequence[int]) -> Decoded:
        """Returns what the last weights recognise of the test sets, all together."""
        found = {}
        last = ("--epoch", last_epoch(folder), "--use-averaged-model", 0)
        for chunk in chunks:
            where = ("--data-dir", self.data, "--exp-dir", folder, "--split", ",".join(SETS))
            command = (sys.executable, "-m", "xlsr_transducer.decode", *where, *last)
            results = folder / f"chunk-{chunk}"
            once(results, (*command, "--decode-chunk-len", chunk, "--num-workers", 0))
            found[chunk] = records_of(folder, chunk)
        return found

    def start(self) -> tuple[object, ...]:
        """Options of a training that starts from the demo's first model."""
        return ("--init-from", self.demo / FIRST_MODEL)


def last_epoch(folder: Path) -> int:
    return max((int(path.stem.partition("-")[2]) for path in folder.glob("epoch-*.pt")), default=0)


def last_weights(folder: Path) -> Path:
    return folder / f"epoch-{last_epoch(folder)}.pt"


def records_of(folder: Path, chunk: int) -> list[Record]:
    """Returns the records of all test sets, by the chunk size of the decode.

    Raises:
      UserError: a set is missing, or there are several decodes of one.
    """
    view = "full" if chunk == FULL else f"chunk-{chunk}-"
    files = [r for r in find_results(folder) if f"-{view}" in f"-{r.suffix}-"]
    if sorted(file.set_name for file in files) != list(SETS):
        raise UserError(f"{folder}: results of {len(files)} decodes with {view}, not of {SETS}")
    plain = Normalizer.parse("none")
    return [record for file in files for record in file.read(plain)]


def ways(experiment: Experiment, seeds: Sequence[int], num_updates: int) -> str:
    """Trains in the five ways and returns their table."""
    found: dict[tuple[str, int], Future[tuple[Path, Decoded]]] = {}
    views = (FULL, 32)

    def run(name: str, seed: int, *options: object) -> tuple[Path, Decoded]:
        folder = experiment.train(name, num_updates, seed, *options)
        return folder, experiment.decode(folder, views)

    snapshots = ("--save-every-n", max(num_updates // SNAPSHOTS, 1), "--keep-last-k", 0)
    for seed in seeds:
        found["standard", seed] = experiment.pool.submit(
            run, "standard", seed, *BOTH_VIEWS, *experiment.start(), *snapshots
        )
        found["unguided", seed] = experiment.pool.submit(
            run, "unguided", seed, *MAMBA, *experiment.start(), "--mixer-residual", 1
        )
    for seed in seeds:
        folder, _ = found["standard", seed].result()
        last = ("--teacher", last_weights(folder))
        in_turn = (*experiment.start(), "--teacher-snapshots", folder)
        for name, options in (
            ("target guided", last),
            ("waypoint guided", in_turn),
            ("hybrid", (*in_turn, "--distill-until-step", num_updates // 2)),
        ):
            found[name, seed] = experiment.pool.submit(run, name, seed, *MAMBA, *options)
    rows: list[Sequence[str]] = [
        ("way", "full context: WER % [95 %]", "chunk 32: WER % [95 %]",
         "against unguided, at chunk 32")
    ]  # fmt: skip
    results = {key: future.result()[1] for key, future in found.items()}
    unguided = [results["unguided", seed][32] for seed in seeds]
    for name in dict.fromkeys(name for name, _ in results):
        decoded = [results[name, seed] for seed in seeds]
        cells = [rate([one[chunk] for one in decoded]) for chunk in views]
        change = "" if name == "unguided" else difference(unguided, [one[32] for one in decoded])
        rows.append((name, *cells, change))
    return text_table(rows)


def streaming(
    experiment: Experiment, seeds: Sequence[int], num_updates: int, num_student_updates: int
) -> str:
    """Trains streaming students of a full-context teacher and returns their table."""
    begin = ("teacher", num_updates, seeds[0], *experiment.start())
    teacher = experiment.pool.submit(experiment.train, *begin).result()
    teachers = experiment.pool.submit(experiment.decode, teacher, (FULL, 16))

    def run(name: str, seed: int, flag: str) -> list[Record]:
        begin = (f"{name}-after-{num_updates}", num_student_updates, seed)
        folder = experiment.train(*begin, *CHUNKS, flag, last_weights(teacher))
        return experiment.decode(folder, (16,))[16]

    students = {"alone": "--init-from", "taught": "--teacher"}
    futures = {
        (name, seed): experiment.pool.submit(run, name, seed, flag)
        for seed in seeds
        for name, flag in students.items()
    }
    rows: list[Sequence[str]] = [
        ("model", "WER % [95 %]", "of each training", "against alone"),
        ("teacher, in full context", rate([teachers.result()[FULL]]), "", ""),
        ("teacher, at chunk 16", rate([teachers.result()[16]]), "", ""),
    ]
    decoded = {name: [futures[name, seed].result() for seed in seeds] for name in students}
    for name, found in decoded.items():
        each = ", ".join(f"{wer([one]).points:.2f}" for one in found)
        change = "" if name == "alone" else difference(decoded["alone"], found)
        rows.append((f"student, {name}", rate(found), each, change))
    return text_table(rows)


def errors_and_words(decodes: Sequence[Sequence[Record]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns errors and reference words of each utterance, over all decodes of it: trainings
    differ, utterances are the sample."""
    aligned = shared(decodes)
    errors = np.array([[record.num_errors for record in one] for one in aligned]).sum(0)
    return errors, np.array([[len(record.ref_words) for record in one] for one in aligned]).sum(0)


def wer(decodes: Sequence[Sequence[Record]]) -> Difference:
    """Returns the WER with its interval, as the difference from no errors."""
    errors, words = errors_and_words(decodes)
    return paired_bootstrap(np.zeros_like(errors), errors, words)


def rate(decodes: Sequence[Sequence[Record]]) -> str:
    """Returns the WER with its interval."""
    found = wer(decodes)
    return f"{found.points:.2f} [{found.low:.2f}, {found.high:.2f}]"


def difference(first: Sequence[Sequence[Record]], second: Sequence[Sequence[Record]]) -> str:
    """Returns how much larger the WER of ``second`` is, with interval and p."""
    (before, words), (after, _) = errors_and_words(first), errors_and_words(second)
    found = paired_bootstrap(before, after, words)
    return f"{found.points:+.2f} [{found.low:+.2f}, {found.high:+.2f}], p {found.p:.2g}"


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, positive = parser.add_argument, Number(int, at_least=1)
    add("--data-dir", type=Path, default=Path("data/demo_corpus"), help="of ./demo.sh")
    add("--demo-dir", type=Path, default=Path("exp/demo"), help="trainings of ./demo.sh")
    add("--exp-dir", type=Path, default=Path("exp/distillation"))
    add("--tables", nargs="+", choices=("ways", "streaming"), default=["ways", "streaming"])
    add("--seeds", type=positive, default=3, help="trainings of each kind")
    add("--num-updates", type=positive, default=120, help="of each way, and of the teacher")
    add("--num-student-updates", type=positive, default=60, help="of a student that streams")
    add("--num-jobs", type=positive, default=2, help="trainings at a time, a thread each")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    folders = (args.data_dir.resolve(), args.demo_dir.resolve(), args.exp_dir.resolve())
    for path in (folders[0] / "features" / FEATURES, folders[1] / FIRST_MODEL):
        if not path.exists():
            raise UserError(f"{path}: not there; run ./demo.sh first")
    # One pool runs the programs, the other waits for them.
    with ThreadPoolExecutor(args.num_jobs) as pool, ThreadPoolExecutor(2) as tables:
        experiment = Experiment(*folders, pool)
        given = (experiment, range(1, args.seeds + 1), args.num_updates)
        waiting = {
            "streaming": (streaming, *given, args.num_student_updates),
            "ways": (ways, *given),
        }
        futures = {name: tables.submit(*waiting[name]) for name in args.tables}
        try:
            for name, future in futures.items():
                table = future.result()
                print(f"{name}\n{table}\n", flush=True)
                write_text(experiment.exp / f"{name}.txt", table + "\n")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what has not begun
            raise


if __name__ == "__main__":
    run_command(main)
