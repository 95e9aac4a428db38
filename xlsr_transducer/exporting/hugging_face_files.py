"""What all folders in Hugging Face's format have: weights by its names, configuration, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from xlsr_transducer.core.files import replacing
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.model.wav2vec2 import Wav2Vec2
from xlsr_transducer.model.xlsr_checkpoint import POS_CONV
from xlsr_transducer.model.xlsr_config import XlsrConfig

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
    """Returns the state dict with the positional convolution's weight norm spelled out again.

    ``weight_g`` and ``weight_v`` are the names that every version of transformers reads.
    """
    weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
    folded = weights.pop(POS_CONV + "weight")
    weights[POS_CONV + "weight_v"] = folded
    norm = folded.double().square().sum(dim=(0, 1), keepdim=True).sqrt()
    weights[POS_CONV + "weight_g"] = norm.float()
    return weights


def config_of(config: XlsrConfig, **more: Any) -> dict[str, Any]:
    """Returns what Hugging Face's config.json holds."""
    shape = {**config.to_dict(), "num_feat_extract_layers": len(config.conv_dim)}
    return {**HUGGING_FACE_CONFIG, **shape, **more}


def write_files(
    folder: Path, weights: dict[str, Tensor], card: str, files: dict[str, dict[str, Any]]
) -> None:
    """Writes model.safetensors, README.md with the card, and JSON ``files``, in this order.

    config.json is to be the last of them: it tells that the rest is there.
    """
    from safetensors.torch import save

    contents = {
        "model.safetensors": save(weights, metadata={"format": "pt"}),
        "README.md": card.encode(),
    }
    for name, values in files.items():
        contents[name] = (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
    with replacing(*(folder / name for name in contents)) as temporary:
        for path, content in zip(temporary, contents.values()):
            path.write_bytes(content)
