"""Recognises audio chunk by chunk with cached state, as a live recogniser does:
``python -m xlsr_transducer.streaming_decode --exp-dir exp``, or followed by wav files.

The result equals that of ``decode`` with the same settings.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from xlsr_transducer.core.errors import UserError, run_command
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.core.logs import set_up_logging
from xlsr_transducer.core.options import Number, Parser, add_options, from_args, str2bool
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.data.flaws import Unread
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.model.checkpoint import CheckpointOptions
from xlsr_transducer.recognition.audio_sets import AudioSet, name_in_results
from xlsr_transducer.recognition.decoding import (
    DecodeOptions,
    Results,
    load_recogniser,
    status_of,
    suffix,
)
from xlsr_transducer.recognition.latency import LatencyReport
from xlsr_transducer.recognition.scoring import format_table
from xlsr_transducer.recognition.streaming import Stream, StreamPool
from xlsr_transducer.search import BiasOptions, SearchOptions, make_search


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
    for cls in (CheckpointOptions, DecodeOptions, SearchOptions, BiasOptions):
        add_options(parser, cls)
    parser.add_argument(
        "--num-active-paths",
        dest="beam_size",
        type=Number(int, at_least=1),
        default=argparse.SUPPRESS,
        help="the same as --beam-size",
    )
    return parser


class Speaker:
    """One utterance: hands its audio to a stream piece by piece."""

    def __init__(self, utterance: str, samples: np.ndarray, stream: Stream, piece: int):
        self.utterance = utterance
        self.pieces: Iterator[torch.Tensor] = iter(torch.from_numpy(samples).split(piece))
        self.stream = stream

    def speak(self) -> None:
        """Goes on until the stream has a chunk to compute, or ends."""
        while not self.stream.buffer.has_chunk():
            piece = next(self.pieces, None)
            if piece is None:
                self.stream.finish()
                return
            self.stream.accept(piece)


class Audience:
    """Utterances of a set on their way through the pool; one that ends makes room."""

    def __init__(self, audio: AudioSet, pool: StreamPool, num_streams: int, piece: float):
        self.results = Results(audio)
        self.pool, self.num_streams = pool, num_streams
        self.piece = max(int(piece * SAMPLING_RATE), 1)
        self.cuts = iter(audio.cuts)
        self.speakers: dict[Stream, Speaker] = {}
        self.is_over = False

    def fill(self) -> None:
        """Opens streams for the next utterances while there is room, and lets all speak."""
        while not self.is_over and len(self.pool) < self.num_streams:
            cut = next(self.cuts, None)
            if cut is None:
                self.is_over = True
                break
            try:
                samples = read_audio(cut)
            except UserError as e:
                self.results.leave_out(Unread.because(cut.id, cut.supervisions[0].text, e))
                continue
            self.results.texts[cut.id] = cut.supervisions[0].text
            stream = self.pool.open(self.results.audio.shown(cut.id))
            self.speakers[stream] = Speaker(cut.id, samples, stream, self.piece)
        for speaker in self.speakers.values():
            speaker.speak()

    def leave(self, stream: Stream) -> None:
        """Keeps the result of a stream that has ended."""
        self.results.hypotheses[self.speakers.pop(stream).utterance] = stream.result
        self.results.seconds += stream.seconds


def decode_set(
    audio: AudioSet,
    pool: StreamPool,
    tokenizer: Tokenizer,
    num_streams: int,
    piece: float,
    partial: bool = False,
) -> tuple[Results, LatencyReport]:
    """Recognises every utterance of a set, ``num_streams`` at once.

    Args:
      piece: seconds of audio that arrive at a time.
      partial: print results as they grow.
    """
    audience = Audience(audio, pool, num_streams, piece)
    report = LatencyReport(pool.bytes_per_stream())
    progress = tqdm(desc=audio.name, unit="utt", disable=None)
    while True:
        audience.fill()
        if not len(pool):
            break
        start = time.perf_counter()
        ended = pool.step()
        audience.results.elapsed += time.perf_counter() - start
        report.num_steps += 1
        if partial:
            _print_partial(pool, tokenizer)
        for stream in ended:
            audience.leave(stream)
            report.add(stream)
            progress.update()
    progress.close()
    return audience.results, report


def _print_partial(pool: StreamPool, tokenizer: Tokenizer) -> None:
    for stream in pool.streams:
        if stream.steps:
            text = tokenizer.decode(stream.result.tokens)
            print(f"{stream.name}\t{stream.steps[-1].arrived:.2f} s\t{text}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    checkpoint, options, search_options, bias_options = (
        from_args(cls, args)
        for cls in (CheckpointOptions, DecodeOptions, SearchOptions, BiasOptions)
    )
    search_options.require_streaming()
    bias_options.require_supported(search_options)
    folder = checkpoint.exp_dir / "streaming" / search_options.decoding_method
    set_up_logging(None if args.wavs else folder, "streaming-decode")
    sets = options.audio_sets(args.wavs)
    loaded = load_recogniser(checkpoint, True, options.cpu_layers)
    chunk = options.chunk(loaded.config).require_streaming()
    model = loaded.model
    model.encoder.set_chunk(chunk)
    bias = bias_options.load(loaded.tokenizer, checkpoint.source)
    search = make_search(search_options, model.decoder, model.joiner, bias, model.ctc_output)
    settings = suffix(checkpoint, chunk, search_options, bias_options)
    scores = []
    for audio in sets:
        name = "" if audio.files else name_in_results(audio, checkpoint.exp_dir)
        pool = StreamPool(model, search)
        results, report = decode_set(
            audio, pool, loaded.tokenizer, args.num_decode_streams, args.piece, args.partial
        )
        if audio.files:
            return results.print_texts(loaded.tokenizer)
        scores.append(results.write(folder, name, settings, loaded.tokenizer))
        print(report.format(name, results))
    print(format_table(scores))
    return status_of(scores)


if __name__ == "__main__":
    run_command(main)
