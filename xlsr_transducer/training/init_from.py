"""``--init-from``: the weights with which a training starts come from another one's checkpoint."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.averaging import Weights
from xlsr_transducer.model.checkpoint import read_checkpoint
from xlsr_transducer.model.config import ModelConfig
from xlsr_transducer.model.transducer import Transducer
from xlsr_transducer.model.wav2vec2 import Wav2Vec2
from xlsr_transducer.model.xlsr_checkpoint import XlsrCheckpoint

XLSR = "encoder.xlsr."


def take_weights(
    model: Transducer, config: ModelConfig, xlsr: XlsrCheckpoint, path: Path, tokens: list[str]
) -> None:
    """Loads what the checkpoint ``path`` has of ``model``; the rest keeps its values.

    An exported ``pretrained.pt`` holds the whole of XLSR: the part above the cut is taken. The
    part below must be the one that made the features.

    Raises:
      UserError: the file is damaged, or does not fit the model; names the file and why.
    """
    where = f"--init-from {path}"
    content = read_checkpoint(path)
    if content.get("tokens") != tokens:
        raise UserError(f"{where}: was trained with another BPE model")
    source = ModelConfig.from_dict(content["config"], str(path))
    given: Weights = content["model"]
    below = _below_cut(config)
    _require_same_below(where, given, below, source, xlsr)
    own = model.state_dict()
    weights = {name: value for name, value in given.items() if name not in below}
    extra = sorted(weights.keys() - own.keys())
    if extra:
        raise UserError(f"{where}: made with other options: {extra[0]} is new")
    for name, value in weights.items():
        if value.shape != own[name].shape:
            shapes = f"{list(value.shape)} and {list(own[name].shape)}"
            raise UserError(f"{where}: made with other options: {name} has the shapes {shapes}")
    model.load_state_dict({**own, **weights})


def _below_cut(config: ModelConfig) -> set[str]:
    """The names of XLSR's weights below the cut, which the model in training does not have."""
    if config.features.cut == "waveform":
        return set()
    return {XLSR + name for name in Wav2Vec2(config.xlsr, end=config.features.cut).state_dict()}


def _require_same_below(
    where: str, given: Weights, below: set[str], source: ModelConfig, xlsr: XlsrCheckpoint
) -> None:
    """What computes the model's input must be what the weights in the file were trained on."""
    for name in sorted(below & given.keys()):
        if name.endswith("masked_spec_embed"):  # features are computed without masks
            continue
        if not torch.equal(given[name], xlsr.weights[name[len(XLSR) :]]):
            raise UserError(
                f"{where}: its XLSR below the cut is not the one that made the features, as "
                f"{name} differs; make the features with its XLSR, or train with --cut waveform"
            )
    is_whole = any(name.startswith(f"{XLSR}feature_extractor.") for name in given)
    if is_whole or source.features.sha256 == xlsr.sha256:
        return
    if any(name.startswith(XLSR) for name in given):
        raise UserError(
            f"{where}: holds layers of another XLSR ({source.features.xlsr}) without the part "
            "below them; give --xlsr and features of that one"
        )
    logging.warning(f"{where}: was trained on features of another XLSR, {source.features.xlsr}")
