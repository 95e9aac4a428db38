"""Every search: pieces equal the whole, batches equal single streams, states can be repacked."""

from __future__ import annotations

import pytest
import torch

from tests.support.random_searches import DIM, assert_same, make, speech, whole
from xlsr_transducer.search import history

SETTINGS = {
    "greedy": dict(),
    "greedy-3-per-frame": dict(max_sym_per_frame=3),
    "beam": dict(decoding_method="beam_search", beam_size=2, blank_penalty=-5.0),
    "ctc-greedy": dict(decoding_method="ctc_greedy_search"),
    "ctc-prefix": dict(decoding_method="ctc_prefix_beam_search"),
    "ctc-prefix-1": dict(decoding_method="ctc_prefix_beam_search", beam_size=1),
    "ctc-prefix-wider-than-vocabulary": dict(
        decoding_method="ctc_prefix_beam_search", beam_size=20, blank_penalty=0.5
    ),
    "modified-beam": dict(decoding_method="modified_beam_search"),
    "modified-beam-1": dict(decoding_method="modified_beam_search", beam_size=1),
    "modified-beam-wider-than-vocabulary": dict(
        decoding_method="modified_beam_search", beam_size=20, blank_penalty=0.5
    ),
    "fast-beam": dict(decoding_method="fast_beam_search", beam=8.0),
    "fast-beam-crowded": dict(
        decoding_method="fast_beam_search", beam=30.0, max_contexts=5, max_states=6
    ),
    "fast-beam-strict": dict(
        decoding_method="fast_beam_search", fast_beam_flavour="strict", max_states=9
    ),
    "fast-beam-partial": dict(
        decoding_method="fast_beam_search", fast_beam_flavour="partial", max_states=9
    ),
}


@pytest.fixture(params=SETTINGS)
def setting(request):
    return SETTINGS[request.param]


@pytest.mark.parametrize("sizes", [[1], [4], [3, 0, 7, 1]])
def test_pieces_of_any_size_give_what_the_whole_gives(setting, sizes):
    search = make(setting)
    x, lens = speech([41, 30, 1, 0])
    state, at, i = search.init_state(4), 0, 0
    while at < x.shape[1]:
        size = sizes[i % len(sizes)]
        piece = x[:, at : at + size]
        state = search.advance(piece, (lens - at).clamp(0, piece.shape[1]), state)
        at, i = at + size, i + 1
    expected = search.results(whole(search, x, lens))
    assert any(h.tokens for h in expected)
    assert_same(search.results(state), expected)


def test_a_stream_in_a_batch_gives_what_it_gives_alone(setting):
    search = make(setting)
    x, lens = speech([33, 5, 20, 0, 1, 27])
    batched = search.results(whole(search, x, lens))
    padded = x.clone()
    for n, length in enumerate(lens.tolist()):
        padded[n, length:] = float("nan")
    assert_same(search.results(whole(search, padded, lens)), batched)
    for n, length in enumerate(lens.tolist()):
        alone = search.results(whole(search, x[n : n + 1, :length], lens[n : n + 1]))
        assert_same(alone, batched[n : n + 1])


def test_a_stream_that_ends_can_be_replaced_at_the_next_step(setting):
    """Three streams through two places, eight frames at a time."""
    search = make(setting)
    x, lens = speech([16, 40, 25])
    state, places, waiting, at = search.init_state(2), [0, 1], [2], [0, 0, 0]
    found = {}
    while places:
        step = torch.stack([torch.cat([x[n], x[n]])[at[n] : at[n] + 8] for n in places])
        size = torch.tensor([min(8, int(lens[n]) - at[n]) for n in places])
        state = search.advance(step, size, state)
        for n in places:
            at[n] += 8
        results = search.results(state)
        ended = [i for i, n in enumerate(places) if at[n] >= lens[n]]
        if not ended:
            continue
        found.update({places[i]: results[i] for i in ended})
        keep = [i for i in range(len(places)) if i not in ended]
        new, waiting = waiting[: len(ended)], waiting[len(ended) :]
        state = search.cat([search.select(state, keep), search.init_state(len(new))])
        places = [places[i] for i in keep] + new
    assert_same([found[n] for n in range(3)], search.results(whole(search, x, lens)))


def test_partial_results_are_valid_at_any_time_and_leave_the_state_alone(setting):
    search = make(setting)
    x, lens = speech([30, 12])
    state = search.advance(x[:, :9], torch.tensor([9, 4]), search.init_state(2))
    partial = search.results(state)
    assert_same(partial, search.results(whole(search, x, torch.tensor([9, 4]))))
    search.advance(x[:, 9:], torch.tensor([21, 8]), state)
    assert_same(search.results(state), partial)


def test_settling_old_tokens_changes_no_result_and_keeps_the_state_small(setting, monkeypatch):
    search = make(setting)
    x, lens = speech([200, 150])
    expected = search.results(whole(search, x, lens))
    monkeypatch.setattr(history.History.settle, "__defaults__", (8,))
    state = search.init_state(2)
    for at in range(0, 200, 10):
        piece = x[:, at : at + 10]
        state = search.advance(piece, (lens - at).clamp(0, 10), state)
    assert_same(search.results(state), expected)
    assert state.history.num_settled.max() > 5
    if search.options.beam_size <= 4:  # a wide beam keeps early alternatives
        assert state.history.tokens.shape[2] < len(expected[0].tokens) * 0.7


def test_no_later_frame_changes_stable_tokens(setting, monkeypatch):
    search = make(setting)
    monkeypatch.setattr(history.History.settle, "__defaults__", (8,))
    x, lens = speech([120, 77], seed=4)
    state, stable, most, at = search.init_state(2), [[], []], 0, 0
    for size in [1, 2, 3, 5, 8, 13] * 4:
        state = search.advance(x[:, at : at + size], (lens - at).clamp(0, size), state)
        at += size
        tails = search.tails(state)
        if setting.get("fast_beam_flavour") == "strict":  # which may lose all at an end
            assert [tail.num_stable for tail in tails] == [0, 0]
            continue
        for n, best in enumerate(search.results(state)):
            assert best.tokens[: len(stable[n])] == stable[n]
            count = int(state.history.num_settled[n]) + tails[n].num_stable
            assert len(stable[n]) <= count <= len(best.tokens)
            stable[n] = best.tokens[:count]
            most = max(most, count)
    assert most > 3 or setting.get("fast_beam_flavour") == "strict"


def test_a_batch_of_no_streams_and_pieces_of_no_frames_are_fine(setting):
    search = make(setting)
    nothing = torch.zeros(0, 5, DIM, dtype=torch.float64)
    state = search.advance(nothing, torch.zeros(0, dtype=torch.int64), search.init_state(0))
    assert search.results(state) == []
    state = search.advance(
        nothing.new_zeros(2, 0, DIM), torch.tensor([0, 0]), search.init_state(2)
    )
    assert [h.tokens for h in search.results(state)] == [[], []]


def test_wrong_lengths_are_refused(setting):
    search = make(setting)
    x, _ = speech([10, 10])
    with pytest.raises(ValueError, match="length 11 exceeds the 10 frames"):
        search.advance(x, torch.tensor([11, 3]), search.init_state(2))
    with pytest.raises(ValueError, match="2 streams"):
        search.advance(x, torch.tensor([10]), search.init_state(2))


@pytest.mark.parametrize("context_size", [1, 3])
def test_other_context_sizes_work(setting, context_size):
    search = make(setting, context_size=context_size)
    x, lens = speech([25, 9])
    found = search.results(whole(search, x, lens))
    assert found[0].tokens and len(found[0].tokens) == len(found[0].frames)
