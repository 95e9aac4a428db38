"""Draws the courses of several trainings side by side, as PNG:

python -m local.plot_trainings --out curves.png exp/adamw exp/scaled_adam
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.files import replacing
from xlsr_transducer.core.options import Parser

# (place in a record of history.json, label of the axis, its scale: WER may well be 0)
PANELS = (
    (("train", "pruned"), "training: pruned loss per token (nats)", {"value": "log"}),
    (("valid", "pruned"), "validation: pruned loss per token (nats)", {"value": "log"}),
    (("wer",), "validation WER (%), greedy", {"value": "symlog", "linthresh": 1.0}),
)


def read_history(exp_dir: Path) -> list[dict]:
    """Returns the records of a training's epochs.

    Raises:
      UserError: there are none, or the file is damaged.
    """
    path = exp_dir / "history.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; give folders in which a training was run")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise UserError(f"{path}: damaged ({e})") from e
    if not records:
        raise UserError(f"{path}: no epoch has ended yet")
    return records


def plot(histories: dict[str, list[dict]], out: Path) -> None:
    """A line per training in each panel; the scales are logarithmic, as losses fall far."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="tight")
    for axis, (place, label, scale) in zip(figure.subplots(1, len(PANELS)), PANELS):
        for name, records in histories.items():
            values = []
            for record in records:
                for key in place:
                    record = record[key]
                values.append(record)
            axis.plot([r["epoch"] for r in records], values, "o-", ms=3, label=name)
        axis.set(xlabel="epoch", ylabel=label)
        axis.set_yscale(**scale)
        axis.grid(alpha=0.3)
        axis.legend()
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
