"""Trains a transducer, CTC or a classifier on XLSR: ``python -m xlsr_transducer.train --help``."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from xlsr_transducer.core.compat import repeatable
from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.logs import save_settings, set_up_logging
from xlsr_transducer.core.options import Parser, add_options, from_args
from xlsr_transducer.core.presets import parse_with_preset
from xlsr_transducer.data.augment import AugmentOptions
from xlsr_transducer.data.datamodule import DataModule, DataOptions
from xlsr_transducer.data.labels import units_for
from xlsr_transducer.data.sources import require_current
from xlsr_transducer.data.splits import load_splits
from xlsr_transducer.model.checkpoint import save_below_cut
from xlsr_transducer.model.config import ModelConfig, StreamingOptions, with_layers
from xlsr_transducer.model.encoder_options import EncoderOptions
from xlsr_transducer.model.heads import ClassifierOptions, LossOptions, TransducerOptions
from xlsr_transducer.training.distributed import Process, ProcessOptions, joined
from xlsr_transducer.training.failed_batch import FailureOptions
from xlsr_transducer.training.group_weights import GroupWeightOptions
from xlsr_transducer.training.initial_weights import initial_model, size_of
from xlsr_transducer.training.launch import launch
from xlsr_transducer.training.loop import Trainer
from xlsr_transducer.training.memory import MemoryOptions
from xlsr_transducer.training.optim import OptimOptions, prepare_lora
from xlsr_transducer.training.options import LoopOptions, TrainOptions
from xlsr_transducer.training.resume import require_unused, resume_command, sole_training
from xlsr_transducer.training.start import InputOptions, read_input
from xlsr_transducer.training.teacher_options import TeacherOptions

OF_MODEL = (EncoderOptions, TransducerOptions, StreamingOptions, ClassifierOptions)
OF_TRAINER = (LoopOptions, OptimOptions, LossOptions, FailureOptions, MemoryOptions,
              GroupWeightOptions, TeacherOptions)  # fmt: skip
OPTION_GROUPS = (InputOptions, ProcessOptions, DataOptions, AugmentOptions, *OF_TRAINER, *OF_MODEL)


def get_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--conf", type=Path, help="options from a YAML file, such as conf/*.yaml")
    for cls in OPTION_GROUPS:
        add_options(parser, cls)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = parse_with_preset(get_parser(), argv)
    options = {cls: from_args(cls, args) for cls in OPTION_GROUPS}
    if args.world_size > 1 and "WORLD_SIZE" not in os.environ:
        return launch("xlsr_transducer.train", argv, args.world_size)
    with joined(args.process_timeout) as process:
        # The other processes wait for the main one before they change anything.
        alone = sole_training(args.exp_dir) if process.is_main else contextlib.nullcontext()
        with alone:
            status = _train(args, options, process)
        if status:
            logging.info("to resume: " + resume_command(argv))
    return status


def _train(args: argparse.Namespace, options: dict[type, Any], process: Process) -> int:
    """Trains; returns 0, or the exit status of the signal that ended it before."""
    if not args.resume and args.start_epoch <= 1 and args.start_batch <= 0:
        require_unused(args.exp_dir)
    set_up_logging(args.exp_dir, "train", process.rank)
    torch.manual_seed(args.seed)
    source = network = None
    if process.is_main:  # the others get the weights from it
        source, network = read_input(
            options[InputOptions], args.data_dir, options[StreamingOptions]
        )
    source = process.from_main(source)
    heads = options[LossOptions].names
    lang_dir, tokenizer = units_for(heads, args.data_dir, args.lang_dir)
    require_current(args.data_dir, source.folder, lang_dir)
    given = (options[cls] for cls in (EncoderOptions, StreamingOptions))
    *changed, xlsr = with_layers(*given, source.xlsr, source.features.cut)
    options.update((type(o), o) for o in changed)
    tokenizer = options[InputOptions].with_languages(tokenizer)
    *of_model, classifier = (options[cls] for cls in OF_MODEL)
    sizes = (tokenizer.vocab_size, heads, classifier)
    config = ModelConfig(source.features, xlsr, *of_model, *sizes)
    given = (options[InputOptions], tokenizer.tokens, options[TeacherOptions].teacher)
    model = initial_model(config, network, *given)
    prepare_lora(model, options[OptimOptions])
    given = (options[DataOptions], source.folder, tokenizer, options[AugmentOptions])
    work_dir, subsampling = args.exp_dir / "plan", model.encoder.subsampling_factor
    is_weighed = options[GroupWeightOptions].is_on
    data = DataModule(*given, config.has_ctc, work_dir, subsampling, matched=is_weighed)
    logging.info(f"{process.describe()}, {size_of(model)}; {model.describe()}")
    settings = TrainOptions(*(options[cls] for cls in OF_TRAINER))
    trainer = Trainer(model, config, data, load_splits(args.data_dir), settings, process)
    trainer.resume()
    if network:  # only now: options that contradict the checkpoint change no file
        shown = {c.__name__: dataclasses.asdict(options[c]) for c in options if c not in OF_MODEL}
        shown["input"] = {"conf": args.conf, **shown.pop("InputOptions")}
        save_settings(args.exp_dir, {"model": config.to_dict(), **shown})
        save_below_cut(network, config, args.exp_dir)
    with repeatable():
        return trainer.run()


if __name__ == "__main__":
    run_command(main)
