"""Draws the courses of several trainings side by side, as PNG:

python -m local.plot_trainings --out curves.png exp/adamw exp/scaled_adam
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.files import replacing
from xlsr_transducer.core.options import Parser
from xlsr_transducer.evaluation.curves import draw_curves, read_history


def plot(histories: dict[str, list[dict]], out: Path) -> None:
    """Draws the trainings into a PNG file."""
    figure = draw_curves(histories)
    with replacing(out) as [temporary]:
        figure.savefig(temporary, dpi=110, format="png")


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exp_dirs", nargs="+", type=Path, help="folders of trainings")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    args = parser.parse_args(argv)
    plot({d.name: read_history(d) for d in args.exp_dirs}, args.out)
    for d in args.exp_dirs:
        records = read_history(d)
        best = min(records, key=lambda r: r["wer"])
        print(
            f"{d.name}: {len(records)} epochs, best validation WER {best['wer']:.2f} % "
            f"in epoch {best['epoch']}, last {records[-1]['wer']:.2f} %"
        )


if __name__ == "__main__":
    run_command(main)
