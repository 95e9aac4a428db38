"""Recognises audio that lies in memory as a live recogniser does; for the demo's experiments."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.core.options import Parser, add_options, from_args
from xlsr_transducer.data.audio import read_audio
from xlsr_transducer.model.checkpoint import CheckpointOptions
from xlsr_transducer.recognition.audio_sets import audio_sets
from xlsr_transducer.recognition.decoding import load_recogniser
from xlsr_transducer.recognition.endpoint import EndpointOptions
from xlsr_transducer.recognition.engine import StreamingEngine
from xlsr_transducer.search import Hypothesis, SearchOptions, make_search

PIECE = 10 * SAMPLING_RATE  # samples that a stream gets at a time
STREAMS = 16  # recognised at once


@dataclasses.dataclass(frozen=True)
class Utterance:
    """What was said."""

    samples: np.ndarray  # (n,) float32 at 16 kHz
    words: list[str]


def read_utterances(data_dir: Path, split: str) -> list[Utterance]:
    """Returns the utterances of some splits, named with commas between."""
    cuts = [cut for audio in audio_sets(data_dir, split) for cut in audio.cuts]
    return [Utterance(read_audio(cut), cut.supervisions[0].text.split()) for cut in cuts]


def add_model_options(parser: Parser) -> None:
    """Adds the model, the search, and the corpus that the experiment is made of."""
    parser.add_argument("--data-dir", type=Path, default=Path("data/demo_corpus"))
    parser.add_argument("--split", default="test_seen,test_unseen")
    for cls in (CheckpointOptions, SearchOptions):
        add_options(parser, cls)


class Live:
    """A streaming model with the chunk settings that it was validated with."""

    def __init__(self, args: argparse.Namespace):
        """Loads what the options of ``add_model_options`` name."""
        self.search_options = from_args(SearchOptions, args)
        self.search_options.require_streaming()
        loaded = load_recogniser(from_args(CheckpointOptions, args), True)
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.model.encoder.set_chunk(loaded.config.streaming.default().require_streaming())

    def recognise(
        self,
        waves: Sequence[np.ndarray],
        endpoint: EndpointOptions,
        search_options: SearchOptions | None = None,
    ) -> list[Hypothesis]:
        """Returns what is recognised in each of ``waves``: its segments, joined."""
        model = self.model
        options = search_options or self.search_options
        search = make_search(options, model)
        engine = StreamingEngine(
            model.encoder, search, endpoint.rules(model.encoder.frame_seconds), STREAMS
        )
        found, opened, waiting = {}, 0, {}
        while opened < len(waves) or len(engine):
            while opened < len(waves) and len(engine) < STREAMS:
                stream = engine.open(str(opened))
                waiting[stream] = iter(torch.from_numpy(waves[opened]).split(PIECE))
                opened += 1
            for stream in engine.streams:
                while not (stream.buffer.has_chunk() or stream.buffer.is_finished):
                    piece = next(waiting[stream], None)
                    stream.finish() if piece is None else stream.accept(piece)
            for stream in engine.step()[1]:
                del waiting[stream]
                found[stream.name] = stream.result
        return [found[str(number)] for number in range(len(waves))]

    def words(self, tokens: Sequence[int]) -> list[str]:
        """Returns the words that ``tokens`` spell."""
        return self.tokenizer.decode(list(tokens)).split()
