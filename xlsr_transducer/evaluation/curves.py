"""The courses of trainings, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.evaluation.drawing import drawing, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# (place in a record of history.json, label of the axis, its scale: WER may well be 0)
PANELS: tuple[tuple[tuple[str, ...], str, dict[str, Any]], ...] = (
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


@styled
def draw_curves(histories: Mapping[str, Sequence[dict]]) -> Figure:
    """A line per training in each panel; the scales are logarithmic, as losses fall far."""
    figure, [panels] = drawing(11, 3.4, 1, len(PANELS))
    for axis, (place, label, scale) in zip(panels, PANELS):
        for name, records in histories.items():
            values = []
            for record in records:
                value: Any = record
                for key in place:
                    value = value[key]
                values.append(value)
            axis.plot([r["epoch"] for r in records], values, "o-", ms=3, label=name)
        axis.set(xlabel="epoch", ylabel=label)
        axis.set_yscale(**scale)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if histories:
            axis.legend()
    return figure
