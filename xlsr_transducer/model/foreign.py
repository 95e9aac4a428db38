"""Recognisers that other programs trained, in folders of Hugging Face's format.

Whatever is in the folder, the result is what a checkpoint of this project holds, so that every
command takes it in the place of one. Nothing of the folder is executed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import Tensor

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.model.config import ModelConfig, StreamingOptions
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.foreign_letters import letters_of
from xlsr_transducer.model.heads import TransducerOptions
from xlsr_transducer.model.xlsr_checkpoint import (
    XlsrCheckpoint,
    load_folder,
    read_json,
    unknown_language,
)

CTC, PRETRAINED = "Wav2Vec2ForCTC", ("Wav2Vec2Model", "Wav2Vec2ForPreTraining")
NEVER = -1e4  # the bias of a token that the folder's model has not
CTC_OUTPUT = "heads.ctc.output"


@dataclasses.dataclass(frozen=True)
class ForeignModel:
    """A model from elsewhere, as a checkpoint of this project would hold it."""

    config: ModelConfig
    tokenizer: Tokenizer
    weights: dict[str, Tensor]


def read_foreign(folder: Path, language: str | None = None) -> ForeignModel:
    """Reads a folder of Hugging Face's ``Wav2Vec2ForCTC``.

    Args:
      language: of a folder that has several, as MMS is; None: the one its files name.

    Raises:
      UserError: it is damaged, of another kind, or has no such language.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder}: neither a checkpoint nor a folder with a config.json")
    kind = (read_json(path).get("architectures") or ["none"])[0]
    if kind != CTC:
        advice = "; give it as --xlsr of a training" if kind in PRETRAINED else ""
        raise UserError(f"{path}: the architecture is {kind}, but only {CTC} is read{advice}")
    return _read_ctc(folder, language)


def _read_ctc(folder: Path, language: str | None) -> ForeignModel:
    letters = letters_of(folder, language)
    if letters.languages and language not in (None, *letters.languages):
        raise unknown_language(folder, language, list(letters.languages))
    xlsr, weights = load_folder(folder, str(folder), language)
    for name in ("lm_head.weight", "lm_head.bias"):
        if name not in weights:
            raise UserError(f"{folder}: the weight {name} is missing; is this a {CTC}?")
    weight, bias = weights["lm_head.weight"].float(), weights["lm_head.bias"].float()
    width = xlsr.config.hidden_size
    if weight.shape[1:] != (width,) or bias.shape != weight.shape[:1]:
        raise UserError(
            f"{folder}: lm_head has the shapes {list(weight.shape)} and {list(bias.shape)}, but "
            f"the encoder is {width} wide"
        )
    tokenizer, rows = letters.tokenizer(len(bias))
    own = {f"encoder.xlsr.{name}": value for name, value in xlsr.weights.items()}
    own[f"{CTC_OUTPUT}.weight"] = weight.new_zeros(len(rows), width)
    own[f"{CTC_OUTPUT}.bias"] = bias.new_full([len(rows)], NEVER)
    for i, row in enumerate(rows):
        if row is not None:
            own[f"{CTC_OUTPUT}.weight"][i] = weight[row]
            own[f"{CTC_OUTPUT}.bias"][i] = bias[row]
    normalize = "utterance" if normalizes(folder) else "none"
    return ForeignModel(_config(folder, xlsr, normalize, tokenizer.vocab_size), tokenizer, own)


def _config(folder: Path, xlsr: XlsrCheckpoint, normalize: str, vocab_size: int) -> ModelConfig:
    return ModelConfig(
        FeatureInfo(str(folder.resolve()), xlsr.sha256, "waveform", normalize, feature_dim=1),
        xlsr.config,
        EncoderOptions(adapter="none"),
        TransducerOptions(),
        StreamingOptions(),
        vocab_size,
        ("ctc",),
    )


def normalizes(folder: Path) -> bool:
    """Returns whether a folder's feature extractor normalises each utterance."""
    values = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            content = read_json(folder / name)
            values.update(content.get("feature_extractor", content))
    rate = values.get("sampling_rate", 16000)
    if rate != 16000:
        raise UserError(f"{folder}: its feature extractor takes {rate} Hz; here it is 16000")
    return bool(values.get("do_normalize", True))
