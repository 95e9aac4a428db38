"""Recognises the utterances of a set chunk by chunk, many streams at once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from tqdm import tqdm

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.data.flaws import Unread
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.recognition.audio_sets import AudioSet
from xlsr_transducer.recognition.decoding import Results
from xlsr_transducer.recognition.engine import Stream, StreamingEngine
from xlsr_transducer.recognition.latency import LatencyReport, StreamTimes


class Source:
    """One utterance: hands its audio to a stream piece by piece."""

    def __init__(self, utterance: str, samples: np.ndarray, stream: Stream, piece: int):
        self.utterance = utterance
        self.pieces: Iterator[torch.Tensor] = iter(torch.from_numpy(samples).split(piece))
        self.stream = stream
        self.times = StreamTimes()

    def feed(self) -> None:
        """Hands out pieces until the stream has a chunk to compute, or ends."""
        while not self.stream.buffer.has_chunk():
            piece = next(self.pieces, None)
            if piece is None:
                self.stream.finish()
                return
            self.stream.accept(piece)


class Feeder:
    """Hands the utterances of a set to the engine; one that ends makes room for the next."""

    def __init__(self, audio: AudioSet, engine: StreamingEngine, num_streams: int, piece: float):
        frame = engine.encoder.frame_seconds
        self.results = Results(audio, frame=frame)
        self.report = LatencyReport(engine.bytes_per_stream(), frame)
        self.engine, self.num_streams = engine, num_streams
        self.piece = max(int(piece * SAMPLING_RATE), 1)
        self.cuts = iter(audio.cuts)
        self.sources: dict[Stream, Source] = {}
        self.is_over = False

    def fill(self) -> None:
        """Opens streams for the next utterances while there is room, and feeds all of them."""
        while not self.is_over and len(self.engine) < self.num_streams:
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
            stream = self.engine.open(self.results.audio.shown(cut.id))
            self.sources[stream] = Source(cut.id, samples, stream, self.piece)
        for source in self.sources.values():
            source.feed()

    def step(self) -> tuple[list[Stream], list[Stream]]:
        """Does a step of the engine; keeps its time, and the results of streams that ended."""
        start = time.perf_counter()
        computed, ended = self.engine.step()
        elapsed = time.perf_counter() - start
        self.results.elapsed += elapsed
        self.report.num_steps += bool(computed)
        self.engine.read([s for s in computed if not s.has_tokens])
        for stream in computed:
            self.sources[stream].times.add(stream.arrived, elapsed, stream.has_tokens)
        for stream in ended:
            source, result = self.sources.pop(stream), stream.result
            self.results.hypotheses[source.utterance] = result
            self.results.seconds += stream.seconds
            self.report.add(source.times, result.frames, stream.seconds)
        return computed, ended


def decode_set(
    audio: AudioSet,
    engine: StreamingEngine,
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
    feeder = Feeder(audio, engine, num_streams, piece)
    progress = tqdm(desc=audio.name, unit="utt", disable=None)
    shown: Counter[Stream] = Counter()  # segments of each live stream that were printed
    while True:
        feeder.fill()
        if not len(engine):
            break
        computed, ended = feeder.step()
        if partial:
            engine.read(computed)
            for stream in computed:
                _print_partial(stream, shown[stream], engine.rules is not None, tokenizer)
                shown[stream] = len(stream.segments)
            for stream in ended:
                del shown[stream]
        progress.update(len(ended))
    progress.close()
    return feeder.results, feeder.report


def _print_partial(
    stream: Stream, num_shown: int, with_numbers: bool, tokenizer: Tokenizer
) -> None:
    """Prints the segments that ended in a step, and the live one."""
    found = stream.segments[num_shown:]
    found += [stream.live.hypothesis()] if stream.slot is not None else []
    for number, segment in enumerate(found, num_shown + 1):
        label = f"segment {number}: " if with_numbers else ""
        text = tokenizer.decode(segment.tokens)
        print(f"{stream.name}\t{stream.arrived:.2f} s\t{label}{text}", flush=True)
