"""How exports of classifiers are checked: their logits on each utterance, instead of tokens."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import flag_of
from xlsr_transducer.exporting.formats import FORMATS, Artifact, FormatOptions
from xlsr_transducer.model.checkpoint import CheckpointOptions, LoadedModel, load_model
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.recognition.exported import Output

OF_CLASSIFIERS = ("pretrained", "hf")


def check_formats(loaded: LoadedModel, options: FormatOptions) -> None:
    """Refuses formats in which a classifier is not written.

    Raises:
      UserError: names the option.
    """
    if loaded.model.classifier is None:
        return
    for name in FORMATS:
        if getattr(options, name) and name not in OF_CLASSIFIERS:
            raise UserError(
                f"{flag_of(name)} 1: the model is a classifier, which is written as pretrained.pt "
                "or with --hf FOLDER"
            )


def output_of(logits: Tensor) -> Output:
    """Returns the output of an utterance: its label as the one token, and the logits (1, V)."""
    return Output([int(logits.argmax())], [0], logits.reshape(1, -1))


def outputs(
    loaded: LoadedModel, chunk: ChunkSettings, waves: Sequence[Tensor], shortest: int = 0
) -> list[Output]:
    """Returns the outputs of a model for utterances, (n,) samples each.

    Args:
      shortest: an utterance of less samples has an empty output.
    """
    found = []
    for wave in waves:
        if len(wave) < shortest:
            found.append(Output([], [], torch.zeros(0, 0)))
            continue
        with torch.no_grad():
            given = (wave.unsqueeze(0), torch.tensor([len(wave)]))
            encoded = loaded.model.encoder.encode(*given, *chunk)
            found.append(output_of(loaded.model.classifier(*encoded)))
    return found


def pretrained(loaded: LoadedModel, name: str) -> Artifact:
    """Returns the artifact of a ``pretrained.pt`` of a classifier."""
    chunk = loaded.config.streaming.default()
    expected = functools.partial(outputs, loaded, chunk)
    return Artifact((name,), run_pretrained, chunk, expected=expected)


def run_pretrained(files: Sequence[Path], waves: Sequence[Tensor]) -> list[Output]:
    """Runs a ``pretrained.pt`` of a classifier."""
    loaded = load_model(CheckpointOptions(checkpoint=files[0]))
    return outputs(loaded, loaded.config.streaming.default(), waves)
