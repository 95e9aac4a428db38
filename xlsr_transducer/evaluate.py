"""Reports how good a model is, where it fails, and what latency costs:
``python -m xlsr_transducer.evaluate --exp-dir exp/streaming``, with --exp-dir again for others
to compare with.

Writes EXP/report/index.html, report.json, report.csv and the pictures, for the first EXP. What was
recognised is kept beside them: interrupted, the same command goes on.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from xlsr_transducer.core.errors import UserError, complain, run_command
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Parser, add_options, from_args
from xlsr_transducer.data.splits import load_splits
from xlsr_transducer.evaluation.attention_section import attention_section
from xlsr_transducer.evaluation.decodes import ScoringOptions, decode_sections
from xlsr_transducer.evaluation.experiment import REPORT, evaluate, told_apart
from xlsr_transducer.evaluation.grid_section import (
    grid_section,
    latency_section,
    summary_section,
)
from xlsr_transducer.evaluation.normalizing import Normalizer
from xlsr_transducer.evaluation.options import EvaluateOptions
from xlsr_transducer.evaluation.report import write_report
from xlsr_transducer.evaluation.rows import rows_of
from xlsr_transducer.model.checkpoint import CheckpointOptions
from xlsr_transducer.model.cpu_choice import AUTO, CPU_LAYERS
from xlsr_transducer.recognition.audio_sets import audio_sets
from xlsr_transducer.search import SearchOptions

OPTIONS = (EvaluateOptions, ScoringOptions, CheckpointOptions, SearchOptions)


def get_parser() -> Parser:
    # --exp-dir of the checkpoint's options gives way to the one that can be repeated.
    parser = Parser(description=__doc__.splitlines()[0], conflict_handler="resolve")
    for cls in OPTIONS:
        add_options(parser, cls)
    parser.add_argument(
        "--exp-dir", type=Path, action="append", help="folder of a training run; may be repeated"
    )
    parser.add_argument(
        "--baseline",
        action="append",
        default=[],
        help="folder of local.baseline, or a model of Hugging Face; may be repeated",
    )
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="(default: data)")
    parser.add_argument("--split", default="", help="splits, such as val (default: all tests)")
    parser.add_argument("--manifest", type=Path, help="this cut manifest instead of splits")
    parser.add_argument("--cpu-layers", choices=CPU_LAYERS, default=AUTO, help="as in decode")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    folders = list(dict.fromkeys(args.exp_dir or [Path("exp")]))
    args.exp_dir = folders[0]
    options, scoring, checkpoint, search = (from_args(cls, args) for cls in OPTIONS)
    search.require_streaming()
    normalizer = Normalizer.parse(scoring.score_normalize)
    if checkpoint.checkpoint and len(folders) > 1:
        raise UserError("--checkpoint names one model: give one --exp-dir")
    split = args.split or ",".join(load_splits(args.data_dir)["test"]) if not args.manifest else ""
    sets = audio_sets(args.data_dir, split, args.manifest)
    report = folders[0] / REPORT
    set_up_logging(report, "evaluate")
    experiments = []
    for folder in folders:
        one = dataclasses.replace(checkpoint, exp_dir=folder)
        experiments.append(evaluate(one, options, search, sets, args.cpu_layers))
        experiments[-1].write_results()
    experiments = told_apart(experiments)
    grids = [rows_of(experiment, normalizer) for experiment in experiments]
    sections = [
        summary_section(experiments, grids, options.latency_budgets()),
        grid_section(experiments, grids, normalizer.description),
        latency_section(experiments, grids),
    ]
    if options.attention:
        show = [name for name in options.show.split(",") if name]
        sections.append(attention_section(experiments[0], options.attention, show))
    sections += decode_sections(experiments, args.baseline, scoring)
    names = " and ".join(experiment.name for experiment in experiments)
    settings = [row.flat() for rows in grids for row in rows]
    path = write_report(report, f"Evaluation of {names}", sections, settings)
    logging.info(f"report: {path}")
    if any(row.num_differing for rows in grids for row in rows):
        return complain("streaming differs from simulation, see the report")
    if any(one.unread for one in experiments[0].sets):
        return complain("utterances could not be read, see the report; their words are deletions")
    return 0


if __name__ == "__main__":
    run_command(main)
