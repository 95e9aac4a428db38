"""The courses of trainings, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.evaluation.drawing import drawing, styled
from xlsr_transducer.training.metrics import main_loss

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# (place in a record of history.json, label of the axis, its scale: WER may well be 0)
PANELS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("train", "training: loss per token (nats)", {"value": "log"}),
    ("valid", "validation: loss per token (nats)", {"value": "log"}),
    ("wer", "validation WER (%), greedy", {"value": "symlog", "linthresh": 1.0}),
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


@styled
def draw_curves(histories: Mapping[str, Sequence[dict]]) -> Figure:
    """A line per training in each panel; the scales are logarithmic, as losses fall far.

    The loss is the main one of the model's heads, such as ``pruned``, which the legend names.
    """
    figure, [panels] = drawing(11, 3.4, 1, len(PANELS))
    for axis, (place, title, scale) in zip(panels, PANELS):
        for name, records in histories.items():
            values, label = [record[place] for record in records], name
            if place != "wer":
                loss = main_loss(records[0][place])
                values, label = [value[loss] for value in values], f"{name}: {loss}"
            axis.plot([r["epoch"] for r in records], values, "o-", ms=3, label=label)
        axis.set(xlabel="epoch", ylabel=title)
        axis.set_yscale(**scale)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if histories:
            axis.legend()
    return figure
