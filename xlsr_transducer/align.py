"""Finds the times of given words: ``python -m xlsr_transducer.align --exp-dir exp``, or with
a wav file and ``--text``.

The text is what the manifests hold, spelled as in training. For each set it leaves, in
``exp/alignments``, a CTM file of words, and a TextGrid of words and tokens per utterance.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from xlsr_transducer.core.errors import UserError, complain, run_command
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Number, Parser, add_options, from_args
from xlsr_transducer.data.flaws import Unread
from xlsr_transducer.loss.rnnt_loss import RNNT_TYPES
from xlsr_transducer.model.checkpoint import CheckpointOptions
from xlsr_transducer.recognition.alignment_files import ctm, write_alignments
from xlsr_transducer.recognition.alignment_sets import align_set, check_texts, sets_to_align
from xlsr_transducer.recognition.audio_sets import AudioSet, name_in_results
from xlsr_transducer.recognition.decoding import (
    DecodeOptions,
    decode_device,
    load_recogniser,
    require_languages,
    require_memory,
)

METHODS = ("transducer", "ctc")


def get_parser() -> Parser:
    parser = Parser(description=" ".join(__doc__.splitlines()[:2]))
    parser.add_argument("wavs", nargs="*", type=Path, help="audio files to align")
    parser.add_argument("--text", action="append", help="text of a file, once for each of them")
    parser.add_argument(
        "--method",
        choices=METHODS,
        help="whose lattice (default: the transducer's, or CTC's of a model without one)",
    )
    parser.add_argument(
        "--rnnt-type", choices=RNNT_TYPES, default="regular", help="topology, as in training"
    )
    parser.add_argument(
        "--max-duration", type=Number(float, above=0), default=200.0, help="seconds per batch"
    )
    for cls in (CheckpointOptions, DecodeOptions):
        add_options(parser, cls)
    return parser


def report(audio: AudioSet, left_out: Sequence[Unread]) -> int:
    """Logs what was left out of a set; returns the exit status, 2 if that is anything."""
    if audio.files:
        return max((complain(unread.reason) for unread in left_out), default=0)
    for unread in left_out:
        logging.warning(f"{audio.name}: not aligned: {unread}")
    if not left_out:
        return 0
    return complain(f"{audio.name}: {len(left_out)} utterances not aligned; the log names them")


def _topology(method: str | None, rnnt_type: str, heads: Sequence[str]) -> str:
    """Returns `ctc`, or the type of the transducer's lattice.

    Raises:
      UserError: the model has no such head, or the type belongs to another method.
    """
    method = method or next((name for name in METHODS if name in heads), METHODS[0])
    if method not in heads:
        raise UserError(
            f"--method {method} needs a model with that head; this one has {', '.join(heads)}"
        )
    if method == "ctc" and rnnt_type != "regular":
        raise UserError(f"--rnnt-type {rnnt_type} works with --method transducer only")
    return method if method == "ctc" else rnnt_type


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    checkpoint, options = (from_args(cls, args) for cls in (CheckpointOptions, DecodeOptions))
    folder = checkpoint.exp_dir / "alignments"
    sets = sets_to_align(options, args.wavs, args.text or [])
    set_up_logging(folder, "align")
    loaded = load_recogniser(checkpoint, cpu_layers=options.cpu_layers)
    require_languages(sets, loaded.tokenizer)
    check_texts(args.text or [], loaded.tokenizer)
    chunk = options.chunk(loaded.config)
    require_memory(sets, loaded.model.encoder, chunk, decode_device())
    topology = _topology(args.method, args.rnnt_type, loaded.config.heads)
    settings, status = f"{checkpoint.describe()}-{chunk.describe()}-{topology}", 0
    for audio in sets:
        own_name = audio.name if audio.files else name_in_results(audio, checkpoint.exp_dir)
        found, left_out = align_set(
            audio, loaded, chunk, topology, args.max_duration, options.num_workers
        )
        write_alignments(folder, f"{own_name}-{settings}", found)
        logging.info(f"{own_name}: {len(found)} aligned, in {folder}/{own_name}-{settings}.ctm")
        if audio.files:
            print(ctm(found), end="", flush=True)
        status = max(status, report(audio, left_out))
    return status


if __name__ == "__main__":
    run_command(main)
