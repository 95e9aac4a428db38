"""Transcribes recordings of any length: ``python -m xlsr_transducer.transcribe --exp-dir exp a.mp3
--format srt``; ``-`` is standard input.

Text and times are those of ``streaming_decode`` with the same endpoint options.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.options import Parser, add_options, from_args
from xlsr_transducer.recognition.live import LiveModel, add_live_options
from xlsr_transducer.recognition.transcribing import TranscribeOptions, transcribe_files


def get_parser() -> Parser:
    parser = Parser(description=__doc__.split(":")[0])
    parser.add_argument("files", nargs="+", type=Path, help="audio or video; - for standard input")
    add_options(parser, TranscribeOptions)
    add_live_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    options = from_args(TranscribeOptions, args)
    options.outputs(args.files)  # before the model is loaded
    return transcribe_files(LiveModel.from_args(args), args.files, options)


if __name__ == "__main__":
    run_command(main)
