"""Trains a neural language model of the BPE tokens: ``python -m xlsr_transducer.train_lm``.

It learns the training text, or that of ``--lm-text``, and is validated on the text of ``val``.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from xlsr_transducer.core.compat import repeatable
from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.logs import save_settings, set_up_logging
from xlsr_transducer.core.options import Parser, add_options, from_args, word
from xlsr_transducer.data.lm_text import Sentences, read_texts, texts_of
from xlsr_transducer.data.sources import note_source, text_digest
from xlsr_transducer.data.text import TextNormalizer
from xlsr_transducer.data.text_options import add_text_options, read_record, text_options
from xlsr_transducer.data.tokenizer import Tokenizer, find_lang_dir
from xlsr_transducer.search.lm.model import LanguageModel, LmOptions
from xlsr_transducer.training.lm import LmTrainer, LmTrainOptions
from xlsr_transducer.training.resume import sole_training


def get_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--lang-dir", type=Path, help="BPE model (default: the only one in DATA)")
    parser.add_argument("--lm-text", type=Path, help="a sentence a line (default: training text)")
    parser.add_argument(
        "--lang", type=word, default="et", help="language of the text (default: et)"
    )
    for cls in (LmTrainOptions, LmOptions):
        add_options(parser, cls)
    add_text_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    options, lm_options = (from_args(cls, args) for cls in (LmTrainOptions, LmOptions))
    with sole_training(options.exp_dir):
        _train(args, options, lm_options)


def _train(args: argparse.Namespace, options: LmTrainOptions, lm_options: LmOptions) -> None:
    set_up_logging(options.exp_dir, "train-lm")
    torch.manual_seed(options.seed)
    lang_dir = args.lang_dir or find_lang_dir(args.data_dir)
    tokenizer = Tokenizer.load(lang_dir)
    if args.lm_text:
        text = text_options(args, read_record(args.data_dir))
        texts = read_texts(args.lm_text, TextNormalizer(text, args.lang))
    else:
        texts = texts_of(args.data_dir, "train")
    train = Sentences.encode(texts, tokenizer, "training")
    valid = Sentences.encode(texts_of(args.data_dir, "val"), tokenizer, "validation")
    model = LanguageModel(tokenizer.vocab_size, lm_options)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = sum(p.numel() for p in model.parameters()) / 1e6
    logging.info(f"device {device}, {size:.2f} M parameters")
    trainer = LmTrainer(model, lm_options, tokenizer.tokens, train, valid, options, device)
    if options.start_epoch > 1:
        trainer.restore(options.exp_dir / f"epoch-{options.start_epoch - 1}.pt")
    save_settings(options.exp_dir, vars(args))
    with repeatable():
        trainer.run()
    if options.exp_dir.resolve().parent == lang_dir.resolve():
        source = "" if args.lm_text else text_digest(args.data_dir)
        note_source(lang_dir, options.exp_dir.name, source)


if __name__ == "__main__":
    run_command(main)
