"""The options of distillation: who teaches, and how much each term counts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Options, flag_of, option


class Scales(NamedTuple):
    """Weights of the two terms that a teacher adds to the loss."""

    layers: float
    logits: float


@dataclasses.dataclass(frozen=True)
class TeacherOptions(Options):
    """Distillation."""

    teacher: Path | None = option(None, "a trained model that teaches this one: a checkpoint")
    teacher_snapshots: Path | None = option(
        None,
        "folder of a training whose checkpoints teach in turn: always the next one with more "
        "steps than this training has, after the last the last",
    )
    distill_layer_scale: float = option(
        15.0, "weight of the distance between the layers' outputs and the teacher's", at_least=0
    )
    distill_logits_scale: float = option(
        1.0, "weight of the divergence of the heads' outputs from the teacher's", at_least=0
    )
    distill_until_step: int = option(
        0, "train without the teacher from this step on; 0: it teaches to the end", at_least=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher and self.teacher_snapshots:
            raise UserError("--teacher contradicts --teacher-snapshots: give one")
        if not self.is_on:
            for field in dataclasses.fields(self)[2:]:
                if getattr(self, field.name) != field.default:
                    given = flag_of(field.name)
                    raise UserError(f"{given} needs --teacher or --teacher-snapshots")
        elif not any(self.scales):
            raise UserError(
                "--distill-layer-scale 0 and --distill-logits-scale 0: nothing is taught; give "
                "one, or no teacher"
            )

    @property
    def is_on(self) -> bool:
        """Whether there is a teacher."""
        return bool(self.teacher or self.teacher_snapshots)

    @property
    def scales(self) -> Scales:
        """Weights of the two terms."""
        return Scales(self.distill_layer_scale, self.distill_logits_scale)
