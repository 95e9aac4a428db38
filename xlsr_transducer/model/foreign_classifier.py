"""Classifiers that other programs trained, as checkpoints of this project hold them.

Hugging Face's ``Wav2Vec2ForSequenceClassification``, in a folder, such as facebook/mms-lid-126,
and fairseq's ``wav2vec_classification``, a ``.pt``, such as XLS-R's for VoxLingua107, with the
labels in the file or in a ``dict.*.txt`` beside it. Nothing in a file is executed.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.labels import Labels
from xlsr_transducer.model.config import ModelConfig, StreamingOptions
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.foreign import normalizes
from xlsr_transducer.model.heads import ClassifierOptions, TransducerOptions
from xlsr_transducer.model.xlsr_checkpoint import XlsrCheckpoint, load_folder, load_xlsr

ARCHITECTURE = "Wav2Vec2ForSequenceClassification"
HEAD = "heads.classifier"
# Names of the two linear layers: the wider one, and that of the labels.
HUGGING_FACE = ("projector", "classifier")
FAIRSEQ = ("pooling_layer.linear", "pooling_layer.projection")


@dataclasses.dataclass(frozen=True)
class ForeignClassifier:
    """A classifier from elsewhere."""

    config: ModelConfig
    labels: Labels
    weights: dict[str, Tensor]  # by the names of this project


def is_folder_of_classifier(path: Path) -> bool:
    """Returns whether ``path`` is a folder that Hugging Face's class for classifiers loads."""
    try:
        values = json.loads((path / "config.json").read_text(encoding="utf-8"))
        return ARCHITECTURE in (values.get("architectures") or ())
    except (OSError, ValueError, AttributeError):
        return False


def is_fairseq_classifier(content: Any) -> bool:
    """Returns whether a file's content is a checkpoint of fairseq's classifier."""
    weights = content.get("model") if isinstance(content, dict) else None
    return isinstance(weights, dict) and any(
        isinstance(name, str) and name.startswith("pooling_layer.") for name in weights
    )


def read_folder(folder: Path) -> ForeignClassifier:
    """Reads a folder of Hugging Face's ``Wav2Vec2ForSequenceClassification``.

    Raises:
      UserError: something is missing or damaged, or the network has what this project lacks.
    """
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    where = str(folder / "config.json")
    xlsr, weights = load_folder(folder, str(folder))
    own = _head(weights, HUGGING_FACE, str(folder), xlsr.config.hidden_size)
    is_weighted = bool(values.get("use_weighted_layer_sum"))
    if is_weighted:
        own["encoder.layer_weights"] = _weight(weights, "layer_weights", str(folder))
    count = len(own[f"{HEAD}.output.bias"])
    # Hugging Face writes no names where nobody gave them.
    names = values.get("id2label") or {str(i): f"LABEL_{i}" for i in range(count)}
    try:
        labels = [str(names[str(i)]) for i in range(count)]
    except (KeyError, TypeError) as e:
        raise UserError(f"{where}: id2label does not name the {count} labels") from e
    normalize = "utterance" if normalizes(folder) else "none"
    return _classifier(where, xlsr, own, labels, normalize, is_weighted)


def read_fairseq(path: Path, content: dict[str, Any]) -> ForeignClassifier:
    """Returns the classifier in a checkpoint of fairseq's ``wav2vec_classification``.

    Args:
      content: what the file holds.

    Raises:
      UserError: it pools otherwise than by the mean, or has a layer that this project lacks.
    """
    cfg = _dict(content.get("cfg"))
    model, task = _dict(cfg.get("model")), _dict(cfg.get("task"))
    for name, only in (("pooling", "mean"), ("activation_fn", "linear")):
        if model.get(name, only) != only:
            raise UserError(f"{path}: {name} is {model[name]!r}; only {only!r} is supported")
    if "w2v_encoder.proj.weight" in content["model"]:
        raise UserError(f"{path}: has a layer between encoder and pooling; it is not supported")
    xlsr = load_xlsr(str(path))
    own = _head(content["model"], FAIRSEQ, str(path), xlsr.config.hidden_size)
    count = len(own[f"{HEAD}.output.bias"])
    normalize = "utterance" if task.get("normalize", True) else "none"
    return _classifier(str(path), xlsr, own, _fairseq_labels(path, content, count), normalize)


def _fairseq_labels(path: Path, content: dict[str, Any], count: int) -> list[str]:
    """Returns the labels: of the file's dictionary, of one beside it, or else numbers."""
    dictionary = _dict(content.get("task_state")).get("target_dictionary")
    inside = getattr(dictionary, "symbols", None)
    found = [inside] if inside else []
    for file in sorted(path.parent.glob("dict.*.txt")):  # `label count` a line
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        found.append([line.rsplit(" ", 1)[0] for line in lines if line.strip()])
    for labels in found:
        if len(labels) == count:
            return list(map(str, labels))
    logging.warning(
        f"{path}: no names of its {count} labels, in it or in a dict.*.txt beside it: numbers"
    )
    return [str(i) for i in range(count)]


def _dict(value: Any) -> dict[str, Any]:
    """Returns a dictionary as it is, and an empty one in the place of anything else."""
    return value if isinstance(value, dict) else {}


def _head(
    weights: dict[str, Tensor], names: Sequence[str], where: str, width: int
) -> dict[str, Tensor]:
    """Returns the two linear layers under the names of ``ClassifierHead``.

    Raises:
      UserError: a weight is missing, or the shapes do not fit each other.
    """
    own = {}
    for name, part in zip(names, ("projection", "output")):
        for kind in ("weight", "bias"):
            own[f"{HEAD}.{part}.{kind}"] = _weight(weights, f"{name}.{kind}", where)
        weight, bias = own[f"{HEAD}.{part}.weight"], own[f"{HEAD}.{part}.bias"]
        if weight.dim() != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
            raise UserError(
                f"{where}: {name} has the shapes {list(weight.shape)} and {list(bias.shape)} on "
                f"an input of {width}"
            )
        width = weight.shape[0]
    return own


def _weight(weights: dict[str, Tensor], name: str, where: str) -> Tensor:
    if not isinstance(weights.get(name), Tensor):
        raise UserError(f"{where}: the weight {name} is missing")
    return weights[name].float()


def _classifier(
    where: str,
    xlsr: XlsrCheckpoint,
    head: dict[str, Tensor],
    labels: Sequence[str],
    normalize: str,
    is_weighted: bool = False,
) -> ForeignClassifier:
    try:
        known = Labels(labels)
    except UserError as e:
        raise UserError(f"{where}: {e}") from e
    source = str(Path(xlsr.source).resolve())
    config = ModelConfig(
        FeatureInfo(source, xlsr.sha256, "waveform", normalize, feature_dim=1),
        xlsr.config,
        EncoderOptions(adapter="none", weighted_layers=is_weighted),
        TransducerOptions(),
        StreamingOptions(),
        known.vocab_size,
        ("classifier",),
        ClassifierOptions(len(head[f"{HEAD}.projection.bias"])),
    )
    weights = {f"encoder.xlsr.{name}": value for name, value in xlsr.weights.items()}
    return ForeignClassifier(config, known, {**weights, **head})
