"""Recognises the utterances of a set chunk by chunk, many streams at once."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from tqdm import tqdm

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.data.flaws import Unread
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.recognition.audio_sets import AudioSet
from xlsr_transducer.recognition.decoding import Results
from xlsr_transducer.recognition.latency import LatencyReport
from xlsr_transducer.recognition.streaming import SAMPLING_RATE, Stream, StreamPool


class Source:
    """One utterance: hands its audio to a stream piece by piece."""

    def __init__(self, utterance: str, samples: np.ndarray, stream: Stream, piece: int):
        self.utterance = utterance
        self.pieces: Iterator[torch.Tensor] = iter(torch.from_numpy(samples).split(piece))
        self.stream = stream

    def feed(self) -> None:
        """Hands out pieces until the stream has a chunk to compute, or ends."""
        while not self.stream.buffer.has_chunk():
            piece = next(self.pieces, None)
            if piece is None:
                self.stream.finish()
                return
            self.stream.accept(piece)


class Feeder:
    """Hands the utterances of a set to the pool; one that ends makes room for the next."""

    def __init__(self, audio: AudioSet, pool: StreamPool, num_streams: int, piece: float):
        self.results = Results(audio)
        self.pool, self.num_streams = pool, num_streams
        self.piece = max(int(piece * SAMPLING_RATE), 1)
        self.cuts = iter(audio.cuts)
        self.sources: dict[Stream, Source] = {}
        self.is_over = False

    def fill(self) -> None:
        """Opens streams for the next utterances while there is room, and feeds all of them."""
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
            self.sources[stream] = Source(cut.id, samples, stream, self.piece)
        for source in self.sources.values():
            source.feed()

    def close(self, stream: Stream) -> None:
        """Keeps the result of a stream that has ended."""
        self.results.hypotheses[self.sources.pop(stream).utterance] = stream.result
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
    feeder = Feeder(audio, pool, num_streams, piece)
    report = LatencyReport(pool.bytes_per_stream())
    progress = tqdm(desc=audio.name, unit="utt", disable=None)
    while True:
        feeder.fill()
        if not len(pool):
            break
        start = time.perf_counter()
        ended = pool.step()
        feeder.results.elapsed += time.perf_counter() - start
        report.num_steps += 1
        if partial:
            _print_partial(pool, tokenizer)
        for stream in ended:
            feeder.close(stream)
            report.add(stream)
            progress.update()
    progress.close()
    return feeder.results, report


def _print_partial(pool: StreamPool, tokenizer: Tokenizer) -> None:
    for stream in pool.streams:
        if stream.steps:
            text = tokenizer.decode(stream.result.tokens)
            print(f"{stream.name}\t{stream.steps[-1].arrived:.2f} s\t{text}", flush=True)
