"""The input of a training: features, or the waveform, and the pretrained XLSR."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Options, flag_of, option
from xlsr_transducer.data.features import find_features
from xlsr_transducer.data.tokenizer import (
    LanguageFirst,
    Tokenizer,
    language_first,
)
from xlsr_transducer.model.config import StreamingOptions, check_features
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.normalize import check_mode
from xlsr_transducer.model.xlsr_checkpoint import XlsrCheckpoint, load_xlsr
from xlsr_transducer.model.xlsr_config import XlsrConfig

WAVEFORM = "waveform"


@dataclasses.dataclass(frozen=True)
class InputOptions(Options):
    """Input of the model."""

    features: str | None = option(None, "folder in DATA/features (default: the only one)")
    cut: str | None = option(None, "cut of the features; 'waveform' trains from audio")
    xlsr: str | None = option(None, "XLSR weights (default: those that made the features)")
    normalize: str | None = option(
        None, "of the waveform, with --cut waveform (default: cumulative)"
    )
    feature_dim: int | None = option(None, "checked against the features", at_least=1)
    lang_dir: Path | None = option(None, "BPE model (default: the only one in DATA)")
    language_token: bool = option(
        False,
        "learn to emit the language's token first (./prepare.sh --language-token 1 makes it)",
    )
    init_from: Path | None = option(
        None,
        "start from the weights of this checkpoint, or of a folder of Hugging Face's "
        "Wav2Vec2ForCTC",
    )
    language: str | None = option(None, "whose adapters and letters to use of an MMS folder")
    use_xlsr_encoder: bool = option(True, "the one encoder there is")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_xlsr_encoder:
            raise UserError("--use-xlsr-encoder 0: this recipe has no other encoder")
        if self.language and self.cut != WAVEFORM:
            raise UserError(
                f"--language {self.language} needs --cut waveform: stored features are those of "
                "the folder's own language"
            )

    @property
    def network(self) -> str | None:
        """The pretrained network: ``xlsr``, or else the folder to start from."""
        is_folder = self.init_from is not None and self.init_from.is_dir()
        return self.xlsr or (str(self.init_from) if is_folder else None)

    def with_languages(self, tokenizer: Tokenizer) -> Tokenizer:
        """Returns the tokens of a training, with the language's first if that is wanted.

        Raises:
          UserError: there are no tokens of languages.
        """
        if not self.language_token:
            return tokenizer
        found = language_first(tokenizer)
        if not isinstance(found, LanguageFirst):
            raise UserError(
                "--language-token 1: the tokens of --lang-dir have no languages; make them with "
                "stage 2 of ./prepare.sh and --language-token 1"
            )
        return found


@dataclasses.dataclass(frozen=True)
class ModelInput:
    """The input of the model."""

    folder: Path | None  # of the features; None: the waveform
    features: FeatureInfo
    xlsr: XlsrConfig


def read_input(
    options: InputOptions, data_dir: Path, streaming: StreamingOptions
) -> tuple[ModelInput, XlsrCheckpoint]:
    """Finds the features and reads their XLSR.

    Raises:
      UserError: something is missing, or an option contradicts the features.
    """
    if options.cut == WAVEFORM:
        name = options.network
        if not name:
            raise UserError("--cut waveform needs --xlsr, the pretrained network")
        network, path = load_xlsr(name, options.language), Path(name)
        normalize = check_mode(options.normalize or "cumulative")
        source = str(path.resolve()) if path.exists() else name
        features = FeatureInfo(source, network.sha256, WAVEFORM, normalize, feature_dim=1)
        folder = None
    else:
        folder = find_features(data_dir, options.features)
        features = FeatureInfo.load(folder)
        network = load_xlsr(options.xlsr or features.xlsr)
    for name in ("cut", "normalize", "feature_dim"):
        given, actual = getattr(options, name), getattr(features, name)
        if given not in (None, actual):
            raise UserError(
                f"{flag_of(name)} {given} contradicts the features in {folder}: {actual}"
            )
    if network.sha256 != features.sha256:
        raise UserError(
            f"--xlsr {network.source} is not the network that made the features in {folder}"
        )
    check_features(features, streaming)
    return ModelInput(folder, features, network.config), network
