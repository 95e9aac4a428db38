"""XLSR as a folder in Hugging Face's format, such as ``transformers`` and ``--xlsr`` read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import replacing
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.exporting.formats import Artifact, Job
from xlsr_transducer.exporting.model_card import model_card
from xlsr_transducer.model.normalize import normalize_utterance
from xlsr_transducer.model.wav2vec2 import Wav2Vec2
from xlsr_transducer.model.xlsr_checkpoint import POS_CONV, load_xlsr
from xlsr_transducer.model.xlsr_config import XlsrConfig
from xlsr_transducer.recognition.exported import Output

# config.json last: it tells that the rest is there.
FILES = ("model.safetensors", "preprocessor_config.json", "README.md", "config.json")
TOLERANCE = 1e-4  # transformers adds up in another order, and multiplies the weight norm anew
# What Hugging Face's configuration has besides the fields of XlsrConfig.
HUGGING_FACE_CONFIG = {
    "architectures": ["Wav2Vec2Model"],
    "model_type": "wav2vec2",
    "feat_extract_activation": "gelu",
    "hidden_act": "gelu",
    "feat_proj_dropout": 0.0,
    "final_dropout": 0.0,
    "initializer_range": 0.02,
    "mask_time_prob": 0.075,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PREPROCESSOR_CONFIG = {
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "do_normalize": True,
    "feature_size": 1,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "sampling_rate": SAMPLING_RATE,
}


def hugging_face_weights(network: Wav2Vec2) -> dict[str, Tensor]:
    """The state dict with the positional convolution's weight norm spelled out again.

    ``weight_g`` and ``weight_v`` are the names that every version of transformers reads.
    """
    weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
    folded = weights.pop(POS_CONV + "weight")
    weights[POS_CONV + "weight_v"] = folded
    norm = folded.double().square().sum(dim=(0, 1), keepdim=True).sqrt()
    weights[POS_CONV + "weight_g"] = norm.float()
    return weights


def write_folder(folder: Path, config: XlsrConfig, network: Wav2Vec2, card: str) -> None:
    """Writes configuration, weights, preprocessor and the card README.md."""
    from safetensors.torch import save

    values: dict[str, Any] = {**HUGGING_FACE_CONFIG, **config.to_dict()}
    values["num_feat_extract_layers"] = len(config.conv_dim)
    contents = (
        save(hugging_face_weights(network), metadata={"format": "pt"}),
        (json.dumps(PREPROCESSOR_CONFIG, indent=2) + "\n").encode(),
        card.encode(),
        (json.dumps(values, indent=2, sort_keys=True) + "\n").encode(),
    )
    with replacing(*(folder / name for name in FILES)) as temporary:
        for path, content in zip(temporary, contents):
            path.write_bytes(content)


def write(job: Job, folder: Path) -> list[Artifact]:
    """Writes the files into ``folder``."""
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
    """The last hidden states of whole utterances, normalised as Hugging Face does."""
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
