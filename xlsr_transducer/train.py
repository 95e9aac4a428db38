"""Trains a transducer on an XLSR encoder: ``python -m xlsr_transducer.train --help``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from xlsr_transducer.core.compat import repeatable
from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.logs import save_settings, set_up_logging
from xlsr_transducer.core.options import Number, Parser, add_options, flag_of, from_args, str2bool
from xlsr_transducer.core.presets import parse_with_preset
from xlsr_transducer.data.augment import AugmentOptions
from xlsr_transducer.data.datamodule import DataModule, DataOptions
from xlsr_transducer.data.features import find_features
from xlsr_transducer.data.sources import require_current
from xlsr_transducer.data.splits import load_splits
from xlsr_transducer.data.tokenizer import Tokenizer, find_lang_dir
from xlsr_transducer.model.checkpoint import save_below_cut
from xlsr_transducer.model.config import ModelConfig, StreamingOptions, build_model, check_features
from xlsr_transducer.model.encoder import EncoderOptions
from xlsr_transducer.model.feature_info import FeatureInfo
from xlsr_transducer.model.normalize import check_mode
from xlsr_transducer.model.transducer import LossOptions, Transducer, TransducerOptions
from xlsr_transducer.model.xlsr_checkpoint import XlsrCheckpoint, load_xlsr
from xlsr_transducer.training.distributed import Process, joined
from xlsr_transducer.training.failed_batch import FailureOptions
from xlsr_transducer.training.init_from import take_weights
from xlsr_transducer.training.launch import launch
from xlsr_transducer.training.loop import LoopOptions, Trainer
from xlsr_transducer.training.memory import MemoryOptions
from xlsr_transducer.training.optim import OptimOptions, prepare_lora
from xlsr_transducer.training.resume import require_unused, resume_command, sole_training

OPTION_GROUPS = (
    DataOptions,
    AugmentOptions,
    LoopOptions,
    OptimOptions,
    LossOptions,
    EncoderOptions,
    TransducerOptions,
    StreamingOptions,
    FailureOptions,
    MemoryOptions,
)


def get_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--conf", type=Path, help="options from a YAML file, such as conf/*.yaml")
    group = parser.add_argument_group("Input of the model")
    group.add_argument("--features", help="folder in DATA/features (default: the only one)")
    group.add_argument("--cut", help="cut of the features; 'waveform' trains from audio")
    group.add_argument("--xlsr", help="XLSR weights (default: those that made the features)")
    group.add_argument(
        "--normalize", help="of the waveform, with --cut waveform (default: cumulative)"
    )
    group.add_argument(
        "--feature-dim", type=Number(int, at_least=1), help="checked against the features"
    )
    group.add_argument("--lang-dir", type=Path, help="BPE model (default: the only one in DATA)")
    group.add_argument("--init-from", type=Path, help="start from this checkpoint's weights")
    group.add_argument(
        "--world-size",
        type=Number(int, at_least=1, at_most=1024),
        default=1,
        help="processes to start on this machine, one per GPU; torchrun starts its own",
    )
    group.add_argument(
        "--use-xlsr-encoder", type=str2bool, default=True, help="the one encoder there is"
    )
    for cls in OPTION_GROUPS:
        add_options(parser, cls)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_with_preset(get_parser(), argv)
    if not args.use_xlsr_encoder:
        raise UserError("--use-xlsr-encoder 0: this recipe has no other encoder")
    options = [from_args(cls, args) for cls in OPTION_GROUPS]
    if args.world_size > 1 and "WORLD_SIZE" not in os.environ:
        return launch("xlsr_transducer.train", argv, args.world_size)
    with joined() as process:
        # The other processes wait for the main one before they change anything.
        alone = sole_training(args.exp_dir) if process.is_main else contextlib.nullcontext()
        with alone:
            status = _train(args, options, process)
        if status:
            logging.info("to resume: " + resume_command(argv))
    return status


def _train(args: argparse.Namespace, options: list, process: Process) -> int:
    """The exit status: 0 if the training came to its end, or that of the signal that ended it."""
    data_options, augment, loop, optim, loss, encoder, transducer, streaming, *rest = options
    failure, memory = rest
    if not loop.resume and loop.start_epoch <= 1 and loop.start_batch <= 0:
        require_unused(loop.exp_dir)
    set_up_logging(loop.exp_dir, "train", process.rank)
    torch.manual_seed(loop.seed)
    folder, features, xlsr = _model_input(args, streaming)
    lang_dir = args.lang_dir or find_lang_dir(data_options.data_dir)
    tokenizer = Tokenizer.load(lang_dir)
    config = ModelConfig(
        features=features,
        xlsr=xlsr.config,
        encoder=encoder,
        transducer=transducer,
        streaming=streaming,
        vocab_size=tokenizer.vocab_size,
        has_ctc=loss.ctc_loss_scale > 0,
    )
    model = _initial_model(config, xlsr, args.init_from, tokenizer.tokens)
    prepare_lora(model, optim)
    require_current(data_options.data_dir, folder, lang_dir)
    data = DataModule(
        data_options, folder, tokenizer, augment, config.has_ctc, loop.exp_dir / "plan"
    )
    splits = load_splits(data_options.data_dir)
    logging.info(f"{process.describe()}, {_count(model)}")
    trainer = Trainer(model, config, data, splits, loop, optim, loss, process, failure, memory)
    trainer.resume()
    if process.is_main:  # only now: options that contradict the checkpoint leave nothing behind
        groups = (data_options, augment, loop, optim, loss, failure, memory)
        _keep_settings(loop.exp_dir, args, config, *groups)
        save_below_cut(xlsr, config, loop.exp_dir)
    with repeatable():
        return trainer.run()


def _model_input(
    args: argparse.Namespace, streaming: StreamingOptions
) -> tuple[Path | None, FeatureInfo, XlsrCheckpoint]:
    """The feature folder (None from the waveform), what enters the model, and its XLSR."""
    if args.cut == "waveform":
        if not args.xlsr:
            raise UserError("--cut waveform needs --xlsr, the pretrained network")
        xlsr = load_xlsr(args.xlsr)
        normalize = check_mode(args.normalize or "cumulative")
        source = str(Path(args.xlsr).resolve()) if Path(args.xlsr).exists() else args.xlsr
        features = FeatureInfo(source, xlsr.sha256, "waveform", normalize, feature_dim=1)
        folder = None
    else:
        folder = find_features(args.data_dir, args.features)
        features = FeatureInfo.load(folder)
        xlsr = load_xlsr(args.xlsr or features.xlsr)
    for name, given in (
        ("cut", args.cut),
        ("normalize", args.normalize),
        ("feature_dim", args.feature_dim),
    ):
        actual = getattr(features, name)
        if given is not None and given != actual:
            raise UserError(
                f"{flag_of(name)} {given} contradicts the features in {folder}: {actual}"
            )
    if xlsr.sha256 != features.sha256:
        raise UserError(
            f"--xlsr {xlsr.source} is not the network that made the features in {folder}"
        )
    check_features(features, streaming)
    return folder, features, xlsr


def _initial_model(
    config: ModelConfig, xlsr: XlsrCheckpoint, init_from: Path | None, tokens: list[str]
) -> Transducer:
    """Pretrained XLSR, new heads; or what ``init_from`` has of both."""
    model = build_model(config)
    part = model.encoder.xlsr.state_dict()
    model.encoder.xlsr.load_state_dict({name: xlsr.weights[name] for name in part})
    if init_from is not None:
        take_weights(model, config, xlsr, init_from, tokens)
    return model


def _keep_settings(
    exp_dir: Path, args: argparse.Namespace, config: ModelConfig, *options: object
) -> None:
    """Writes every setting beside the checkpoints, as JSON."""
    names = ("conf", "features", "xlsr", "lang_dir", "init_from")
    settings = {"input": {name: getattr(args, name) for name in names}, "model": config.to_dict()}
    for group in options:
        settings[type(group).__name__] = dataclasses.asdict(group)  # type: ignore[call-overload]
    save_settings(exp_dir, settings)


def _count(model: Transducer) -> str:
    total = sum(p.numel() for p in model.parameters())
    of_xlsr = sum(p.numel() for p in model.encoder.xlsr.parameters())
    return f"{total / 1e6:.2f} M parameters, of which XLSR {of_xlsr / 1e6:.2f} M"


if __name__ == "__main__":
    run_command(main)
