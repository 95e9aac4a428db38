"""Live recognition: streams of any age, packed into one batch, a chunk at a time.

Nothing here knows how audio arrives; ``Stream.accept`` takes pieces of any size.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch
from torch import Tensor

from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.data.stream_buffer import AudioBuffer
from xlsr_transducer.model.state import EncoderState, cat_states, select_states, state_bytes
from xlsr_transducer.model.transducer import Transducer
from xlsr_transducer.search import Hypothesis, Search
from xlsr_transducer.search.token_graph import TokenGraph


@dataclasses.dataclass
class Step:
    """One chunk of one stream, for the account of latencies."""

    arrived: float  # seconds of the stream's audio that had to arrive for it
    elapsed: float  # seconds that the batch took
    num_tokens: int  # of the result after it


class Stream:
    """One stream: its audio on the way in, its result on the way out."""

    def __init__(
        self,
        name: str,
        chunk_samples: int,
        hop: int,
        head: int,
        hotwords: TokenGraph | None = None,
    ):
        self.name = name
        self.hotwords = hotwords
        self.buffer = AudioBuffer(chunk_samples, hop, head)
        self.result = Hypothesis()
        self.steps: list[Step] = []
        self.consumed = 0  # samples

    def accept(self, piece: Tensor) -> None:
        """Takes (n,) float samples at 16 kHz in [-1, 1]."""
        self.buffer.add(piece)

    def finish(self) -> None:
        """Says that no more audio will come."""
        self.buffer.finish()

    @property
    def seconds(self) -> float:
        return self.buffer.num_samples / SAMPLING_RATE


class StreamPool:
    """Recognises many streams at once; a stream may join or leave between two steps."""

    def __init__(self, model: Transducer, search: Search):
        self.encoder = model.encoder
        self.search = search
        self.device = next(model.parameters()).device
        self.hop, self.head = self.encoder.xlsr.hop, self.encoder.xlsr.head
        self.chunk_samples = self.encoder.chunk_size * self.hop
        self.streams: list[Stream] = []
        self._encoder_state: EncoderState | None = None
        self._search_state = None
        self._waiting: list[Stream] = []  # without their first samples yet

    def open(self, name: str, hotwords: TokenGraph | None = None) -> Stream:
        """A new stream, part of the pool from the next step on.

        Args:
          hotwords: those of this stream (see ``context_graph``) instead of the search's own.
            The search needs a ``Bias`` for them.
        """
        stream = Stream(name, self.chunk_samples, self.hop, self.head, hotwords)
        self._waiting.append(stream)
        return stream

    def __len__(self) -> int:
        return len(self.streams) + len(self._waiting)

    @torch.no_grad()
    def step(self) -> list[Stream]:
        """Computes a chunk of every stream that has one; returns the streams that ended."""
        start = time.perf_counter()
        self._admit()
        if any(s.buffer.has_chunk() for s in self.streams):
            self._advance()
            elapsed = time.perf_counter() - start
            for stream in self.streams:
                if stream.steps and stream.steps[-1].elapsed < 0:
                    stream.steps[-1].elapsed = elapsed
        return self._dismiss()

    def _admit(self) -> None:
        """Puts those waiting streams into the batch whose first samples have arrived."""
        heads, started = [], []
        for stream in list(self._waiting):
            head = stream.buffer.pop_head()
            if head is None:
                continue
            self._waiting.remove(stream)
            heads.append(head)
            started.append(stream)
            stream.consumed = self.head
        if not started:
            return
        fresh = self.encoder.get_init_states(len(started), self.device)
        fresh.xlsr.tail.copy_(torch.stack(heads))
        search = self._first_search_state(started)
        if self.streams:
            fresh = cat_states([self._encoder_state, fresh])
            search = self.search.cat([self._search_state, search])
        self._encoder_state, self._search_state = fresh, search
        self.streams += started

    def _first_search_state(self, started: list[Stream]) -> Any:
        hotwords = [stream.hotwords for stream in started]
        if not any(hotwords):
            return self.search.init_state(len(started), self.device)
        return self.search.init_state(len(started), self.device, hotwords)

    def _advance(self) -> None:
        dtype = self._encoder_state.xlsr.tail.dtype
        audio = torch.zeros(len(self.streams), self.chunk_samples, dtype=dtype)
        lens = torch.zeros(len(self.streams), dtype=torch.int64)
        for row, stream in enumerate(self.streams):
            chunk = stream.buffer.pop_chunk()
            if chunk is not None:
                audio[row], lens[row] = chunk
                stream.consumed += chunk[1]
        out, out_lens, self._encoder_state = self.encoder.streaming_forward(
            audio.to(self.device), lens.to(self.device), self._encoder_state
        )
        self._search_state = self.search.advance(out, out_lens, self._search_state)
        results = self.search.results(self._search_state)
        for stream, length, result in zip(self.streams, lens.tolist(), results):
            if length:
                stream.result = result
                is_short = length < self.chunk_samples  # computed once the audio has ended
                samples = stream.buffer.num_samples if is_short else stream.consumed
                arrived = samples / SAMPLING_RATE
                stream.steps.append(Step(arrived, -1.0, len(result.tokens)))

    def _dismiss(self) -> list[Stream]:
        """Takes the streams that have given all they will out of the batch."""
        ended = [s for s in self._waiting + self.streams if s.buffer.is_exhausted]
        if not ended:
            return []
        self._waiting = [s for s in self._waiting if s not in ended]
        kept = [row for row, s in enumerate(self.streams) if s not in ended]
        if len(kept) < len(self.streams):
            self.streams = [self.streams[row] for row in kept]
            rows = torch.tensor(kept, dtype=torch.int64, device=self.device)
            self._encoder_state = select_states(self._encoder_state, rows)
            self._search_state = self.search.select(self._search_state, rows)
        return ended

    def bytes_per_stream(self) -> int:
        """Bytes of encoder state that one stream takes at its start."""
        return state_bytes(self.encoder.get_init_states(1, self.device))
