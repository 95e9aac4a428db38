"""Endpointing: Kaldi's rules frame by frame, whatever the chunks, pieces and neighbours."""

from __future__ import annotations

import random

import pytest
import torch

from tests.support.frame_encoder import FrameEncoder, audio_of
from tests.support.random_searches import DIM, VOCAB, make
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.recognition.endpoint import EndpointOptions
from xlsr_transducer.recognition.engine import StreamingEngine
from xlsr_transducer.search import Bias, Hypothesis, Search, make_search
from xlsr_transducer.search.context_graph import context_graph

SHORT = EndpointOptions(True, 0.4, 0.16, 0.8)  # 10, 4 and 20 frames
SETTINGS = {
    "greedy": dict(),
    "greedy-3-per-frame": dict(max_sym_per_frame=3),
    "beam": dict(decoding_method="beam_search", beam_size=2),
    "ctc-greedy": dict(decoding_method="ctc_greedy_search"),
    "ctc-prefix": dict(decoding_method="ctc_prefix_beam_search"),
    "modified-beam": dict(decoding_method="modified_beam_search"),
    "fast-beam": dict(decoding_method="fast_beam_search", beam=8.0),
    "fast-beam-strict": dict(
        decoding_method="fast_beam_search", fast_beam_flavour="strict", max_states=9
    ),
}
HOTWORDS = context_graph([([3, 5], 4.0), ([7], 3.0)], VOCAB)


def kaldi(options: EndpointOptions, length: int, trailing: int) -> list[int]:
    """The rules that hold, as Kaldi writes them: OnlineEndpointRule, in seconds."""
    silence, seconds = round(trailing * 0.04, 4), round(length * 0.04, 4)
    contains_nonsilence = seconds > silence
    rules = [
        (False, options.rule1_min_trailing_silence, 0.0),
        (True, options.rule2_min_trailing_silence, 0.0),
        (False, 0.0, options.rule3_min_utterance_length),
    ]
    return [
        number
        for number, (must_contain, least_silence, least_seconds) in enumerate(rules, 1)
        if (contains_nonsilence or not must_contain)
        and silence >= least_silence
        and seconds >= least_seconds
    ]


def search_of(setting: dict, with_hotwords: bool = False) -> Search:
    """A search over random networks, which do not emit anything in ``silence``."""
    search = make(setting)
    if with_hotwords:
        bias = Bias(VOCAB)
        return make_search(search.options, search, bias)
    return search


def silence(search: Search) -> torch.Tensor:
    """(D,) an encoder frame for which blank is by far the most probable, in every context."""
    generator = torch.Generator().manual_seed(0)
    frames = 30 * torch.randn(3000, DIM, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        if search.ctc_output is not None:
            logits = search.ctc_output(frames)
        else:
            logits = search.joiner.output_linear(search.joiner.encoder_proj(frames).tanh())
    lead = logits[:, 0] - logits[:, 1:].amax(1)
    assert lead.max() > 1
    return frames[lead.argmax()]


def talk(search: Search, seed: int, bursts: int = 6) -> torch.Tensor:
    """(T, D) encoder frames: bursts of speech and pauses of random lengths."""
    draw, quiet = random.Random(seed), silence(search)
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(bursts):
        length = draw.choice([1, 3, 8, 25])
        parts.append(torch.randn(length, DIM, generator=generator, dtype=torch.float64))
        parts.append(quiet.expand(draw.choice([1, 3, 4, 5, 12, 22]), -1))
    return torch.cat(parts[draw.randrange(2) :])


@torch.no_grad()
def plain(search: Search, frames: torch.Tensor, hotwords=None) -> tuple[list[Hypothesis], set]:
    """Segments and the rules that ended them, frame by frame, the search begun anew at each."""
    given = () if hotwords is None else ([hotwords],)
    fresh = search.init_state(1, "cpu", *given)
    segments, fired, start, state = [], set(), 0, fresh

    def shifted(h: Hypothesis) -> list[Hypothesis]:
        return [Hypothesis(h.tokens, [f + start for f in h.frames])] if h.tokens else []

    for t, frame in enumerate(frames):
        state = search.advance(frame[None, None], torch.tensor([1]), state)
        [best] = search.results(state)
        length = t + 1 - start
        trailing = length - 1 - best.frames[-1] if best.tokens else length
        if best.score == -float("inf"):
            trailing = 0
        rules = kaldi(SHORT, length, trailing)
        if rules:
            segments += shifted(best)
            fired.update(rules)
            start, state = t + 1, fresh
    return segments + shifted(search.results(state)[0]), fired


def streamed(
    search: Search,
    waves: list[torch.Tensor],
    piece: int,
    chunk_size: int,
    options: EndpointOptions = SHORT,
    hotwords=None,
) -> list[list[Hypothesis]]:
    """Segments of streams that begin one step after another, in pieces of ``piece`` samples."""
    engine = StreamingEngine(FrameEncoder(DIM, chunk_size), search, options.rules(), 2)
    streams, waiting = [], list(waves)
    pieces = {}
    while waiting or len(engine):
        if waiting:
            streams.append(engine.open(str(len(streams)), hotwords))
            pieces[streams[-1]] = iter(waiting.pop(0).split(piece))
        for stream in engine.streams:
            while not (stream.buffer.has_chunk() or stream.buffer.is_finished):
                part = next(pieces[stream], None)
                stream.finish() if part is None else stream.accept(part)
        engine.step()
    return [s.segments for s in streams]


def assert_same(found: list[list[Hypothesis]], expected: list[list[Hypothesis]]) -> None:
    assert [[(h.tokens, h.frames) for h in segments] for segments in found] == [
        [(h.tokens, h.frames) for h in segments] for segments in expected
    ]


def test_the_rules_are_kaldis():
    options = EndpointOptions(True)
    rules = options.rules()
    for length in range(1, 520):
        trailing = torch.arange(length + 1)
        found = rules.is_endpoint(torch.full_like(trailing, length), trailing)
        expected = [bool(kaldi(options, length, t)) for t in trailing.tolist()]
        assert found.tolist() == expected


def test_no_endpoint_comes_before_it_may():
    """All that a stream may do in the frames that are searched at once."""
    rules = SHORT.rules()
    draw = random.Random(0)
    for _ in range(2000):
        length = draw.randrange(20)
        trailing = [draw.choice([length, draw.randrange(max(length, 1))]) for _ in range(3)]
        now = torch.tensor([length]), torch.tensor([trailing])
        until = int(rules.frames_until(*now))
        assert until >= 1
        for t in trailing:
            for frame in range(1, until):
                # Blanks, or a token in any frame.
                for after in (t + frame, *range(frame)):
                    ends = rules.is_endpoint(now[0] + frame, torch.tensor([after]))
                    assert not bool(ends)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.long] * (n == "beam")) for n in SETTINGS]
)
def test_segments_are_those_of_a_search_frame_by_frame(name):
    search = search_of(SETTINGS[name])
    frames = [talk(search, seed) for seed in range(2 if name == "beam" else 4)]
    expected, fired = zip(*(plain(search, x) for x in frames))
    assert set.union(*fired) == {1, 2, 3} and min(map(len, expected)) > 2
    waves = [audio_of(x) for x in frames]
    for piece, chunk_size in ((160, 8), (7777, 32), (10**7, 64)):
        assert_same(streamed(search, waves, piece, chunk_size), expected)
    assert_same(streamed(search, waves[:1], 3000, 2), expected[:1])


@pytest.mark.parametrize("name", ["modified-beam", "ctc-prefix"])
def test_hotwords_begin_anew_with_the_segment(name):
    search = search_of(SETTINGS[name], with_hotwords=True)
    frames = [talk(search, seed) for seed in range(3)]
    expected = [plain(search, x, HOTWORDS)[0] for x in frames]
    assert expected != [plain(search, x)[0] for x in frames]
    found = streamed(search, [audio_of(x) for x in frames], 1000, 16, hotwords=HOTWORDS)
    assert_same(found, expected)


@pytest.mark.parametrize("name", SETTINGS)
def test_off_by_default_and_then_a_stream_is_one_segment(name):
    search = search_of(SETTINGS[name])
    frames = talk(search, 0)
    off = EndpointOptions()
    assert off.rules() is None and off.suffix() == []
    [[found]] = streamed(search, [audio_of(frames)], 1000, 16, off)
    lens = torch.tensor([len(frames)])
    [expected] = search.results(search.advance(frames[None], lens, search.init_state(1)))
    assert (found.tokens, found.frames) == (expected.tokens, expected.frames)


def test_a_rule_of_no_seconds_is_refused():
    with pytest.raises(UserError, match="--rule1-min-trailing-silence 0: must be above 0"):
        EndpointOptions(True, rule1_min_trailing_silence=0)
