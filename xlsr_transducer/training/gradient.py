"""The loss of one batch, as training lowers it: from the options, the step and named draws."""

from __future__ import annotations

import dataclasses
import random

import torch
from torch import Tensor, nn

from xlsr_transducer.data.datamodule import Batch
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.config import ModelConfig
from xlsr_transducer.model.heads import Losses, LossOptions
from xlsr_transducer.model.masking import drop_layers
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.training.optim import OptimOptions, set_trainable
from xlsr_transducer.training.teacher import Teacher


@dataclasses.dataclass(frozen=True)
class Objective:
    """All that decides the loss of a batch beside the batch and the weights.

    Random numbers come from the seed, the epoch and the batch's place there, so that a batch has
    the same loss and gradient in any process, and again when it is repeated.
    """

    config: ModelConfig
    optim: OptimOptions
    loss: LossOptions
    seed: int
    autocast: torch.dtype | None  # of the encoder; None: float32
    teacher: Teacher | None = None

    def prepare(self, model: SpeechModel, step: int, drops_layers: bool = True) -> None:
        """Sets which parameters ``step`` trains, and which layers it leaves out, if any."""
        set_trainable(model, self.optim, step)
        layerdrop = self.config.encoder.layerdrop if drops_layers else 0.0
        drop_layers(model.encoder.xlsr, layerdrop, self.seed, step)

    def losses(
        self,
        model: nn.Module,
        batch: Batch,
        epoch: int,
        index: int,
        step: int,
        chunk: ChunkSettings | None = None,
    ) -> Losses:
        """Returns the losses of each utterance of a batch on the model's device.

        Args:
          model: a ``SpeechModel``, or a wrapper of one. index: of the batch in its epoch.
          chunk: None: the setting that is drawn for ``step``.
        """
        torch.manual_seed(random.Random(f"{self.seed} {epoch} {index}").getrandbits(63))
        chunk = chunk or self.config.streaming.draw(self.seed, step)
        teach = self.teacher.lesson if self.teacher and self.teacher.model else None
        inputs = (batch.inputs, batch.input_lens, batch.tokens, batch.token_lens)
        with autocast(batch.inputs.device, self.autocast):
            return model(*inputs, self.loss, chunk, teach)

    def weighted(self, losses: Losses, is_finite: Tensor, step: int) -> Tensor:
        """Returns what is to go down, (N,): 0 of utterances not in ``is_finite`` (N,) bool."""
        weighted = self.loss.weighted(losses, step)
        if self.teacher:
            weighted = weighted + self.teacher.weighted(losses)
        return torch.where(is_finite, weighted, torch.zeros_like(weighted))


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Inside, matrix products are computed in ``dtype``; None: as they come."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def finite(losses: Losses) -> Tensor:
    """Returns which utterances have finite losses: (N,) bool."""
    return torch.stack([torch.isfinite(x) for x in losses]).all(0)


def dummy_batch(batch: Batch, config: ModelConfig) -> Batch:
    """Returns a second of silence in the place of a batch without utterances.

    Every process must compute whenever one does, for the gradients that they add up.
    """
    is_audio = config.features.cut == "waveform"
    shape = (1, 16000) if is_audio else (1, 50, config.features.feature_dim)
    one = torch.ones(1, dtype=torch.int64)
    return dataclasses.replace(
        batch,
        inputs=torch.zeros(shape),
        input_lens=one * shape[1],
        tokens=one.unsqueeze(1),
        token_lens=one,
        ids=["(silence, as this process has no batch)"],
        groups=[""],
        texts=[""],
    )
