"""Folders in Hugging Face's format: of a transducer its XLSR, such as ``transformers`` and
``--xlsr`` read; of a CTC model all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.exporting import hugging_face_ctc
from xlsr_transducer.exporting.formats import Artifact, Job
from xlsr_transducer.exporting.hugging_face_files import (
    PREPROCESSOR_CONFIG,
    TOLERANCE,
    config_of,
    hugging_face_weights,
    write_files,
)
from xlsr_transducer.exporting.model_card import model_card
from xlsr_transducer.model.normalize import normalize_utterance
from xlsr_transducer.model.wav2vec2 import Wav2Vec2
from xlsr_transducer.model.xlsr_checkpoint import load_xlsr
from xlsr_transducer.model.xlsr_config import XlsrConfig
from xlsr_transducer.recognition.exported import Output

FILES = ("model.safetensors", "README.md", "preprocessor_config.json", "config.json")


def write_folder(folder: Path, config: XlsrConfig, network: Wav2Vec2, card: str) -> None:
    """Writes configuration, weights, preprocessor and the card README.md."""
    files = {"preprocessor_config.json": PREPROCESSOR_CONFIG, "config.json": config_of(config)}
    write_files(folder, hugging_face_weights(network), card, files)


def write(job: Job, folder: Path) -> list[Artifact]:
    """Writes the files into ``folder``.

    Raises:
      UserError: a CTC model that Hugging Face's class cannot compute.
    """
    if job.loaded.config.heads == ("ctc",):
        return hugging_face_ctc.write(job, folder)
    network = job.loaded.model.encoder.xlsr
    config = job.loaded.config.xlsr

    def expected(waves: Sequence[Tensor]) -> list[Output]:
        return _hidden_states(config, network.state_dict(), waves)

    write_folder(folder, config, network, model_card(job))
    return [
        Artifact(
            FILES, run, job.chunk, tolerance=TOLERANCE, expected=expected, home=job.options.hf
        )
    ]


def _hidden_states(
    config: XlsrConfig, weights: dict[str, Tensor], waves: Sequence[Tensor]
) -> list[Output]:
    """Returns the last hidden states of whole utterances, normalised as Hugging Face does."""
    network = Wav2Vec2(config, normalize="none").eval()
    network.load_state_dict(weights)
    outputs = []
    for wave in waves:
        lens = torch.tensor([len(wave)])
        with torch.no_grad():
            out, lens = network(normalize_utterance(wave.unsqueeze(0), lens), lens)
        outputs.append(Output([], [], out[0, : lens[0]]))
    return outputs


def run(files: Sequence[Path], waves: Sequence[Tensor]) -> list[Output]:
    """Loads the folder as this project does and as transformers does, and runs the latter.

    Raises:
      UserError: transformers does not find all weights.
    """
    from transformers import Wav2Vec2Model

    folder = str(files[0].parent)
    checkpoint = load_xlsr(folder)
    model, report = Wav2Vec2Model.from_pretrained(folder, output_loading_info=True)
    if report["missing_keys"] or report["unexpected_keys"]:
        raise UserError(f"{folder}: transformers reports {report}")
    outputs = []
    for wave in waves:
        if checkpoint.config.num_frames(len(wave)) == 0:
            outputs.append(Output([], [], torch.zeros(0, 0)))
            continue
        with torch.no_grad():
            x = normalize_utterance(wave.unsqueeze(0), torch.tensor([len(wave)]))
            outputs.append(Output([], [], model.eval()(x).last_hidden_state[0]))
    return outputs
