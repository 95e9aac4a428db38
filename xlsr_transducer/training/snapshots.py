"""Which model teaches at each step: a fixed one, or the checkpoints of another training in turn.

The choice depends on the step alone, so that a training that was killed and resumed is taught the
same. A checkpoint notes by whom its training is taught, and is not resumed with another teacher.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import is_locked
from xlsr_transducer.core.tensor_files import require_intact, step_of
from xlsr_transducer.data.labels import Units
from xlsr_transducer.data.tokenizer import LanguageFirst
from xlsr_transducer.model.averaging import Weights
from xlsr_transducer.model.checkpoint import numbered_files, read_model
from xlsr_transducer.model.config import ModelConfig
from xlsr_transducer.training.distributed import Process
from xlsr_transducer.training.optim import OptimOptions
from xlsr_transducer.training.resume import LOCK
from xlsr_transducer.training.teacher import Teacher, require_can_teach
from xlsr_transducer.training.teacher_options import TeacherOptions


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A model of which a training keeps a file after ``step``; 0 of a fixed teacher."""

    step: int
    path: Path


def find_snapshots(folder: Path) -> list[Snapshot]:
    """Returns the checkpoints of a training that has ended, by the steps that they hold.

    Raises:
      UserError: there is no such folder or no checkpoint in it, one is damaged, or the training
        is still running.
    """
    where = f"--teacher-snapshots {folder}"
    if not folder.is_dir():
        raise UserError(f"{where}: no such folder")
    if is_locked(folder / LOCK):
        raise UserError(
            f"{where}: is still being written, as a training is running in it; wait for its end"
        )
    found: dict[int, Snapshot] = {}
    for stem in ("checkpoint", "epoch"):  # of the same step both have the same weights
        for path in numbered_files(folder, stem).values():
            step = step_of(path)
            if step is None:
                require_intact(path)
                raise UserError(f"{path}: does not tell its step; use it with --teacher alone")
            found[step] = Snapshot(step, path)
    if not found:
        raise UserError(f"{where}: holds no checkpoint-N.pt and no epoch-N.pt")
    return [found[step] for step in sorted(found)]


def chosen(snapshots: Sequence[Snapshot], step: int) -> Snapshot:
    """Returns who teaches a training that has done ``step`` steps: the first with more steps than
    that, after the last the last."""
    return next((s for s in snapshots if s.step > step), snapshots[-1])


class Teaching:
    """Finds the teachers of a training, and changes them as it goes on."""

    def __init__(
        self,
        options: TeacherOptions,
        student: ModelConfig,
        units: Units,
        optim: OptimOptions,
        process: Process,
    ):
        """
        Args:
          units: of the student.

        Raises:
          UserError: nothing of the student's layers is trained or above the cut.
        """
        self.options, self.units, self.process = options, units, process
        self.teacher = Teacher(options.scales, student)
        self.snapshots: list[Snapshot] = []
        self.now: Snapshot | None = None
        self.note: dict[str, Any] | None = None  # of a checkpoint, to know the teachers again
        if options.is_on and options.distill_layer_scale:
            _require_layers(student, optim)

    def begin(self, step: int, before: dict[str, Any] | None, checkpoint: Path | None) -> None:
        """Finds and checks the teachers from ``step`` on, and reads the first.

        Args:
          before: ``note`` of the checkpoint that the training resumes from.

        Raises:
          UserError: a file is missing, damaged or does not fit; or the checkpoint's training was
            taught by others.
        """
        if not self.options.is_on:
            if before:
                logging.info(f"from here on without the teacher that {checkpoint} had")
            return
        if self._is_over(step):
            self.note = before
            return
        self.snapshots = self.process.from_main(self._find(step) if self.process.is_main else None)
        self.prepare(step)
        self.note = self._make_note()
        if before and before != self.note:
            raise UserError(
                f"{checkpoint}: was trained with another teacher: {_described(before)} and "
                f"{_described(self.note)}; give the same, or begin anew with --init-from"
            )
        if checkpoint and not before:
            logging.info(f"from here on with a teacher, which {checkpoint} had not")

    def prepare(self, step: int) -> None:
        """Sees to it that the teacher of a training that has done ``step`` steps teaches; every
        process calls it."""
        if not self.options.is_on:
            return
        if self._is_over(step):
            self._leave(step)
            return
        snapshot = chosen(self.snapshots, step)
        if snapshot == self.now:
            return
        content = self._read(snapshot.path) if self.process.is_main else None
        config, weights = self.process.from_main(content)
        try:
            self.teacher.take(ModelConfig.from_dict(config), weights, self.process.device)
        except (RuntimeError, KeyError) as e:
            raise UserError(
                f"{snapshot.path}: the weights do not fit the configuration ({e})"
            ) from e
        self.now = snapshot
        logging.info(f"step {step}: {snapshot.path} teaches from here on")

    def _is_over(self, step: int) -> bool:
        return 0 < self.options.distill_until_step <= step

    def _leave(self, step: int) -> None:
        if self.now is not None:
            logging.info(f"step {step}: nobody teaches from here on")
            self.teacher.leave()
            self.now = None

    def _find(self, step: int) -> list[Snapshot]:
        """The teachers; all that will be needed after ``step`` are intact."""
        if self.options.teacher:
            return [Snapshot(0, self.options.teacher)]
        found = find_snapshots(self.options.teacher_snapshots)
        first = chosen(found, step)
        for snapshot in found[found.index(first) :]:
            require_intact(snapshot.path)
        logging.info(f"{len(found)} snapshots in {self.options.teacher_snapshots} teach in turn")
        return found

    def _read(self, path: Path) -> tuple[dict[str, Any], Weights]:
        """A teacher's configuration and weights."""
        content = read_model(path)
        config = ModelConfig.from_dict(content["config"], str(path))
        theirs, ours = content.get("tokens", []), self.units.tokens
        if theirs != ours:
            other = next((p for p in zip(theirs, ours) if p[0] != p[1]), ("more", "fewer"))
            raise UserError(
                f"{path}: cannot teach this model, as its tokens are others: {len(theirs)} and "
                f"{len(ours)}, the first that differ are {other[0]!r} and {other[1]!r}"
            )
        is_first = bool(content.get("language_token")), isinstance(self.units, LanguageFirst)
        if is_first[0] != is_first[1]:
            raise UserError(
                f"{path}: cannot teach this model: --language-token {int(is_first[0])} and "
                f"{int(is_first[1])}"
            )
        require_can_teach(path, config, self.teacher.student, self.options.scales)
        return content["config"], content["model"]

    def _make_note(self) -> dict[str, Any]:
        if self.options.teacher_snapshots:
            return {"steps": [snapshot.step for snapshot in self.snapshots]}
        return {"sha256": _digest(self.teacher.model.state_dict())}


def _require_layers(student: ModelConfig, optim: OptimOptions) -> None:
    """Refuses to teach layers of which none is trained."""
    reason = ""
    if student.features.cut == "last":
        reason = "no layer of XLSR lies above --cut last"
    elif student.encoder.weighted_layers or optim.trainable_layers == 0:
        reason = "no layer of XLSR is trained"
    if reason:
        raise UserError(f"--distill-layer-scale teaches XLSR's layers, but {reason}: give it as 0")


def _digest(weights: Weights) -> str:
    """The hash of a teacher's weights, whatever file they come from."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _described(note: dict[str, Any]) -> str:
    """A note in words: ``the snapshots of steps 5, 10``."""
    if "sha256" in note:
        return f"that of sha256 {note['sha256'][:12]}"
    return f"the snapshots of steps {', '.join(map(str, note['steps']))}"
