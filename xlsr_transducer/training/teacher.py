"""A teacher: a trained model whose layers and outputs the model in training is to match.

It computes each batch once more, in evaluation mode, without gradients and in the training's
precision, with its own chunk settings and under the masks of the model that it teaches. It is no
part of that model: not of its checkpoints, its optimizer or what processes share.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.averaging import Weights
from xlsr_transducer.model.config import ModelConfig, build_model
from xlsr_transducer.model.heads.base import Head, Lesson, Losses, Masks
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.training.teacher_options import Scales


class Teacher:
    """The model that teaches now, if any."""

    def __init__(self, scales: Scales, student: ModelConfig):
        self.scales, self.student = scales, student
        self.model: SpeechModel | None = None
        self.config: ModelConfig | None = None
        self.layers: list[int] = []  # of those it computes, which teach the student's in turn

    def take(self, config: ModelConfig, weights: Weights, device: torch.device) -> None:
        """Teaches with these weights from here on.

        Raises:
          RuntimeError, KeyError: the weights do not fit the configuration.
        """
        if self.model is None or self.config != config:
            with torch.random.fork_rng(devices=[]):
                self.model = build_model(config)
        own = self.model.state_dict()
        self.model.load_state_dict({name: weights[name] for name in own})  # without what is below
        self.model.to(device).eval().requires_grad_(False)
        self.config, self.layers = config, taught_by(config, self.student)

    def leave(self) -> None:
        """Nobody teaches from here on; its memory is freed."""
        self.model = self.config = None
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    @torch.no_grad()
    def lesson(self, x: Tensor, x_lens: Tensor, masks: Masks) -> Lesson:
        """Returns what the teacher computes of a batch (see ``XLSREncoder.forward``)."""
        outputs: list[Tensor] | None = [] if self.scales.layers else None
        chunk = self.config.streaming.default()
        encoder_out, _ = self.model.encoder(x, x_lens, *chunk, *masks, outputs)
        layers = [outputs[i] for i in self.layers] if outputs else []
        return Lesson(layers, encoder_out.float(), self._heads())

    def _heads(self) -> dict[str, Head]:
        """The heads that teach."""
        if not self.scales.logits:
            return {}
        shared = shared_heads(self.config, self.student)
        return {name: self.model.heads[name] for name in shared}

    def weighted(self, losses: Losses) -> Tensor | float:
        """Returns what the teacher adds to the loss of each utterance, (N,)."""
        if self.model is None:
            return 0.0
        return losses.layers * self.scales.layers + losses.logits * self.scales.logits

    def content(self) -> dict[str, Any] | None:
        """Returns configuration and weights, on the CPU, and how much they count; None: nobody
        teaches now."""
        if self.model is None:
            return None
        weights = {name: value.cpu() for name, value in self.model.state_dict().items()}
        return {"config": self.config.to_dict(), "model": weights, "scales": tuple(self.scales)}


def taught_by(teacher: ModelConfig, student: ModelConfig) -> list[int]:
    """Returns which of the teacher's layers teaches each of the student's, from the cut up.

    It is the one below the student's next layer, in the teacher's order: the output of each layer
    of the student is what the layer after it was trained to read. The last teaches the last.
    """
    theirs, ours = teacher.kept_layers, student.kept_layers
    below = max(student.xlsr.number_of_level(student.features.cut), 0)
    if below >= len(ours):
        return []
    numbers = [theirs.index(number) - 1 for number in ours[below + 1 :]]
    return [number - below for number in [*numbers, len(theirs) - 1]]


def shared_heads(teacher: ModelConfig, student: ModelConfig) -> list[str]:
    """Returns the heads that both have."""
    return [name for name in student.heads if name in teacher.heads]


def require_can_teach(
    path: Path, teacher: ModelConfig, student: ModelConfig, scales: Scales
) -> None:
    """Checks that a teacher takes the same input and has layers and outputs to compare.

    Raises:
      UserError: names the file, and what differs: the teacher's value first.
    """
    theirs, ours = teacher.features, student.features
    pairs = [("--cut", theirs.cut, ours.cut), ("--normalize", theirs.normalize, ours.normalize)]
    if ours.cut != "waveform":
        pairs.append(("XLSR's sha256", theirs.sha256[:12], ours.sha256[:12]))
        settings = theirs.chunk.describe(), ours.chunk.describe()
        pairs.append(("the features' chunks", *settings))
    if scales.layers or student.encoder.channel_mask_prob:
        pairs.append(("XLSR's width", teacher.xlsr.hidden_size, student.xlsr.hidden_size))
    wrong = [f"{name} {a} and {b}" for name, a, b in pairs if a != b]
    if scales.layers and not _has_layers_of(teacher, student):
        numbers = (teacher.kept_layers, student.kept_layers)
        shown = [",".join(map(str, kept)) for kept in numbers]
        wrong.append(f"XLSR's depth: layers {shown[0]} and {shown[1]}")
    if scales.logits:
        shared = shared_heads(teacher, student)
        if not shared:
            wrong.append(f"--heads {','.join(teacher.heads)} and {','.join(student.heads)}")
        elif shared != ["classifier"] and teacher.encoder.adapter != student.encoder.adapter:
            wrong.append(f"--adapter {teacher.encoder.adapter} and {student.encoder.adapter}")
    if wrong:
        raise UserError(
            f"{path}: cannot teach this model, as they differ (the teacher's first): "
            f"{'; '.join(wrong)}"
        )


def _has_layers_of(teacher: ModelConfig, student: ModelConfig) -> bool:
    """Whether each of the student's layers is one of the teacher's."""
    theirs, ours = teacher.kept_layers, student.kept_layers
    return set(ours) <= set(theirs) if student.encoder.keep_layers else theirs == ours
