r"""Recognises sets with a model of Hugging Face, by transformers' own pipeline:

    python -m local.baseline --model openai/whisper-large-v2 --language et --data-dir data
    python -m local.baseline --model facebook/wav2vec2-xls-r-300m-21-to-en --metric bleu \
      --manifest cuts_covost.jsonl.gz

CTC models, Whisper and its kind, and pairs of speech encoder and text decoder. Their results lie
in exp/baselines/NAME, in icefall's files, normalised and scored like the recogniser's;
`xlsr_transducer.evaluate --baseline exp/baselines/NAME` puts them beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Parser, add_options, from_args
from xlsr_transducer.evaluation.baseline import Baseline, BaselineOptions, decode_set, name_of
from xlsr_transducer.evaluation.bleu import bleu, require_bleu
from xlsr_transducer.evaluation.normalizing import BASIC, Normalizer
from xlsr_transducer.recognition.audio_sets import audio_sets
from xlsr_transducer.recognition.decoding import status_of
from xlsr_transducer.recognition.scoring import format_table


def get_parser() -> Parser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-dir", type=Path, default=Path("data"), help="what prepare.sh wrote"
    )
    parser.add_argument("--split", default="", help="default: val and all tests")
    parser.add_argument("--manifest", type=Path, help="a lhotse cut manifest instead of splits")
    parser.add_argument("--out", type=Path, help="default: exp/baselines/NAME")
    parser.add_argument(
        "--score-normalize", default=BASIC, help="none, basic, numbers:LANGUAGE, FILE, or several"
    )
    parser.add_argument("--metric", choices=("wer", "bleu"), default="wer")
    add_options(parser, BaselineOptions)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    options = from_args(BaselineOptions, args)
    if not options.model:
        raise UserError("--model is missing: a name at Hugging Face, or a folder")
    normalizer = Normalizer.parse(args.score_normalize)
    if args.metric == "bleu":
        require_bleu()
    out = args.out or Path("exp/baselines") / name_of(options.model)
    set_up_logging(out, "baseline")
    sets = audio_sets(args.data_dir, args.split, args.manifest)
    baseline = Baseline(options)
    scores, blues = [], []
    for audio in sets:
        score, texts = decode_set(baseline, audio, normalizer, out)
        scores.append(score)
        if args.metric == "bleu":
            found = bleu(texts)
            blues.append(f"{score.set_name}: BLEU {found} ({found.signature})")
    print(format_table(scores))
    print(f"Scored: {normalizer.description}.")
    print("\n".join(blues), end="\n" if blues else "")
    return status_of(scores)


if __name__ == "__main__":
    run_command(main)
