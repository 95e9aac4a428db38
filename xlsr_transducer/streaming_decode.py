"""Recognises audio chunk by chunk with cached state, as a live recogniser does:
``python -m xlsr_transducer.streaming_decode --exp-dir exp``, or followed by wav files.

The result equals that of ``decode`` with the same settings.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from xlsr_transducer.core.errors import run_command
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Number, Parser, add_options, from_args, str2bool
from xlsr_transducer.model.checkpoint import CheckpointOptions
from xlsr_transducer.recognition.audio_sets import name_in_results
from xlsr_transducer.recognition.decoding import (
    DecodeOptions,
    load_recogniser,
    require_languages,
    status_of,
    suffix,
)
from xlsr_transducer.recognition.endpoint import EndpointOptions
from xlsr_transducer.recognition.engine import StreamingEngine
from xlsr_transducer.recognition.scoring import format_table
from xlsr_transducer.recognition.streaming_sets import decode_set
from xlsr_transducer.search import BiasOptions, SearchOptions, make_search

OPTIONS = (CheckpointOptions, DecodeOptions, SearchOptions, BiasOptions, EndpointOptions)


def get_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("wavs", nargs="*", type=Path, help="audio files to transcribe")
    parser.add_argument(
        "--num-decode-streams",
        type=Number(int, at_least=1),
        default=16,
        help="streams computed at once",
    )
    parser.add_argument(
        "--piece",
        type=Number(float, at_least=0.001),
        default=0.1,
        help="seconds of audio that arrive at a time",
    )
    parser.add_argument(
        "--partial", type=str2bool, default=False, help="print results as they grow"
    )
    for cls in OPTIONS:
        add_options(parser, cls)
    parser.add_argument(
        "--num-active-paths",
        dest="beam_size",
        type=Number(int, at_least=1),
        default=argparse.SUPPRESS,
        help="the same as --beam-size",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    checkpoint, options, search_options, bias_options, endpoint = (
        from_args(cls, args) for cls in OPTIONS
    )
    search_options.require_streaming()
    bias_options.require_supported(search_options)
    set_up_logging()
    sets = options.audio_sets(args.wavs)
    loaded = load_recogniser(checkpoint, True, options.cpu_layers)
    search_options = search_options.resolved(loaded.model)
    folder = checkpoint.exp_dir / "streaming" / search_options.method
    if not args.wavs:
        set_up_logging(folder, "streaming-decode")
    require_languages(sets, loaded.tokenizer)
    chunk = options.chunk(loaded.config).require_streaming()
    model = loaded.model
    model.encoder.set_chunk(chunk)
    bias = bias_options.load(loaded.tokenizer, checkpoint.source)
    search = make_search(search_options, model, bias)
    settings = suffix(checkpoint, chunk, search_options, bias_options, *endpoint.suffix())
    rules, scores = endpoint.rules(model.encoder.frame_seconds), []
    for audio in sets:
        name = "" if audio.files else name_in_results(audio, checkpoint.exp_dir)
        engine = StreamingEngine(model.encoder, search, rules, args.num_decode_streams)
        results, report = decode_set(
            audio, engine, loaded.tokenizer, args.num_decode_streams, args.piece, args.partial
        )
        if audio.files:
            return results.print_texts(loaded.tokenizer)
        scores.append(results.write(folder, name, settings, loaded.tokenizer))
        print(report.format(name, results.elapsed, results.seconds))
    print(format_table(scores))
    return status_of(scores)


if __name__ == "__main__":
    run_command(main)
