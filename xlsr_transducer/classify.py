"""Classifies utterances with a model of --heads classifier, and scores it:
``python -m xlsr_transducer.classify --exp-dir exp``, or followed by audio files.

It processes the waveform, whatever features the model was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xlsr_transducer.core.errors import UserError, complain, run_command
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Number, Parser, add_options, from_args
from xlsr_transducer.model.checkpoint import CheckpointOptions, LoadedModel
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.recognition import accuracy
from xlsr_transducer.recognition.audio_sets import name_in_results
from xlsr_transducer.recognition.classifying import ClassifyOptions, classify_set, print_labels
from xlsr_transducer.recognition.decoding import (
    DecodeOptions,
    decode_device,
    load_recogniser,
    require_memory,
)

OPTIONS = (CheckpointOptions, DecodeOptions, ClassifyOptions)
FOLDER = "classify"


def get_parser() -> Parser:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("wavs", nargs="*", type=Path, help="audio files to classify")
    parser.add_argument(
        "--max-duration", type=Number(float, above=0), default=200.0, help="seconds per batch"
    )
    for cls in OPTIONS:
        add_options(parser, cls)
    return parser


def load(
    checkpoint: CheckpointOptions, options: DecodeOptions, classify: ClassifyOptions
) -> tuple[LoadedModel, ChunkSettings]:
    """Returns the model and what each of its frames sees.

    Raises:
      UserError: it has no classifier, or ``--confidence`` none of the chunks that it needs.
    """
    is_chunked = classify.confidence is not None
    loaded = load_recogniser(checkpoint, cpu_layers=options.cpu_layers)
    if loaded.model.classifier is None:
        heads = " and ".join(loaded.config.heads)
        raise UserError(f"{checkpoint.source}: has no classifier, but {heads}: use decode")
    chunk = options.chunk(loaded.config)
    if is_chunked and chunk.is_full_context:
        raise UserError(
            f"--confidence {classify.confidence} needs chunks: give --decode-chunk-len 32 and "
            "--left-context-chunks 2, or a model trained with --streaming 1"
        )
    if is_chunked:
        if not loaded.config.streaming.streaming:
            loaded = load_recogniser(checkpoint, True, options.cpu_layers)
        loaded.model.encoder.set_chunk(chunk)
    return loaded, chunk


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    checkpoint, options, classify = (from_args(cls, args) for cls in OPTIONS)
    set_up_logging()
    sets = options.audio_sets(args.wavs)
    loaded, chunk = load(checkpoint, options, classify)
    folder = checkpoint.exp_dir / FOLDER
    if not args.wavs:
        set_up_logging(folder, FOLDER)
    if classify.max_seconds is None and classify.confidence is None:
        require_memory(sets, loaded.model.encoder, chunk, decode_device())
    suffix = "-".join([checkpoint.describe(), chunk.describe(), *classify.suffix()])
    num_unread = 0
    for audio in sets:
        given = (loaded, classify, chunk, args.max_duration, options.num_workers)
        decisions = classify_set(audio, *given)
        if audio.files:
            return print_labels(decisions)
        name = name_in_results(audio, checkpoint.exp_dir)
        accuracy.write_results(folder, name, suffix, decisions)
        num_unread += len(decisions.unread)
        print(accuracy.report(name, decisions, loaded.tokenizer.tokens))
    print(f"details: {folder}")
    if num_unread:
        return complain(f"could not be read, and count as wrong: {num_unread}; the log names them")
    return 0


if __name__ == "__main__":
    run_command(main)
