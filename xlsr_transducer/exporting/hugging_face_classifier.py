"""A classifier as a folder that Hugging Face's ``Wav2Vec2ForSequenceClassification`` loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import RECEPTIVE_FIELD, SAMPLING_RATE
from xlsr_transducer.exporting.classifier import output_of, outputs
from xlsr_transducer.exporting.formats import Artifact, Job
from xlsr_transducer.exporting.hugging_face import FILES
from xlsr_transducer.exporting.hugging_face_files import (
    PREPROCESSOR_CONFIG,
    TOLERANCE,
    config_of,
    hugging_face_weights,
    write_files,
)
from xlsr_transducer.model.foreign_classifier import ARCHITECTURE, HUGGING_FACE
from xlsr_transducer.model.heads import ClassifierHead
from xlsr_transducer.recognition.exported import Output

CARD = """---
library_name: transformers
pipeline_tag: audio-classification
tags:
- wav2vec2
- audio-classification
---
# A classifier of {count} labels

XLSR (wav2vec 2.0), the mean over its frames and linear layers, trained with XLSR-Transducer from
{source}. It loads with `transformers.{architecture}.from_pretrained`.

Weights: {name}. Labels: {labels}.
"""
MOST_NAMED = 200  # labels in the card


def write(job: Job, folder: Path) -> list[Artifact]:
    """Writes the files into ``folder``.

    Raises:
      UserError: Hugging Face's class cannot compute what the model does; names why.
    """
    check(job)
    loaded = job.loaded
    encoder, head = loaded.model.encoder, loaded.model.classifier
    weights = {f"wav2vec2.{n}": w for n, w in hugging_face_weights(encoder.xlsr).items()}
    weights.update(_head(head))
    labels = loaded.tokenizer.tokens
    values = config_of(
        loaded.config.xlsr,
        architectures=[ARCHITECTURE],
        classifier_proj_size=len(weights[f"{HUGGING_FACE[0]}.bias"]),
        id2label={str(i): label for i, label in enumerate(labels)},
        label2id={label: i for i, label in enumerate(labels)},
    )
    normalizes = loaded.config.features.normalize == "utterance"
    preprocessor = {**PREPROCESSOR_CONFIG, "do_normalize": normalizes}
    files = {"preprocessor_config.json": preprocessor, "config.json": values}
    write_files(folder, weights, _card(job), files)
    # Audio shorter than a frame has none, with which Hugging Face's class stops.
    return [
        Artifact(
            FILES,
            run,
            job.chunk,
            tolerance=TOLERANCE,
            expected=lambda waves: outputs(loaded, job.chunk, waves, RECEPTIVE_FIELD),
            home=job.options.hf,
        )
    ]


def check(job: Job) -> None:
    """Refuses a model that Hugging Face's class cannot compute.

    Raises:
      UserError: names why, and what to train.
    """
    config, why = job.loaded.config, ""
    if config.encoder.adapter != "none":
        why = f"--adapter {config.encoder.adapter}: train with --adapter none"
    elif config.encoder.weighted_layers:
        # transformers 4 takes the last layer from after the outer norm as here, 5 from before.
        why = "fixed meaning of --weighted-layers 1, which its versions compute differently"
    elif config.features.normalize == "cumulative":
        why = "--normalize cumulative: train with --normalize utterance"
    elif not job.chunk.is_full_context:
        why = f"{job.chunk.describe()}: give --decode-chunk-len -1"
    if why:
        raise UserError(f"--hf {job.options.hf}: Hugging Face's class has no {why}")


def _head(head: ClassifierHead) -> dict[str, Tensor]:
    """Returns the linear layers by Hugging Face's names; where there is one, the other is the
    identity."""
    width = head.width
    weight, bias = torch.eye(width), torch.zeros(width)
    if head.projection is not None:
        weight, bias = head.projection.weight, head.projection.bias
    layers = zip(HUGGING_FACE, ((weight, bias), (head.output.weight, head.output.bias)))
    return {
        f"{name}.{kind}": value.detach().clone()
        for name, pair in layers
        for kind, value in zip(("weight", "bias"), pair)
    }


def _card(job: Job) -> str:
    labels = job.loaded.tokenizer.tokens
    more = ", ..." if len(labels) > MOST_NAMED else ""
    return CARD.format(
        count=len(labels),
        source=Path(job.loaded.config.features.xlsr).name,
        architecture=ARCHITECTURE,
        name=job.name,
        labels=", ".join(labels[:MOST_NAMED]) + more,
    )


def run(files: Sequence[Path], waves: Sequence[Tensor]) -> list[Output]:
    """Loads the folder as transformers does and runs it, with its own feature extractor.

    Raises:
      UserError: transformers does not find all weights.
    """
    from transformers import AutoFeatureExtractor, Wav2Vec2ForSequenceClassification

    folder = str(files[0].parent)
    model, report = Wav2Vec2ForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    if report["missing_keys"] or report["unexpected_keys"]:
        raise UserError(f"{folder}: transformers reports {report}")
    extractor, found = AutoFeatureExtractor.from_pretrained(folder), []
    for wave in waves:
        if len(wave) < RECEPTIVE_FIELD:
            found.append(Output([], [], torch.zeros(0, 0)))
            continue
        given = extractor(wave.numpy(), sampling_rate=SAMPLING_RATE, return_tensors="pt")
        with torch.no_grad():
            found.append(output_of(model.eval()(**given).logits))
    return found
