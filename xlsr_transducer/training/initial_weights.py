"""The weights that a training starts from: pretrained XLSR, another training's, its teacher's."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.tokenizer import BLANK, SOS_EOS, UNK, WORD_START
from xlsr_transducer.model.averaging import Weights
from xlsr_transducer.model.checkpoint import read_model
from xlsr_transducer.model.config import ModelConfig, build_model
from xlsr_transducer.model.encoder import NoAdapter
from xlsr_transducer.model.foreign import CTC_OUTPUT, NEVER
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.model.wav2vec2 import Wav2Vec2
from xlsr_transducer.model.xlsr_checkpoint import XlsrCheckpoint, of_layers
from xlsr_transducer.training.start import InputOptions

XLSR = "encoder.xlsr."
MAMBA, ATTENTION = ".mamba.", ".attention."  # in names of weights


@dataclasses.dataclass(frozen=True)
class Start:
    """A file or folder that gives a training its first weights."""

    flag: str  # the option that names it
    path: Path
    is_teacher: bool = False  # whose student may have other heads

    def __str__(self) -> str:
        return f"{self.flag} {self.path}"


def start_of(options: InputOptions, teacher: Path | None) -> Start | None:
    """Returns what a training starts from beside the pretrained XLSR; None: nothing.

    A fixed teacher is where its student starts, if ``--init-from`` names nothing else; a student
    of snapshots takes the way that they took, from the pretrained XLSR.

    Args:
      teacher: of ``--teacher``.
    """
    if options.init_from:
        return Start("--init-from", options.init_from)
    return Start("--teacher", teacher, is_teacher=True) if teacher else None


def initial_model(
    config: ModelConfig,
    network: XlsrCheckpoint | None,
    options: InputOptions,
    tokens: list[str],
    teacher: Path | None = None,
) -> SpeechModel:
    """Builds the model of a training, with what ``load_weights`` gives it where there is a
    ``network``; other processes get their weights from the one that has it."""
    model = build_model(config)
    if network:
        load_weights(model, config, network, options, tokens, teacher)
    return model


def load_weights(
    model: SpeechModel,
    config: ModelConfig,
    network: XlsrCheckpoint,
    options: InputOptions,
    tokens: list[str],
    teacher: Path | None = None,
) -> None:
    """Gives the model's part of XLSR the pretrained weights, and the model those of the file that
    it starts from. Logs where it starts.

    Args:
      network: the pretrained XLSR, with all of its layers. teacher: as ``start_of`` takes it.

    Raises:
      UserError: the file is damaged, or does not fit the model; names the file and why.
    """
    if config.encoder.keep_layers:
        logging.info(
            f"layers {config.encoder.keep_layers} of XLSR's {network.config.num_hidden_layers} "
            "are kept"
        )
        network = network.with_layers(config.kept_layers)
    part = model.encoder.xlsr
    own = part.state_dict()
    new = {name: value for name, value in own.items() if MAMBA in name}
    part.load_state_dict({**{name: network.weights[name] for name in own.keys() - new}, **new})
    if new:
        logging.info(
            f"{config.encoder.mixer} in the place of attention in layers "
            f"{config.encoder.mixer_layers}: {sum(map(Tensor.numel, new.values())) / 1e6:.2f} M "
            "new parameters; all others of XLSR are kept"
        )
    start = start_of(options, teacher)
    if start:
        content = read_model(start.path, options.language)
        source = ModelConfig.from_dict(content["config"], str(start.path))
        if start.is_teacher and source.features.sha256 != network.sha256:
            logging.info(f"{start}: is of another XLSR, so the student does not start from it")
            start = None
    logging.info(f"starts from {start or f'the pretrained XLSR, {network.source}'}")
    if start:
        _take_weights(model, config, network, start, content, source, tokens)


def size_of(model: SpeechModel) -> str:
    """Returns how many parameters the model has, for the log."""
    total = sum(p.numel() for p in model.parameters())
    of_xlsr = sum(p.numel() for p in model.encoder.xlsr.parameters())
    return f"{total / 1e6:.2f} M parameters, of which XLSR {of_xlsr / 1e6:.2f} M"


def _take_weights(
    model: SpeechModel,
    config: ModelConfig,
    xlsr: XlsrCheckpoint,
    start: Start,
    content: dict[str, Any],
    source: ModelConfig,
    tokens: list[str],
) -> None:
    """Loads what the ``content`` of ``start`` has of ``model``; the rest keeps its values.

    An exported ``pretrained.pt`` holds the whole of XLSR, as a folder of Hugging Face does: the
    part above the cut is taken. The part below must be the one that made the features.

    Raises:
      UserError: the file is damaged, or does not fit the model; names the file and why.
    """
    path, where = start.path, str(start)
    given = _kept_of(where, content["model"], source, config)
    if model.classifier is not None:
        given = _with_labels(where, given, content["tokens"], model, tokens)
    elif path.is_dir() and f"{CTC_OUTPUT}.weight" in given:
        given = _with_fitting_head(where, given, content["tokens"], model, tokens)
    elif content.get("tokens") != tokens:
        raise UserError(f"{where}: was trained with other tokens than --lang-dir has")
    below = _below_cut(config)
    _require_same_below(where, given, below, source, xlsr)
    own = model.state_dict()
    converted = {name.partition(MAMBA)[0] for name in own if MAMBA in name}  # layers
    weights = {
        name: value
        for name, value in given.items()
        if name not in below and name.partition(ATTENTION)[0] not in converted
    }
    if start.is_teacher:
        weights = _fitting(where, weights, own)
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


def _fitting(where: str, given: Weights, own: Weights) -> Weights:
    """Returns the weights of those parts (XLSR, adapter, each head) that have a model's shapes.
    Logs which have not."""

    def part(name: str) -> str:
        return ".".join(name.split(".")[:2])

    others = {part(n) for n, value in own.items() if n in given and given[n].shape != value.shape}
    fitting = {n: value for n, value in given.items() if n in own and part(n) not in others}
    new = sorted({part(n) for n in own} - {part(n) for n in fitting})
    if new:
        logging.info(f"{where}: does not give {', '.join(new)}, which begin at random")
    return fitting


def _kept_of(where: str, given: Weights, source: ModelConfig, config: ModelConfig) -> Weights:
    """Returns a file's weights with the layers that ``config`` keeps alone, numbered as there.

    Raises:
      UserError: the file lacks one of them.
    """
    wanted, present = config.kept_layers, source.kept_layers
    if wanted == present or not (source.encoder.keep_layers or config.encoder.keep_layers):
        return given
    missing = sorted(set(wanted) - set(present))
    if missing:
        raise UserError(
            f"{where}: has layers {_joined(present)} of XLSR, but not {_joined(missing)}: choose "
            "--keep-layers among those, or another file"
        )
    return of_layers(given, [present.index(layer) for layer in wanted])


def _joined(layers: list[int]) -> str:
    return ",".join(map(str, layers))


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
