"""Checkpoints: written whole or not at all, read as tensors and plain values, averaged.

A checkpoint holds the model's configuration and tokens beside its weights, so that no
command needs model flags. The frozen part of XLSR below the cut, the same in all of them,
lies once beside them in ``xlsr_below_cut.pt``.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xlsr_transducer.compat import load_tensors
from xlsr_transducer.config import ModelConfig, build_model
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.errors import UserError
from xlsr_transducer.model.transducer import Transducer
from xlsr_transducer.model.wav2vec2 import Wav2Vec2
from xlsr_transducer.model.xlsr_checkpoint import XlsrCheckpoint
from xlsr_transducer.options import option

FORMAT = 1
BELOW_CUT = "xlsr_below_cut.pt"
BEST = "best-valid-wer.pt"
Weights = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class CheckpointOptions:
    """Which weights."""

    exp_dir: Path = option(Path("exp"), "folder of the training run")
    epoch: int = option(0, "use epoch-N.pt; 0: best-valid-wer.pt, unless --iter is given")
    iter: int = option(0, "use checkpoint-N.pt (N: steps)")
    avg: int = option(1, "average over so many epochs, or checkpoints with --iter, up to it")
    use_averaged_model: bool = option(
        True, "average by the running mean kept in training, over every step of the range"
    )
    checkpoint: Path | None = option(None, "use this file, such as a pretrained.pt")

    def __post_init__(self) -> None:
        if self.epoch and self.iter:
            raise UserError(f"--epoch {self.epoch} contradicts --iter {self.iter}: give one")
        if self.avg < 1:
            raise UserError(f"--avg {self.avg}: must be at least 1")
        if self.avg > 1 and not (self.epoch or self.iter):
            raise UserError(f"--avg {self.avg} needs --epoch or --iter, to know where it ends")

    @property
    def source(self) -> str:
        """The file or folder, for messages."""
        return str(self.checkpoint or self.exp_dir)

    def describe(self) -> str:
        """For file names: ``epoch-30-avg-9``."""
        if self.checkpoint:
            return Path(self.checkpoint).stem
        if not (self.epoch or self.iter):
            return "best"
        name = f"epoch-{self.epoch}" if self.epoch else f"iter-{self.iter}"
        return f"{name}-avg-{self.avg}" + ("-use-averaged-model" * self.use_averaged_model)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model ready to use, from the waveform to logits, with all that belongs to it."""

    model: Transducer
    config: ModelConfig
    tokenizer: Tokenizer


def save_atomically(content: dict[str, Any], path: Path) -> None:
    """``torch.save`` to a temporary name on the same disk, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            torch.save(content, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def model_content(config: ModelConfig, tokenizer: Tokenizer, weights: Weights) -> dict[str, Any]:
    """What every checkpoint holds."""
    bpe = torch.frombuffer(bytearray(tokenizer.to_bytes()), dtype=torch.uint8)
    return {
        "format": FORMAT,
        "config": config.to_dict(),
        "tokens": tokenizer.tokens,
        "bpe_model": bpe,
        "model": weights,
    }


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads and checks a checkpoint of this project.

    Raises:
      UserError: it is missing, damaged, unsafe, or of another kind.
    """
    content = load_tensors(path)
    if not isinstance(content, dict) or not {"format", "config", "model"} <= content.keys():
        raise UserError(f"{path}: not a checkpoint of this project")
    if content["format"] != FORMAT:
        raise UserError(f"{path}: format {content['format']}, but this version reads {FORMAT}")
    return content


def save_below_cut(checkpoint: XlsrCheckpoint, config: ModelConfig, exp_dir: Path) -> None:
    """Keeps the frozen part of XLSR beside the checkpoints, once."""
    path = exp_dir / BELOW_CUT
    if config.features.cut == "waveform" or path.is_file():
        return
    part = Wav2Vec2(config.xlsr, end=config.features.cut)
    weights = {name: checkpoint.weights[name] for name in part.state_dict()}
    save_atomically({"sha256": config.features.sha256, "model": weights}, path)


def load_model(options: CheckpointOptions, streaming: bool | None = None) -> LoadedModel:
    """The model that a command works with; every command calls this.

    Args:
      streaming: with a ``StreamingXLSREncoder``; None: if it was trained so.

    Raises:
      UserError: a file is missing or does not fit; the message names it.
    """
    path = _chosen_file(options)
    content = read_checkpoint(path)
    config = ModelConfig.from_dict(content["config"], str(path))
    weights = _average(options, path, content)
    if not any(name.startswith("encoder.xlsr.feature_extractor.") for name in weights):
        weights.update(_below_cut(path.parent, config))
    model = build_model(config, whole=True, streaming=streaming)
    try:
        model.load_state_dict(weights)
    except RuntimeError as e:
        raise UserError(f"{path}: the weights do not fit the configuration ({e})") from e
    tokenizer = Tokenizer.from_bytes(bytes(content["bpe_model"].tolist()))
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


def _below_cut(folder: Path, config: ModelConfig) -> Weights:
    path = folder / BELOW_CUT
    content = load_tensors(path)
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
        return mean_of(_last_files(options))
    if "model_avg" not in content:
        raise UserError(f"{path}: holds no running average; use --use-averaged-model 0")
    start = _range_start(options)
    if start is None:
        averaged = content["model_avg"]
    else:
        first = read_checkpoint(start)
        averaged = mean_between(
            first["model_avg"], first["step"], content["model_avg"], content["step"]
        )
    return {**content["model"], **{name: value.float() for name, value in averaged.items()}}


def _last_files(options: CheckpointOptions) -> list[Path]:
    if options.epoch:
        return [
            _numbered(options, n)
            for n in range(options.epoch - options.avg + 1, options.epoch + 1)
            if n > 0
        ]
    numbers = sorted(n for n in numbered_files(options.exp_dir, "checkpoint") if n <= options.iter)
    if len(numbers) < options.avg:
        raise UserError(f"--avg {options.avg}: only {len(numbers)} checkpoints up to that one")
    return [_numbered(options, n) for n in numbers[-options.avg :]]


def _range_start(options: CheckpointOptions) -> Path | None:
    """The checkpoint before the first averaged one; None: average from the very start."""
    if options.epoch:
        start = options.epoch - options.avg
        return _numbered(options, start) if start > 0 else None
    numbers = sorted(n for n in numbered_files(options.exp_dir, "checkpoint") if n <= options.iter)
    if len(numbers) <= options.avg:
        return None
    return _numbered(options, numbers[-options.avg - 1])


def mean_of(paths: Iterable[Path]) -> Weights:
    """The mean of the weights in several files, one file in memory at a time, in float64."""
    total: Weights = {}
    count = 0
    for path in paths:
        weights = read_checkpoint(path)["model"]
        count += 1
        for name, value in weights.items():
            wide = value.double()
            total[name] = total[name].add_(wide) if name in total else wide
    return {name: (value / count).float() for name, value in total.items()}


def mean_between(first: Weights, first_step: int, last: Weights, last_step: int) -> Weights:
    """The mean over steps first_step + 1 .. last_step, from the means over 1 .. each.

    With m_k the mean over k steps: (last_step m_last - first_step m_first) / their difference.
    """
    if not 0 <= first_step < last_step:
        raise UserError(f"cannot average from step {first_step} to step {last_step}")
    whole, part = last_step / (last_step - first_step), first_step / (last_step - first_step)
    return {k: last[k].double() * whole - first[k].double() * part for k in last}


def update_running_mean(mean: Weights, model: Transducer, taken: int, period: int) -> None:
    """Takes the current weights, which stand for ``period`` steps, into the mean, in place.

    Args:
      mean: float64, the mean over the steps before.
      taken: steps that the mean covers afterwards.
    """
    weight = period / taken
    current = model.state_dict()
    for name, value in mean.items():
        value.mul_(1.0 - weight).add_(current[name].double(), alpha=weight)
