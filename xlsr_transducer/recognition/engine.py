"""The streaming engine: live streams of any age, recognised together, a chunk at a time.

Each stream has a slot: one row of the encoder's state and of the search's, from its first
samples to its last. A step takes the rows that have a chunk, computes these and writes them
back, so that streams come and go without moving any other's state. What a step costs depends
on the streams that have a chunk, and on nothing that is over.

Nothing here knows how audio arrives; ``Stream.accept`` takes pieces of any size.

Letters: N streams that have a chunk, T encoder frames, E width of the encoder, B hypotheses.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from xlsr_transducer.core.geometry import SAMPLING_RATE
from xlsr_transducer.data.stream_buffer import AudioBuffer
from xlsr_transducer.model.state import (
    EncoderState,
    cat_states,
    put_states,
    select_states,
    state_bytes,
)
from xlsr_transducer.recognition.endpoint import EndpointRules
from xlsr_transducer.search import Hypothesis, Search
from xlsr_transducer.search.history import Settled
from xlsr_transducer.search.token_graph import TokenGraph


class StreamingEncoder(Protocol):
    """What computes a chunk: a ``StreamingXLSREncoder``, or ``OnnxStreamingEncoder``."""

    chunk_size: int
    left_context_chunks: int
    frame_seconds: float  # of a frame of its output
    xlsr: Any  # with `hop` and `overlap`, in samples

    def get_init_states(self, batch_size: int, device: torch.device) -> EncoderState:
        """Returns the state of streams before their first chunk."""

    def streaming_forward(
        self, x: Tensor, x_lens: Tensor, states: EncoderState
    ) -> tuple[Tensor, Tensor, EncoderState]:
        """Returns output (N, T, E) and lengths (N,) of the next chunk, and the states after it."""


class Segment:
    """The tokens of a stream since its last endpoint; a token that has settled is read once."""

    def __init__(self, start: int = 0):
        self.start = start  # its first encoder frame, counted from the start of the audio
        self.settled = Hypothesis()  # the tokens that can no longer change; its lists grow
        self.tail = Hypothesis()  # the best hypothesis, without them
        self._node: Settled | None = None

    def update(self, tail: Hypothesis, node: Settled | None) -> None:
        """Takes in where the search stands: ``tail``, and ``node`` with what has settled."""
        for stretch in node.stretches(self._node) if node else []:
            self.settled.tokens.extend(stretch.tokens)
            self.settled.frames.extend(stretch.frames)
            self.settled.log_probs.extend(stretch.log_probs)
        self.tail, self._node = tail, node

    @property
    def has_tokens(self) -> bool:
        return bool(self.settled.tokens or self.tail.tokens)

    def hypothesis(self) -> Hypothesis:
        """Returns the best hypothesis so far, as a copy."""
        return dataclasses.replace(
            self.tail,
            tokens=self.settled.tokens + self.tail.tokens,
            frames=self.settled.frames + self.tail.frames,
            log_probs=self.settled.log_probs + self.tail.log_probs,
            num_stable=len(self.settled.tokens) + self.tail.num_stable,
        )


class Stream:
    """One stream: its audio on the way in, its results on the way out."""

    def __init__(self, name: str, buffer: AudioBuffer, hotwords: TokenGraph | None = None):
        self.name = name
        self.buffer = buffer
        self.hotwords = hotwords
        self.segments: list[Hypothesis] = []  # that have ended, but for those without a token
        self.live = Segment()  # the one that has not; ``StreamingEngine.read`` updates it
        self.arrived = 0.0  # seconds of its audio that had to arrive for its last step
        self.slot: int | None = None  # from its first chunk to its end
        self._has_ended_tokens = False

    def accept(self, piece: Tensor) -> None:
        """Takes (n,) float samples at 16 kHz in [-1, 1]."""
        self.buffer.add(piece)

    def finish(self) -> None:
        """Ends the audio: no more will come."""
        self.buffer.finish()

    def end_segment(self, next_start: int) -> None:
        """Keeps the live segment, which is up to date, and begins another."""
        if self.live.has_tokens:
            self.segments.append(self.live.hypothesis())
            self._has_ended_tokens = True
        self.live = Segment(next_start)

    def take_segments(self) -> list[Hypothesis]:
        """Returns the segments that have ended since the last call, and forgets them.

        Who recognises for hours calls it now and then, so that the stream does not grow.
        """
        taken, self.segments = self.segments, []
        return taken

    @property
    def seconds(self) -> float:
        """Seconds of audio that have arrived."""
        return self.buffer.num_samples / SAMPLING_RATE

    @property
    def has_tokens(self) -> bool:
        """Whether a token has come, in the live segment or before."""
        return self._has_ended_tokens or self.live.has_tokens

    @property
    def result(self) -> Hypothesis:
        """All segments that have ended and were not taken, joined; frames count from the start
        of the audio."""
        return Hypothesis.joined(self.segments)


class StreamingEngine:
    """Recognises many streams at once; a stream may join or leave between two steps."""

    def __init__(
        self,
        encoder: StreamingEncoder,
        search: Search,
        rules: EndpointRules | None = None,
        num_slots: int = 16,
    ):
        """With ``rules`` segments end where they say so (see ``EndpointOptions``).

        There are ``num_slots`` slots at first, and twice as many whenever they are all taken.
        """
        self.encoder = encoder
        self.search = search
        self.rules = rules
        self.device = next(encoder.parameters()).device
        self.chunk_samples = encoder.chunk_size * encoder.xlsr.hop
        self.streams: list[Stream] = []
        self._free = list(range(num_slots))  # a heap
        with torch.no_grad():
            self._encoder_state = encoder.get_init_states(num_slots, self.device)
            self._search_state = search.init_state(num_slots, self.device)

    def open(self, name: str, hotwords: TokenGraph | None = None) -> Stream:
        """Returns a new stream; its audio counts from the next step.

        Args:
          hotwords: those of this stream (see ``context_graph``) instead of the search's own.
            The search needs a ``Bias`` for them.
        """
        xlsr = self.encoder.xlsr
        stream = Stream(name, AudioBuffer(self.chunk_samples, xlsr.hop, xlsr.overlap), hotwords)
        self.streams.append(stream)
        return stream

    def close(self, stream: Stream) -> None:
        """Drops a stream, at its end or before; what is in its live segment is lost."""
        self.streams.remove(stream)
        if stream.slot is not None:
            heapq.heappush(self._free, stream.slot)
            stream.slot = None

    def __len__(self) -> int:
        return len(self.streams)

    @property
    def num_slots(self) -> int:
        return len(self._encoder_state.adapter)

    def ready(self) -> list[Stream]:
        """Returns the streams of which the next step computes a chunk."""
        return [s for s in self.streams if s.buffer.has_chunk()]

    def has_work(self) -> bool:
        """Whether a step would do something: a stream has a chunk, or is over."""
        return any(s.buffer.has_chunk() or s.buffer.is_exhausted for s in self.streams)

    def bytes_per_stream(self) -> int:
        """Returns the bytes of encoder state that one stream takes at its start."""
        return state_bytes(self.encoder.get_init_states(1, self.device))

    @torch.no_grad()
    def step(self) -> tuple[list[Stream], list[Stream]]:
        """Computes a chunk of every stream that has one.

        If it raises, the chunks of the streams that were ``ready`` are lost: close these. The
        others go on as if nothing had been.

        Returns:
          the streams of which a chunk was computed; and those that are over and have left, each
          with all of its segments.
        """
        ready = self.ready()
        if ready:
            self._admit([s for s in ready if s.slot is None])
            self._compute(ready)
        ended = [s for s in self.streams if s.buffer.is_exhausted]
        self.read(ended)
        for stream in ended:
            stream.end_segment(0)
            self.close(stream)
        return ready, ended

    @torch.no_grad()
    def read(self, streams: Sequence[Stream]) -> None:
        """Updates ``stream.live`` of live streams; costs the same after hours as after seconds.

        A stream that is over, or has had no chunk, has nothing to read: its ``slot`` is None.
        """
        streams = [s for s in streams if s.slot is not None]
        if streams:
            self._read(streams, self.search.select(self._search_state, self._rows(streams)))

    def _read(self, streams: Sequence[Stream], state: Any) -> None:
        for stream, *found in zip(streams, self.search.tails(state), state.history.settled):
            stream.live.update(*found)

    def _rows(self, streams: Sequence[Stream]) -> Tensor:
        return torch.tensor([s.slot for s in streams], dtype=torch.int64, device=self.device)

    def _admit(self, streams: list[Stream]) -> None:
        """Gives slots to streams whose first chunk is there."""
        if not streams:
            return
        while len(self._free) < len(streams):
            self._double()
        for stream in streams:
            stream.slot = heapq.heappop(self._free)
        rows = self._rows(streams)
        fresh = self._first_encoder_state(torch.stack([s.buffer.pop_overlap() for s in streams]))
        self._encoder_state = put_states(self._encoder_state, rows, fresh)
        search = self._first_search_state(streams)
        self._search_state = self.search.put(self._search_state, rows, search)

    def _double(self) -> None:
        size = self.num_slots
        fresh = self.encoder.get_init_states(size, self.device)
        encoder_state = cat_states([self._encoder_state, fresh])
        search = self.search.init_state(size, self.device)
        # Both at once: without memory for one of them, neither changes.
        self._search_state = self.search.cat([self._search_state, search])
        self._encoder_state = encoder_state
        for slot in range(size, 2 * size):
            heapq.heappush(self._free, slot)

    def _first_encoder_state(self, overlap: Tensor) -> EncoderState:
        """Returns the state of streams that begin with the samples ``overlap`` (N, 80)."""
        fresh = self.encoder.get_init_states(len(overlap), self.device)
        fresh.xlsr.tail.copy_(overlap)
        return fresh

    def _first_search_state(self, streams: list[Stream]) -> Any:
        hotwords = [stream.hotwords for stream in streams]
        if not any(hotwords):
            return self.search.init_state(len(streams), self.device)
        return self.search.init_state(len(streams), self.device, hotwords)

    def _compute(self, streams: list[Stream]) -> None:
        """Encodes and searches a chunk of each of ``streams``."""
        rows = self._rows(streams)
        state = select_states(self._encoder_state, rows, self.encoder.left_context_chunks < 0)
        audio, lens = self._audio(streams)
        out, out_lens, state = self.encoder.streaming_forward(audio, lens, state)
        search = self.search.select(self._search_state, rows)
        if self.rules is None:
            search = self.search.advance(out, out_lens, search)
        else:
            search, has_endpoint = self._advance_by_segments(out, out_lens, search, streams)
            if self.rules.reset_encoder:
                # After a chunk that is not full there is no further one.
                state = self._begin_anew(state, has_endpoint & (lens == self.chunk_samples), audio)
        self._encoder_state = put_states(self._encoder_state, rows, state)
        self._search_state = self.search.put(self._search_state, rows, search)

    def _begin_anew(self, state: EncoderState, which: Tensor, audio: Tensor) -> EncoderState:
        """Returns ``state`` after (N, chunk) ``audio``, where for the streams ``which`` (N,) bool
        the next chunk is the first: their audio begins with the last samples of this one."""
        rows = which.nonzero()[:, 0]
        if not len(rows):
            return state
        overlap = audio[rows, -self.encoder.xlsr.overlap :]
        return put_states(state, rows, self._first_encoder_state(overlap))

    def _audio(self, streams: list[Stream]) -> tuple[Tensor, Tensor]:
        """Returns (N, chunk) samples and (N,) how many of them count."""
        chunks, lens = zip(*(s.buffer.pop_chunk() for s in streams))
        for stream, length in zip(streams, lens):
            # A short chunk is computed once the audio has ended.
            waiting = stream.buffer.num_waiting if length == self.chunk_samples else 0
            stream.arrived = stream.seconds - waiting / SAMPLING_RATE
        dtype = self._encoder_state.xlsr.tail.dtype
        audio = torch.stack([chunk.to(dtype) for chunk in chunks]).to(self.device)
        return audio, torch.tensor(lens, dtype=torch.int64, device=self.device)

    def _advance_by_segments(
        self, out: Tensor, out_lens: Tensor, state: Any, streams: list[Stream]
    ) -> tuple[Any, Tensor]:
        """Does ``search.advance``; where a segment ends within ``out``, the search begins anew.

        Each stream is searched up to the next frame after which an endpoint may come. So all
        are found to the frame, and no frame is searched alone where none can come.

        Returns:
          the new state, and (N,) bool which streams had an endpoint.
        """
        starts = torch.tensor([s.live.start for s in streams], device=self.device)
        done = torch.zeros_like(out_lens)
        has_endpoint = torch.zeros_like(out_lens, dtype=torch.bool)
        while bool((done < out_lens).any()):
            length = state.num_frames - starts
            size = self.rules.frames_until(length, self._trailing(state, starts))
            size = size.minimum(out_lens - done)
            place = done.unsqueeze(1) + torch.arange(int(size.max()), device=self.device)
            place = place.clamp(max=out.shape[1] - 1).unsqueeze(2).expand(-1, -1, out.shape[2])
            state = self.search.advance(out.gather(1, place), size, state)
            done = done + size
            ends = self.rules.is_endpoint(
                state.num_frames - starts, self._trailing_of_best(state, starts)
            )
            if bool(ends.any()):
                state = self._end_segments(ends.nonzero()[:, 0], state, streams)
                starts = torch.where(ends, state.num_frames, starts)
                has_endpoint |= ends
        return state, has_endpoint

    def _end_segments(self, rows: Tensor, state: Any, streams: list[Stream]) -> Any:
        """Reads the segments of ``rows`` out; returns ``state`` with fresh ones in their place."""
        ended, part = [streams[row] for row in rows.tolist()], self.search.select(state, rows)
        self._read(ended, part)
        for stream, frame in zip(ended, part.num_frames.tolist()):
            stream.end_segment(frame)
        fresh = self._first_search_state(ended)
        fresh = dataclasses.replace(fresh, num_frames=part.num_frames)
        return self.search.put(state, rows, fresh)

    def _trailing(self, state: Any, starts: Tensor) -> Tensor:
        """Returns (N, B) frames since each hypothesis' last token, or the segment start."""
        last = state.history.last_frames().maximum(starts.unsqueeze(1) - 1)
        return state.num_frames.unsqueeze(1) - 1 - last

    def _trailing_of_best(self, state: Any, starts: Tensor) -> Tensor:
        """Returns (N,) the same of the best hypothesis; 0 while a search has none."""
        which, score = (x[:, :1] for x in self.search.rank(state))
        trailing = self._trailing(state, starts).gather(1, which)
        return trailing.masked_fill(score == -float("inf"), 0)[:, 0]
