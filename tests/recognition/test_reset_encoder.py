"""``--reset-encoder``: after an endpoint a stream gives what a new stream gives from there on."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.recognition.test_engine import search_for
from tests.support.stream_driver import speech, tiny_encoder
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.recognition.endpoint import EndpointOptions
from xlsr_transducer.recognition.engine import StreamingEngine
from xlsr_transducer.search import Search

OPTIONS = EndpointOptions(True, 0.4, 0.16, 0.8, reset_encoder=True)  # 10, 4 and 20 frames
CHUNKS = [ChunkSettings(8, 2, 4), ChunkSettings(16, 1, 0), ChunkSettings(8, -1, 0)]
Found = list[tuple[list[int], list[int]]]


@torch.no_grad()
def fresh_streams(encoder, search: Search, wave: Tensor) -> tuple[Found, list[int]]:
    """Segments by definition, frame by frame, and the chunks after which the encoder was reset.

    After the chunk in which an endpoint was found, the rest of the audio is encoded as a whole,
    like an utterance of its own.
    """
    rules, chunk = OPTIONS.rules(), encoder.chunk_size
    settings = (chunk, encoder.left_context_chunks, encoder.attention_sink_size)

    def encoded(start: int) -> Tensor:
        rest = wave[None, start * chunk * 320 :]
        out, lens = encoder(rest, torch.tensor([rest.shape[1]]), *settings)
        return out[0, : lens[0]]

    found, resets, first, has_endpoint = [], [], 0, False
    frames, state = encoded(0), search.init_state(1)
    start = at = 0
    while at - first * chunk // 2 < len(frames):
        frame = frames[at - first * chunk // 2]
        state = search.advance(frame[None, None], torch.tensor([1]), state)
        at += 1
        [best] = search.results(state)
        trailing = at - 1 - best.frames[-1] if best.tokens else at - start
        if rules.is_endpoint(torch.tensor([at - start]), torch.tensor([trailing])):
            found += [(best.tokens, best.frames)] if best.tokens else []
            fresh = search.init_state(1)
            state = dataclasses.replace(fresh, num_frames=torch.tensor([at]))
            start, has_endpoint = at, True
        if at * 2 % chunk == 0 and has_endpoint:
            first, has_endpoint = at * 2 // chunk, False
            frames = encoded(first)
            resets.append(first)
    [best] = search.results(state)
    return found + ([(best.tokens, best.frames)] if best.tokens else []), resets


def streamed(encoder, search: Search, waves: list[Tensor], piece: int) -> list[Found]:
    """Segments of streams that begin one step after another, in pieces of ``piece`` samples."""
    engine = StreamingEngine(encoder, search, OPTIONS.rules(), num_slots=1)
    pieces, opened, waiting = {}, [], list(waves)
    while waiting or len(engine):
        if waiting:
            opened.append(engine.open(str(len(opened))))
            pieces[opened[-1]] = iter(waiting.pop(0).split(piece))
        for stream in engine.streams:
            while not (stream.buffer.has_chunk() or stream.buffer.is_finished):
                part = next(pieces[stream], None)
                stream.finish() if part is None else stream.accept(part)
        engine.step()
    return [[(h.tokens, h.frames) for h in stream.segments] for stream in opened]


@pytest.mark.parametrize("chunk", CHUNKS, ids=ChunkSettings.describe)
@pytest.mark.parametrize("method", ["greedy_search", "modified_beam_search"])
def test_after_an_endpoint_a_stream_is_a_new_one_alone_and_beside_others(method, chunk):
    encoder = tiny_encoder(chunk=chunk).double()
    search = search_for(dict(decoding_method=method), torch.float64)
    waves = [speech(n, n) for n in (60000, 41111, 35345, 30000)]
    expected, resets = zip(*(fresh_streams(encoder, search, wave) for wave in waves))
    assert min(map(len, resets)) >= 1 and sum(map(len, resets)) >= 8
    assert sum(len(frames) for found in expected for _, frames in found) > 20
    for piece in (777, 10**6):
        assert streamed(encoder, search, waves, piece) == list(expected)
    assert streamed(encoder, search, waves[:1], 5000) == list(expected[:1])


def test_it_is_off_by_default_and_named_in_result_files():
    assert not EndpointOptions(True).rules().reset_encoder and OPTIONS.rules().reset_encoder
    names = [EndpointOptions(True, reset_encoder=reset).suffix() for reset in (False, True)]
    assert names == [["endpoint-2.4-1.2-20.0"], ["endpoint-2.4-1.2-20.0-reset-encoder"]]
    assert EndpointOptions(reset_encoder=True).suffix() == []
