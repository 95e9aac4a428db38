"""The streaming engine: streams together give what each gives alone, at a constant cost."""

from __future__ import annotations

import contextlib
import random
import sys

import pytest
import torch

from tests.recognition.test_endpoint import silence
from tests.support.frame_encoder import FrameEncoder, audio_of
from tests.support.random_searches import DIM, make
from tests.support.random_searches import speech as random_frames
from tests.support.stream_driver import speech, tiny_encoder
from xlsr_transducer.model.chunking import ChunkSettings
from xlsr_transducer.model.decoder import Decoder
from xlsr_transducer.model.joiner import Joiner
from xlsr_transducer.recognition.endpoint import EndpointOptions
from xlsr_transducer.recognition.engine import Stream, StreamingEngine
from xlsr_transducer.search import Heads, Hypothesis, Search, SearchOptions, history, make_search

SETTINGS = {
    "greedy": (dict(), ChunkSettings(8, 2, 4)),
    "modified-beam": (dict(decoding_method="modified_beam_search"), ChunkSettings(16, 1, 0)),
    "ctc-prefix": (dict(decoding_method="ctc_prefix_beam_search"), ChunkSettings(8, 2, 4)),
    "fast-beam": (dict(decoding_method="fast_beam_search", beam=8.0), ChunkSettings(8, -1, 0)),
}


def search_for(options: dict, dtype: torch.dtype) -> Search:
    """A search over random networks for ``tiny_encoder``, whose output is 32 wide."""
    torch.manual_seed(3)
    networks = Decoder(20, 16, 2), Joiner(32, 16, 24, 20), torch.nn.Linear(32, 20)
    with torch.no_grad():
        networks[1].output_linear.weight *= 12
        networks[1].output_linear.bias[0] += 3
        networks[2].weight *= 4
    return make_search(SearchOptions(**options), Heads(*(x.to(dtype) for x in networks)))


class Recorder:
    """Calls an encoder, and keeps what came out of each call."""

    def __init__(self, encoder):
        self.encoder = encoder
        self.calls: list[list[torch.Tensor]] = []

    def __getattr__(self, name: str):
        return getattr(self.encoder, name)

    def streaming_forward(self, x, lens, states):
        """As the encoder's; the rows of its output are kept."""
        out, out_lens, states = self.encoder.streaming_forward(x, lens, states)
        self.calls.append([row[:n] for row, n in zip(out, out_lens)])
        return out, out_lens, states


def run_at_random(
    engine: StreamingEngine, waves: list[torch.Tensor], seed: int
) -> tuple[list[Stream], dict[Stream, list[torch.Tensor]]]:
    """Streams that begin at random ticks, get pieces of random sizes, and of which every fifth is
    closed on the way. Returns the others, and the encoder output of all."""
    draw = random.Random(seed)
    starts = [draw.randrange(20) for _ in waves]
    rest: dict[Stream, torch.Tensor] = {}
    whole, outputs, tick = {}, {}, 0
    while tick < 20 or len(engine):
        for number, wave in enumerate(waves):
            if starts[number] == tick:
                stream = whole[number] = engine.open(str(number))
                rest[stream], outputs[stream] = wave, []
        for stream in list(engine.streams):
            size = int(40000 ** draw.random()) * draw.randrange(2)
            if not stream.buffer.is_finished:
                stream.accept(rest[stream][:size])
                rest[stream] = rest[stream][size:]
                if not len(rest[stream]):
                    stream.finish()
            if int(stream.name) % 5 == 4 and draw.random() < 0.1:
                engine.close(stream)
                del whole[int(stream.name)]
        before = len(engine.encoder.calls)
        computed, _ = engine.step()
        for call in engine.encoder.calls[before:]:
            assert len(call) == len(computed)  # no row is computed that has no chunk
            for stream, out in zip(computed, call):
                outputs[stream].append(out)
        tick += 1
    return list(whole.values()), outputs


@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-10), (torch.float32, 2e-5)])
@pytest.mark.parametrize("name", SETTINGS)
@torch.no_grad()
def test_streams_that_come_and_go_give_what_whole_utterances_give(name, dtype, bound):
    options, chunk = SETTINGS[name]
    encoder = tiny_encoder(chunk=chunk).to(dtype)
    search = search_for(options, dtype)
    draw = random.Random(name)
    waves = [speech(int(50000 * draw.random() ** 2), i, dtype) for i in range(30)]
    waves += [waves[0][:70], waves[0][:399]]
    engine = StreamingEngine(Recorder(encoder), search, num_slots=2)
    streams, outputs = run_at_random(engine, waves, seed=5)
    assert 25 <= len(streams) < 32 and engine.num_slots >= 8
    emitted = 0
    for stream in streams:
        wave = waves[int(stream.name)]
        out, lens = encoder(wave[None], torch.tensor([len(wave)]), *chunk)
        found = torch.cat([out[0, :0], *outputs[stream]])
        assert found.shape == (int(lens), out.shape[2])
        torch.testing.assert_close(found, out[0, : lens[0]], atol=bound, rtol=0)
        [expected] = search.results(search.advance(out, lens, search.init_state(1)))
        if dtype == torch.float64:  # in float32 a random joiner's decision may hang on rounding
            assert stream.result.tokens == expected.tokens
            assert stream.result.frames == expected.frames
            assert stream.result.log_probs == pytest.approx(expected.log_probs, abs=1e-5)
            emitted += len(expected.tokens)
    assert dtype == torch.float32 or emitted > 100


@torch.no_grad()
def test_a_stream_that_joins_or_leaves_moves_no_other_state():
    encoder = tiny_encoder(chunk=ChunkSettings(8, 2, 4)).double()
    engine = StreamingEngine(encoder, search_for({}, torch.float64), num_slots=4)
    old, other = engine.open("old"), engine.open("other")
    for stream in (old, other):
        stream.accept(speech(80 + 8 * 320, 1))
    engine.step()
    fields = (*engine._encoder_state.xlsr, engine._encoder_state.adapter)
    before, places = [f[old.slot].clone() for f in fields], [f.data_ptr() for f in fields]
    engine.close(other)
    new = engine.open("new")
    new.accept(speech(10000, 2))
    while new.buffer.has_chunk():
        engine.step()
    assert new.slot not in (None, old.slot)
    after = (*engine._encoder_state.xlsr, engine._encoder_state.adapter)
    assert [f.data_ptr() for f in after] == places
    assert all(torch.equal(f[old.slot], x) for f, x in zip(after, before))


class Cost:
    """Counts the function calls of a block."""

    def __enter__(self) -> Cost:
        self.calls = 0
        sys.setprofile(self._count)
        return self

    def _count(self, frame, event: str, arg) -> None:
        self.calls += event in ("call", "c_call")

    def __exit__(self, *exc) -> None:
        sys.setprofile(None)


@pytest.mark.parametrize(
    "endpoint", [EndpointOptions(), pytest.param(EndpointOptions(True), marks=pytest.mark.long)]
)
def test_a_step_costs_after_an_hour_what_it_costs_after_ten_seconds(monkeypatch, endpoint):
    """Function calls of a step and of reading it, tokens read, and numbers in the state."""
    monkeypatch.setattr(history.History.settle, "__defaults__", (32,))
    search = make(dict(decoding_method="ctc_greedy_search"))  # the fastest one
    chunk = 128  # 2.56 s
    engine = StreamingEngine(FrameEncoder(DIM, chunk), search, endpoint.rules(), num_slots=1)
    stream = engine.open("long")
    frames = random_frames([20 * chunk // 2])[0][0]
    frames[torch.arange(len(frames)) % 40 != 0] = silence(search)
    wave, costs, num_segments = audio_of(frames), [], 0
    stream.accept(wave[:80])
    for part in range(71):  # 51.2 s each
        stream.accept(wave[80:])
        most = [0, 0, 0]
        while stream.buffer.has_chunk():
            with Cost() if part in (0, 70) else contextlib.nullcontext() as cost:
                engine.step()
                engine.read([stream])
                num_segments += len(stream.take_segments())
            if cost is None:
                continue
            state = engine._search_state
            numbers = state.history.tokens.numel()
            now = [cost.calls, len(stream.live.tail.tokens), numbers]
            most = [max(a, b) for a, b in zip(most, now)]
        costs.append(most)
    first, *_, last = costs
    assert stream.arrived > 3600
    assert last[0] <= 1.1 * first[0] and first[0] > 100
    assert 0 < last[1] <= 32 + chunk // 2 and last[2] <= 32 + chunk // 2
    if engine.rules:
        assert num_segments > 1000 and stream.segments == []
    else:
        assert len(stream.live.settled.tokens) > 1000
        assert stream.live.hypothesis() == search.results(engine._search_state)[0]


def test_segments_are_taken_once_and_nothing_of_them_stays():
    search = make({})
    engine = StreamingEngine(
        FrameEncoder(DIM, 8), search, EndpointOptions(True, 0.4, 0.16, 0.8).rules()
    )
    frames = random_frames([400])[0][0]
    kept, taken = engine.open("kept"), engine.open("taken")
    for stream in (kept, taken):
        stream.accept(audio_of(frames))
        stream.finish()
    found = []
    while len(engine):
        engine.step()
        found += taken.take_segments()
        assert taken.segments == [] and taken.has_tokens == kept.has_tokens
    assert found == kept.segments and len(found) > 10
    assert taken.result.tokens == [] and Hypothesis.joined(found) == kept.result


def test_a_closed_stream_leaves_its_slot_to_the_next():
    engine = StreamingEngine(FrameEncoder(DIM, 8), make({}), num_slots=1)
    frames = random_frames([12])[0][0]
    found = []
    for _ in range(3):
        first = engine.open("a")
        first.accept(audio_of(frames)[: 80 + 8 * 320])
        engine.step()
        engine.close(first)
        second = engine.open("b")
        second.accept(audio_of(frames))
        second.finish()
        while len(engine):
            engine.step()
        found.append(second.result)
    assert engine.num_slots == 1 and found[0] == found[1] == found[2] and found[0].tokens


def test_a_stream_too_short_for_a_frame_has_no_tokens():
    engine = StreamingEngine(FrameEncoder(DIM, 8), make({}))
    stream = engine.open("short")
    stream.accept(torch.zeros(399, dtype=torch.float64))
    assert not engine.has_work() and engine.ready() == []
    assert engine.step() == ([], [])
    stream.finish()
    assert engine.has_work() and engine.ready() == []
    assert engine.step() == ([], [stream])
    assert stream.result.tokens == [] and not len(engine) and not engine.has_work()


def test_there_is_work_while_a_stream_has_a_chunk_or_is_over():
    engine = StreamingEngine(FrameEncoder(DIM, 8), make({}))
    first, second = engine.open("first"), engine.open("second")
    assert not engine.has_work()
    first.accept(audio_of(random_frames([8])[0][0]))
    assert engine.has_work() and engine.ready() == [first]
    assert engine.step() == ([first], []) and engine.step() == ([first], [])
    assert not engine.has_work() and engine.ready() == []
    second.finish()
    assert engine.has_work() and engine.ready() == []
    assert engine.step() == ([], [second]) and not engine.has_work()


class Failing(Recorder):
    """An encoder without memory for a chunk that holds a sample of 1e9, found late."""

    def streaming_forward(self, x, lens, states):
        """As the encoder's."""
        found = super().streaming_forward(x, lens, states)
        if (x == 1e9).any():
            raise RuntimeError("out of memory")
        return found


@pytest.mark.parametrize("lacks_slots", [False, True])
@pytest.mark.parametrize("name", SETTINGS)
def test_after_a_step_that_raises_the_other_streams_go_on(name, lacks_slots, monkeypatch):
    options, chunk = SETTINGS[name]
    encoder = tiny_encoder(chunk=chunk).double()
    search = search_for(options, torch.float64)
    waves = [speech(n, n) for n in (30000, 22222)]
    size = encoder.chunk_size * 320

    def without_memory(states):
        raise RuntimeError("out of memory")

    def recognised(with_failure: bool) -> list[Hypothesis]:
        engine = StreamingEngine(Failing(encoder), search, num_slots=2)
        streams = [engine.open(str(i)) for i in range(2)]
        for stream, wave in zip(streams, waves):
            stream.accept(wave[:10000])
        while engine.ready():
            engine.step()
        if with_failure:  # of streams for which there have to be more slots
            for _ in range(3):
                engine.open("failing").accept(torch.full((80 + size,), 1e9, dtype=torch.float64))
            failing = engine.ready()
            with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="memory"):
                if lacks_slots:
                    patch.setattr(search, "cat", without_memory)
                engine.step()
            for stream in failing:
                engine.close(stream)
            assert len(failing) == 3 and engine.num_slots == (2 if lacks_slots else 8)
        for stream, wave in zip(streams, waves):
            stream.accept(wave[10000:])
            stream.finish()
        while len(engine):
            engine.step()
        assert sorted(engine._free) == list(range(engine.num_slots))
        return [stream.result for stream in streams]

    assert recognised(True) == recognised(False)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("name", SETTINGS)
def test_samples_that_are_no_audio_change_no_other_stream(name, value):
    options, chunk = SETTINGS[name]
    encoder = tiny_encoder(chunk=chunk)
    search = search_for(options, torch.float32)

    def recognised(wave: torch.Tensor) -> list[tuple[list[int], list[int]]]:
        engine = StreamingEngine(encoder, search, EndpointOptions(True).rules(), num_slots=2)
        streams = [engine.open(str(i)) for i in range(2)]
        for stream, samples in zip(streams, (speech(30000, 1, torch.float32), wave)):
            stream.accept(samples)
            stream.finish()
        while len(engine):
            engine.step()
        new = engine.open("in the same slots")
        new.accept(speech(30000, 2, torch.float32))
        new.finish()
        while len(engine):
            engine.step()
        return [(s.result.tokens, s.result.frames) for s in (streams[0], new)]

    bad = speech(25000, 3, torch.float32)
    good, bad[9000] = recognised(bad), value
    assert recognised(bad) == good and good[0][0] and good[1][0]
