"""The start of a training: features, pretrained XLSR, another training's weights."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import torch

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Options, flag_of, option
from xlsr_transducer.data.features import find_features
from xlsr_transducer.data.tokenizer import (
    BLANK,
    SOS_EOS,
    UNK,
    WORD_START,
    LanguageFirst,
    Tokenizer,
    language_first,
)
from xlsr_transducer.model.averaging import Weights
from xlsr_transducer.model.checkpoint import read_model
from xlsr_transducer.model.config import ModelConfig, StreamingOptions, check_features
from xlsr_transducer.model.encoder import NoAdapter
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.foreign import CTC_OUTPUT, NEVER
from xlsr_transducer.model.normalize import check_mode
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.model.wav2vec2 import Wav2Vec2
from xlsr_transducer.model.xlsr_checkpoint import XlsrCheckpoint, load_xlsr
from xlsr_transducer.model.xlsr_config import XlsrConfig

XLSR = "encoder.xlsr."
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


def load_weights(
    model: SpeechModel,
    config: ModelConfig,
    network: XlsrCheckpoint,
    options: InputOptions,
    tokens: list[str],
) -> None:
    """Gives the model's part of XLSR the pretrained weights, and the model what ``--init-from``
    has.

    Raises:
      UserError: what it names is damaged, or does not fit the model; names the file and why.
    """
    part = model.encoder.xlsr
    part.load_state_dict({name: network.weights[name] for name in part.state_dict()})
    if options.init_from:
        _take_weights(model, config, network, options, tokens)


def size_of(model: SpeechModel) -> str:
    """Returns how many parameters the model has, for the log."""
    total = sum(p.numel() for p in model.parameters())
    of_xlsr = sum(p.numel() for p in model.encoder.xlsr.parameters())
    return f"{total / 1e6:.2f} M parameters, of which XLSR {of_xlsr / 1e6:.2f} M"


def _take_weights(
    model: SpeechModel,
    config: ModelConfig,
    xlsr: XlsrCheckpoint,
    options: InputOptions,
    tokens: list[str],
) -> None:
    """Loads what ``--init-from`` has of ``model``; the rest keeps its values.

    An exported ``pretrained.pt`` holds the whole of XLSR, as a folder of Hugging Face does: the
    part above the cut is taken. The part below must be the one that made the features.

    Raises:
      UserError: the file is damaged, or does not fit the model; names the file and why.
    """
    path = options.init_from
    where = f"--init-from {path}"
    content = read_model(path, options.language)
    given: Weights = content["model"]
    if model.classifier is not None:
        given = _with_labels(where, given, content["tokens"], model, tokens)
    elif path.is_dir() and f"{CTC_OUTPUT}.weight" in given:
        given = _with_fitting_head(where, given, content["tokens"], model, tokens)
    elif content.get("tokens") != tokens:
        raise UserError(f"{where}: was trained with other tokens than --lang-dir has")
    source = ModelConfig.from_dict(content["config"], str(path))
    below = _below_cut(config)
    _require_same_below(where, given, below, source, xlsr)
    own = model.state_dict()
    weights = {name: value for name, value in given.items() if name not in below}
    extra = sorted(weights.keys() - own.keys())
    if extra and ".adapter_layer." in extra[0]:
        raise UserError(f"{where}: has MMS's adapters in its layers: give --xlsr {path} too")
    if extra:
        raise UserError(f"{where}: made with other options: {extra[0]} is new")
    for name, value in weights.items():
        if value.shape != own[name].shape:
            shapes = f"{list(value.shape)} and {list(own[name].shape)}"
            raise UserError(f"{where}: made with other options: {name} has the shapes {shapes}")
    model.load_state_dict({**own, **weights})


def _with_fitting_head(
    where: str, given: Weights, given_tokens: list[str], model: SpeechModel, tokens: list[str]
) -> Weights:
    """Returns a folder's weights with those rows of its CTC head that ``model`` can use.

    The other rows keep their values in ``model``; all of them if it has no CTC head on XLSR's own
    frames, or other units than letters.
    """
    names = [f"{CTC_OUTPUT}.{part}" for part in ("weight", "bias")]
    others = {name: value for name, value in given.items() if name not in names}
    if model.ctc_output is None or not isinstance(model.encoder.adapter, NoAdapter):
        logging.info(f"{where}: gives the encoder; its head does not fit this model's")
        return others
    rows = _shared_rows(given_tokens, given[names[1]].tolist(), tokens)
    if not rows:
        logging.info(f"{where}: gives the encoder; the head is new, as its tokens are others")
        return others
    for name in names:
        others[name] = model.state_dict()[name].clone()
        others[name][list(rows)] = given[name][list(rows.values())]
    new = " ".join(token for i, token in enumerate(tokens) if i not in rows)
    shown = f"; new are {new}" if new else ""
    logging.info(f"{where}: gives the encoder, and the head of {len(rows)} tokens{shown}")
    return others


def _shared_rows(
    given_tokens: list[str], given_biases: list[float], tokens: list[str]
) -> dict[int, int]:
    """Returns the place of each token in a foreign head that has it, maybe in other case; nothing
    if these are no letters, or none is shared."""
    if any(WORD_START in token and token != WORD_START for token in tokens):
        return {}
    present = [i for i, bias in enumerate(given_biases) if bias > NEVER / 2]
    place = {given_tokens[i].lower(): i for i in present}
    place.update({given_tokens[i]: i for i in present})
    rows = {i: place.get(token, place.get(token.lower())) for i, token in enumerate(tokens)}
    rows = {i: row for i, row in rows.items() if row is not None}
    marks = (BLANK, SOS_EOS, UNK, WORD_START)
    return rows if any(tokens[i] not in marks for i in rows) else {}


def _with_labels(
    where: str, given: Weights, given_labels: list[str], model: SpeechModel, labels: list[str]
) -> Weights:
    """Returns a file's encoder for a classifier of other labels, and what it has of its head.

    That is all but the rows of labels that the file lacks; nothing if it is no classifier of the
    same widths.
    """
    own, head = model.state_dict(), "heads.classifier."
    kept = {name: value for name, value in given.items() if name.startswith("encoder.")}
    of_head = {name: own[name].clone() for name in own if name.startswith(head)}
    place = {label: i for i, label in enumerate(given_labels)}
    rows = [i for i, label in enumerate(labels) if label in place]
    same = of_head.keys() == {name for name in given if name.startswith("heads.")}
    if not same or any(given[n].shape[1:] != w.shape[1:] for n, w in of_head.items()):
        logging.info(f"{where}: gives the encoder; the head is new")
        return kept
    for name, value in of_head.items():
        if name.startswith(head + "output."):
            value[rows] = given[name][[place[labels[i]] for i in rows]]
        elif value.shape == given[name].shape:
            value.copy_(given[name])
    logging.info(
        f"{where}: gives the encoder, and the head of {len(rows)} of {len(labels)} labels"
    )
    return {**kept, **of_head}


def _below_cut(config: ModelConfig) -> set[str]:
    """The names of XLSR's weights below the cut, which the model in training does not have."""
    if config.features.cut == "waveform":
        return set()
    return {XLSR + name for name in Wav2Vec2(config.xlsr, end=config.features.cut).state_dict()}


def _require_same_below(
    where: str, given: Weights, below: set[str], source: ModelConfig, xlsr: XlsrCheckpoint
) -> None:
    """Checks that the part of XLSR that computes the input is the one of the file's training."""
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
