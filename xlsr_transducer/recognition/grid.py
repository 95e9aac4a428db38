"""Recognises the same audio with many chunk settings.

XLSR's normalisation and convolutions do not depend on the chunk settings. So their output is
computed once per batch of utterances, and every setting continues from it: simulated, and chunk
by chunk with cached state.

Letters: N utterances, n samples, T XLSR frames, D width, C chunk size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from xlsr_transducer.model.checkpoint import LoadedModel
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.config import build_model
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


class Grid:
    """A model, split above its convolutions, with a search."""

    def __init__(self, loaded: LoadedModel, options: SearchOptions, cpu_layers: str):
        """
        Args:
          loaded: a whole model with a ``StreamingXLSREncoder``.
          cpu_layers: as in ``load_recogniser``.
        """
        config, whole = loaded.config, loaded.model
        features = dataclasses.replace(config.features, cut="frontend")
        upper = build_model(dataclasses.replace(config, features=features), streaming=True)
        weights = whole.state_dict()
        upper.load_state_dict({name: weights[name] for name in upper.state_dict()})
        self.tokenizer = loaded.tokenizer
        self.device = use_device(upper.eval(), cpu_layers)
        self.xlsr = whole.encoder.xlsr.to(self.device)
        self.encoder = upper.encoder
        self.search = make_search(options, upper.decoder, upper.joiner, None, upper.ctc_output)

    @torch.no_grad()
    def decode(self, audio: AudioSet, settings: Sequence[ChunkSettings]) -> list[GridResult]:
        """Recognises every utterance of a set with every setting, one result per setting."""
        read = Results(audio)
        grid = [
            GridResult(s, read.sibling(), None if s.is_full_context else read.sibling())
            for s in settings
        ]
        loader = batches(audio, self.tokenizer, BATCH_SECONDS, 0)
        for batch in tqdm(loader, desc=audio.name, unit="batch", disable=None):
            for unread in batch.skipped:
                read.leave_out(unread)
            if not batch.ids:
                continue
            batch = batch.to(self.device)
            x, lens = self.xlsr.front_end(batch.inputs, batch.input_lens)
            for result in grid:
                result.simulated.add(batch, self._simulate(x, lens, result.chunk))
                if result.streamed is not None:
                    result.streamed.add(batch, self._stream(x, lens, result.chunk))
        return grid

    def _simulate(self, x: Tensor, lens: Tensor, chunk: ChunkSettings) -> list[Hypothesis]:
        """Recognises (N, T, D) front-end output as a whole."""
        out, out_lens = self.encoder.encode(x, lens, *dataclasses.astuple(chunk))
        state = self.search.init_state(len(x), self.device)
        return self.search.results(self.search.advance(out, out_lens, state))

    def _stream(self, x: Tensor, lens: Tensor, chunk: ChunkSettings) -> list[Hypothesis]:
        """Recognises (N, T, D) front-end output chunk by chunk."""
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
