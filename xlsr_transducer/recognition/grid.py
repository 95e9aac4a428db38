"""Recognises the same audio with many chunk settings.

XLSR's normalisation and convolutions do not depend on the chunk settings. So their output is
computed once per batch of utterances, and every setting continues from it: simulated, and chunk
by chunk with cached state.

Letters: N utterances, n samples, T XLSR frames, D width, C chunk size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from xlsr_transducer.data.batches import Batch
from xlsr_transducer.model.checkpoint import LoadedModel
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.config import build_model
from xlsr_transducer.model.encoder import StreamingXLSREncoder
from xlsr_transducer.recognition.audio_sets import AudioSet
from xlsr_transducer.recognition.decoding import Results, batches, use_device
from xlsr_transducer.search import Hypothesis, SearchOptions, make_search

BATCH_SECONDS = 100.0


@dataclasses.dataclass
class GridResult:
    """One set with one setting."""

    chunk: ChunkSettings
    simulated: Results
    streamed: Results | None  # None in full context, which cannot stream

    def differing(self) -> list[str]:
        """Returns the utterances whose streamed tokens or times are not the simulated ones."""
        if self.streamed is None:
            return []
        streamed = self.streamed.hypotheses
        return sorted(
            name
            for name, hypothesis in self.simulated.hypotheses.items()
            if (hypothesis.tokens, hypothesis.frames)
            != (streamed[name].tokens, streamed[name].frames)
        )


@dataclasses.dataclass(frozen=True)
class FrontEnd:
    """A batch of utterances after normalisation and convolutions."""

    batch: Batch
    x: Tensor  # (N, T, D)
    lens: Tensor  # (N,) int64


class Grid:
    """A model, split above its convolutions, with a search."""

    def __init__(self, loaded: LoadedModel, options: SearchOptions, cpu_layers: str):
        """
        Args:
          loaded: a whole model; one without a ``StreamingXLSREncoder`` simulates only.
          cpu_layers: as in ``load_recogniser``.
        """
        config, whole = loaded.config, loaded.model
        features = dataclasses.replace(config.features, cut="frontend")
        streaming = isinstance(whole.encoder, StreamingXLSREncoder)
        upper = build_model(dataclasses.replace(config, features=features), streaming=streaming)
        weights = whole.state_dict()
        upper.load_state_dict({name: weights[name] for name in upper.state_dict()})
        self.tokenizer = loaded.tokenizer
        self.device = use_device(upper.eval(), cpu_layers)
        self.xlsr = whole.encoder.xlsr.to(self.device)
        self.upper, self.encoder = upper, upper.encoder
        self.search = make_search(options, upper)

    @torch.no_grad()
    def decode(self, audio: AudioSet, settings: Sequence[ChunkSettings]) -> list[GridResult]:
        """Recognises every utterance of a set with every setting, one result per setting."""
        read = Results(audio, frame=self.encoder.frame_seconds)
        grid = [
            GridResult(s, read.sibling(), None if s.is_full_context else read.sibling())
            for s in settings
        ]
        fronts = self.front_ends(audio, read)
        for front in tqdm(fronts, desc=audio.name, unit="batch", disable=None):
            for result in grid:
                result.simulated.add(front.batch, self.simulate(front, result.chunk))
                if result.streamed is not None:
                    result.streamed.add(front.batch, self.stream(front, result.chunk))
        return grid

    def front_ends(self, audio: AudioSet, read: Results) -> Iterator[FrontEnd]:
        """Yields the utterances of a set by batches; ``read`` takes in what cannot be read."""
        for batch in batches(audio, self.tokenizer, BATCH_SECONDS, 0):
            for unread in batch.skipped:
                read.leave_out(unread)
            if not batch.ids:
                continue
            batch = batch.to(self.device)
            with torch.no_grad():
                x, lens = self.xlsr.front_end(batch.inputs, batch.input_lens)
            yield FrontEnd(batch, x, lens)

    @torch.no_grad()
    def encode(self, front: FrontEnd, chunk: ChunkSettings) -> tuple[Tensor, Tensor]:
        """Returns (N, ceil(T / 2), E) and lengths (N,): each utterance as a whole."""
        return self.encoder.encode(front.x, front.lens, *chunk)

    @torch.no_grad()
    def simulate(self, front: FrontEnd, chunk: ChunkSettings) -> list[Hypothesis]:
        """Recognises the utterances as a whole."""
        state = self.search.init_state(len(front.x), self.device)
        return self.search.results(self.search.advance(*self.encode(front, chunk), state))

    @torch.no_grad()
    def stream(self, front: FrontEnd, chunk: ChunkSettings) -> list[Hypothesis]:
        """Recognises the utterances chunk by chunk."""
        x, lens = front.x, front.lens
        self.encoder.set_chunk(chunk)
        states = self.encoder.get_init_states(len(x), self.device)
        found = self.search.init_state(len(x), self.device)
        for start in range(0, x.shape[1], chunk.chunk_size):
            piece = x[:, start : start + chunk.chunk_size]
            piece = F.pad(piece, (0, 0, 0, chunk.chunk_size - piece.shape[1]))
            piece_lens = (lens - start).clamp(0, chunk.chunk_size)
            out, out_lens, states = self.encoder.streaming_forward(piece, piece_lens, states)
            found = self.search.advance(out, out_lens, found)
        return self.search.results(found)
