"""Checkpoints: what they hold, and the model that a command gets out of them or of a folder.

A checkpoint holds the model's configuration and tokens beside its weights, so that no
command needs model flags. The frozen part of XLSR below the cut, the same in all of them,
lies once beside them in ``xlsr_below_cut.pt``.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Options, option
from xlsr_transducer.core.tensor_files import load_verified, save_atomically
from xlsr_transducer.data.labels import Units, units_from_bytes
from xlsr_transducer.data.tokenizer import LanguageFirst
from xlsr_transducer.model.averaging import Weights, covered_steps, mean_between, mean_of
from xlsr_transducer.model.config import ModelConfig, build_model
from xlsr_transducer.model.foreign import read_foreign
from xlsr_transducer.model.foreign_classifier import (
    is_fairseq_classifier,
    is_folder_of_classifier,
    read_fairseq,
    read_folder,
)
from xlsr_transducer.model.speech_model import SpeechModel
from xlsr_transducer.model.wav2vec2 import Wav2Vec2
from xlsr_transducer.model.xlsr_checkpoint import XlsrCheckpoint

FORMAT = 3  # 2 had other names for weights; 1 had no checksum, and cannot be resumed from
OF_TRANSDUCER = ("decoder.", "joiner.", "simple_am_proj.", "simple_lm_proj.")
BELOW_CUT = "xlsr_below_cut.pt"
BEST = "best-valid-wer.pt"


@dataclasses.dataclass(frozen=True)
class CheckpointOptions(Options):
    """Which weights."""

    exp_dir: Path = option(Path("exp"), "folder of the training run")
    epoch: int = option(
        0, "use epoch-N.pt; 0: best-valid-wer.pt, unless --iter is given", at_least=0
    )
    iter: int = option(0, "use checkpoint-N.pt (N: steps)", at_least=0)
    avg: int | None = option(
        None,
        "average over so many epochs, or checkpoints with --iter, up to it (default: 1, or the "
        "weights as they are where that needs a file that is not there)",
        at_least=1,
    )
    use_averaged_model: bool = option(
        True, "average by the running mean kept in training, over every step of the range"
    )
    checkpoint: Path | None = option(
        None,
        "use this file, such as a pretrained.pt, or folder of Hugging Face's Wav2Vec2ForCTC",
    )
    language: str | None = option(None, "whose adapters and letters to use of an MMS folder")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epoch and self.iter:
            raise UserError(f"--epoch {self.epoch} contradicts --iter {self.iter}: give one")
        if self.avg not in (None, 1) and not (self.epoch or self.iter):
            raise UserError(f"--avg {self.avg} needs --epoch or --iter, to know where it ends")

    @property
    def source(self) -> str:
        """The file or folder, for messages."""
        return str(self.checkpoint or self.exp_dir)

    def resolved(self) -> CheckpointOptions:
        """The same with --avg filled in, which depends on the files that are there."""
        if self.avg is not None:
            return self
        averages = self.use_averaged_model and self._has_one_before()
        return dataclasses.replace(self, avg=1, use_averaged_model=averages)

    def _has_one_before(self) -> bool:
        """Whether there is the file that the mean over one epoch or checkpoint is taken from."""
        if self.iter:
            return any(n < self.iter for n in numbered_files(self.exp_dir, "checkpoint"))
        return self.epoch < 2 or (self.exp_dir / f"epoch-{self.epoch - 1}.pt").is_file()

    def describe(self) -> str:
        """For file names: ``epoch-30-avg-9``."""
        if self.avg is None:
            return self.resolved().describe()
        if self.checkpoint:
            path = Path(self.checkpoint)
            name = path.resolve().name if path.is_dir() else path.stem
            return f"{name}-{self.language}" if self.language else name
        if not (self.epoch or self.iter):
            return "best"
        name = f"epoch-{self.epoch}" if self.epoch else f"iter-{self.iter}"
        return f"{name}-avg-{self.avg}" + ("-use-averaged-model" * self.use_averaged_model)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to use, from the waveform to logits, with all that belongs to it."""

    model: SpeechModel
    config: ModelConfig
    tokenizer: Units


def model_content(config: ModelConfig, tokenizer: Units, weights: Weights) -> dict[str, Any]:
    """Returns what every checkpoint holds."""
    bpe = torch.frombuffer(bytearray(tokenizer.to_bytes()), dtype=torch.uint8)
    return {
        "format": FORMAT,
        "config": config.to_dict(),
        "tokens": tokenizer.tokens,
        "language_token": isinstance(tokenizer, LanguageFirst),
        "bpe_model": bpe,
        "model": weights,
    }


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads and checks a checkpoint of this project.

    Raises:
      UserError: it is missing, damaged, unsafe, or of another kind.
    """
    return _checked(path, load_verified(path))


def _checked(path: Path, content: Any) -> dict[str, Any]:
    """Returns what a checkpoint holds, with today's names; see ``read_checkpoint``."""
    if not isinstance(content, dict) or not {"format", "config", "model"} <= content.keys():
        raise UserError(f"{path}: not a checkpoint of this project")
    if content["format"] not in (1, 2, FORMAT):
        raise UserError(f"{path}: format {content['format']}, but this version reads {FORMAT}")
    weights = content["model"]
    if not (isinstance(weights, dict) and all(isinstance(w, Tensor) for w in weights.values())):
        raise UserError(f"{path}: damaged, as its weights are no tensors; use another one")
    if content["format"] < 3:
        for name in ("model", "model_avg"):
            if name in content:
                content[name] = {_new_name(key): value for key, value in content[name].items()}
    return content


def read_model(path: Path, language: str | None = None) -> dict[str, Any]:
    """Reads a checkpoint of this project, or a recogniser or classifier from elsewhere like one:
    a folder in Hugging Face's format, or fairseq's file of a classifier.

    Args:
      language: of a folder that has several, as MMS is.

    Raises:
      UserError: it is missing, damaged, unsafe, or of another kind.
    """
    if path.is_dir() and not is_folder_of_classifier(path):
        found = read_foreign(path, language)
        return model_content(found.config, found.tokenizer, found.weights)
    if language:
        raise UserError(f"--language {language}: {path} is no folder with adapters, as MMS is")
    if path.is_dir():
        classifier = read_folder(path)
        return model_content(classifier.config, classifier.labels, classifier.weights)
    content = load_verified(path)
    if is_fairseq_classifier(content):
        classifier = read_fairseq(path, content)
        return model_content(classifier.config, classifier.labels, classifier.weights)
    return _checked(path, content)


def _new_name(name: str) -> str:
    """Returns the name of a weight of a format before 3, in which the heads had no folder."""
    if name.startswith(OF_TRANSDUCER):
        return f"heads.transducer.{name}"
    return name.replace("ctc_output.", "heads.ctc.output.", 1)


def save_below_cut(checkpoint: XlsrCheckpoint, config: ModelConfig, exp_dir: Path) -> None:
    """Keeps the frozen part of XLSR beside the checkpoints, once.

    A file that is damaged, or that an aborted training with another XLSR or cut left, is replaced:
    the checkpoints of this training need theirs.
    """
    if config.features.cut == "waveform":
        return
    path = exp_dir / BELOW_CUT
    part = Wav2Vec2(config.xlsr, end=config.features.cut)
    weights = {name: checkpoint.weights[name] for name in part.state_dict()}
    if path.is_file():
        try:
            kept = load_verified(path)
            if kept["sha256"] == config.features.sha256 and kept["model"].keys() == weights.keys():
                return
            reason = "it is of another XLSR or cut"
        except (UserError, KeyError, TypeError, AttributeError):
            reason = "it is damaged"
        logging.warning(f"{path} is replaced: {reason}")
    save_atomically({"sha256": config.features.sha256, "model": weights}, path)


def load_model(options: CheckpointOptions, streaming: bool | None = None) -> LoadedModel:
    """The model that a command works with; every command calls this.

    Args:
      streaming: with a ``StreamingXLSREncoder``; None: if it was trained so.

    Raises:
      UserError: a file is missing or does not fit; the message names it.
    """
    path, given, options = _chosen_file(options), options, options.resolved()
    content = read_model(path, options.language)
    config = ModelConfig.from_dict(content["config"], str(path))
    weights = _average(options, path, content)
    if options.epoch or options.iter:
        logging.info(f"weights: {_origin(given, options)}")
    if not any(name.startswith("encoder.xlsr.feature_extractor.") for name in weights):
        weights.update(_below_cut(path, config))
    model = build_model(config, whole=True, streaming=streaming)
    try:
        model.load_state_dict(weights)
    except RuntimeError as e:
        raise UserError(f"{path}: the weights do not fit the configuration ({e})") from e
    try:
        tokenizer = units_from_bytes(bytes(content["bpe_model"].tolist()))
    except UserError as e:
        raise UserError(f"{path}: its BPE model is damaged ({e}); use another checkpoint") from e
    if content.get("language_token"):
        tokenizer = LanguageFirst(tokenizer.to_bytes())
    return LoadedModel(model.eval(), config, tokenizer)


def _chosen_file(options: CheckpointOptions) -> Path:
    if options.checkpoint:
        return Path(options.checkpoint)
    if options.epoch or options.iter:
        return _numbered(options, options.epoch or options.iter)
    if (options.exp_dir / BEST).is_file():
        return options.exp_dir / BEST
    found = sorted(numbered_files(options.exp_dir, "epoch").values())
    if not found:
        raise UserError(f"{options.exp_dir}: no checkpoint here; train first, or give --exp-dir")
    return options.exp_dir / f"epoch-{max(numbered_files(options.exp_dir, 'epoch'))}.pt"


def _numbered(options: CheckpointOptions, number: int) -> Path:
    stem = "epoch" if options.epoch else "checkpoint"
    return options.exp_dir / f"{stem}-{number}.pt"


def numbered_files(exp_dir: Path, stem: str) -> dict[int, Path]:
    """``epoch-N.pt`` or ``checkpoint-N.pt`` by N."""
    pattern = re.compile(rf"{stem}-(\d+)\.pt")
    found = ((pattern.fullmatch(p.name), p) for p in exp_dir.glob(f"{stem}-*.pt"))
    return {int(match.group(1)): path for match, path in found if match}


def _below_cut(checkpoint: Path, config: ModelConfig) -> Weights:
    """The part of XLSR that lies beside a checkpoint."""
    path = checkpoint.parent / BELOW_CUT
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; {checkpoint} needs it beside it, for the part of XLSR that "
            f"was not trained: copy {BELOW_CUT} from the folder of the training too, or move the "
            "pretrained.pt that export writes, which holds everything"
        )
    content = load_verified(path)
    if content.get("sha256") != config.features.sha256:
        raise UserError(f"{path}: belongs to another XLSR checkpoint than the model")
    return {f"encoder.xlsr.{name}": value for name, value in content["model"].items()}


def _average(options: CheckpointOptions, path: Path, content: dict[str, Any]) -> Weights:
    """The weights that ``--avg`` asks for, as float32."""
    if not (options.epoch or options.iter) or (
        options.avg == 1 and not options.use_averaged_model
    ):
        return content["model"]
    if not options.use_averaged_model:
        files = _last_files(options, options.avg)
        return mean_of(read_checkpoint(file)["model"] for file in files)
    averaged = _running_mean(path, content)
    if options.avg != options.epoch:  # otherwise from the very start
        before = _last_files(options, options.avg + 1)[0]
        first = read_checkpoint(before)
        averaged = mean_between(
            _running_mean(before, first), covered_steps(first), averaged, covered_steps(content)
        )
    return {**content["model"], **{name: value.float() for name, value in averaged.items()}}


def _origin(given: CheckpointOptions, used: CheckpointOptions) -> str:
    """Describes the weights, for the log."""
    file = _chosen_file(used)
    unit = "epochs" if used.epoch else "checkpoints"
    if used.avg != 1:
        return f"the mean over {used.avg} {unit} up to {file}"
    if used.use_averaged_model:
        return f"the mean over all steps of the last of the {unit} up to {file}"
    missing = ", as there is none before to average from" * given.use_averaged_model
    return f"those of {file} as they are{missing}"


def _running_mean(path: Path, content: dict[str, Any]) -> Weights:
    if "model_avg" not in content:
        raise UserError(
            f"{path}: holds no running mean of the weights (its training had --average-period 0, "
            "or it was exported); use --use-averaged-model 0"
        )
    return content["model_avg"]


def _last_files(options: CheckpointOptions, count: int) -> list[Path]:
    """The last ``count`` files up to the chosen one, in order."""
    stem, last = ("epoch", options.epoch) if options.epoch else ("checkpoint", options.iter)
    found = numbered_files(options.exp_dir, stem)
    numbers = sorted(n for n in found if n <= last)
    if options.epoch:  # a missing one would be an average over other epochs than meant
        numbers = [n for n in range(last - count + 1, last + 1) if n > 0]
    if len(numbers) < count:
        hint = "; --use-averaged-model 0 needs one less" if count > options.avg else ""
        raise UserError(
            f"--avg {options.avg}: needs {count} files {stem}-*.pt up to {last} in "
            f"{options.exp_dir}, and there are {len(numbers)}{hint}"
        )
    return [options.exp_dir / f"{stem}-{n}.pt" for n in numbers[-count:]]
