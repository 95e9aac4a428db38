"""The batched searches against plain Python ones, hypothesis by hypothesis, from the papers."""

from __future__ import annotations

import pytest

from tests.support.random_searches import LENS, add, log_probs_of, make, speech, whole
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.search import Heads, SearchOptions, make_search


def plain_greedy(search, frames):
    tokens, times, score = [], [], 0.0
    for t, frame in enumerate(frames):
        for _ in range(search.options.max_sym_per_frame):
            probs = log_probs_of(search, frame, tokens)
            best = max(range(len(probs)), key=probs.__getitem__)
            score += probs[best]
            if best == 0:
                break
            tokens.append(best)
            times.append(t)
    return [(tuple(tokens), score, times)]


def plain_modified_beam(search, frames):
    pool = {(): (0.0, [])}
    for t, frame in enumerate(frames):
        grown = []
        for tokens, (score, times) in pool.items():
            for v, p in enumerate(log_probs_of(search, frame, tokens)):
                end = ((v,), [t]) if v else ((), [])
                grown.append((score + p, tokens + end[0], times + end[1]))
        pool = {}
        for score, tokens, times in sorted(grown, reverse=True)[: search.options.beam_size]:
            add(pool, tokens, score, times)
    return [(tokens, score, times) for tokens, (score, times) in pool.items()]


def plain_beam(search, frames):
    size, ready = search.options.beam_size, {(): (0.0, [])}
    for t, frame in enumerate(frames):
        waiting, ready = ready, {}
        while True:
            tokens = max(waiting, key=lambda k: waiting[k][0])
            score, times = waiting.pop(tokens)
            probs = log_probs_of(search, frame, tokens)
            add(ready, tokens, score + probs[0], times)
            order = sorted(range(len(probs)), key=lambda v: -probs[v])
            for v in order[: size + 1]:
                if v:
                    add(waiting, tokens + (v,), score + probs[v], times + [t])
            limit = max(score for score, _ in waiting.values())
            better = [k for k in ready if ready[k][0] > limit]
            if len(better) >= size:
                better.sort(key=lambda k: -ready[k][0])
                ready = {k: ready[k] for k in better[:size]}
                break
    return [(tokens, score, times) for tokens, (score, times) in ready.items()]


@pytest.mark.parametrize(
    "plain, setting",
    [
        (plain_greedy, dict()),
        (plain_greedy, dict(max_sym_per_frame=2, blank_penalty=0.7)),
        (plain_greedy, dict(max_sym_per_frame=5, temperature=2.0)),
        (plain_modified_beam, dict(decoding_method="modified_beam_search")),
        (plain_modified_beam, dict(decoding_method="modified_beam_search", beam_size=9)),
        (plain_modified_beam, dict(decoding_method="modified_beam_search", temperature=1.7)),
        (plain_beam, dict(decoding_method="beam_search", blank_penalty=-5.0)),
        (plain_beam, dict(decoding_method="beam_search", beam_size=2, blank_penalty=-4.5)),
        (plain_beam, dict(decoding_method="beam_search", beam_size=5, blank_penalty=-6.0)),
    ],
)
def test_batched_search_finds_what_the_plain_one_finds(plain, setting):
    search = make(setting)
    x, lens = speech(LENS)
    state = whole(search, x, lens)
    some = 0
    for n, hyps in enumerate(search.nbest(state, 100)):
        norm = search.context_size
        expected = plain(search, x[n, : LENS[n]])
        expected.sort(key=lambda h: -h[1] / (len(h[0]) + norm))
        assert [tuple(h.tokens) for h in hyps] == [h[0] for h in expected]
        assert [h.frames for h in hyps] == [h[2] for h in expected]
        assert [h.score for h in hyps] == pytest.approx([h[1] for h in expected], abs=1e-4)
        norms = [h[1] / (len(h[0]) + norm) for h in expected]
        assert [h.norm_score for h in hyps] == pytest.approx(norms, abs=1e-4)
        for h in hyps:
            tokens = tuple(h.tokens)
            probs = [
                log_probs_of(search, x[n, t], tokens[:i])[tokens[i]]
                for i, t in enumerate(h.frames)
            ]
            assert h.log_probs == pytest.approx(probs, abs=1e-5)
        some += len(hyps[0].tokens)
    assert some > 8


@pytest.mark.parametrize("o", [dict(), dict(blank_penalty=0.4), dict(temperature=2.5)])
def test_ctc_search_says_the_best_labels_without_repeats_and_blanks(o):
    search = make(dict(decoding_method="ctc_greedy_search", **o))
    x, lens = speech(LENS)
    # A label over several frames, and again after a blank.
    x[3, 2:8] = 40 * search.ctc_output.weight[[0, 5, 5, 0, 5, 5]].detach()
    repeats = 0
    for n, found in enumerate(search.results(whole(search, x, lens))):
        logits = search.ctc_output(x[n, : LENS[n]]).detach()
        logits[:, 0] -= search.options.blank_penalty
        probs, labels = (logits / search.options.temperature).log_softmax(1).max(1)
        starts = [
            t for t in range(LENS[n]) if labels[t] != 0 and (t == 0 or labels[t - 1] != labels[t])
        ]
        assert found.frames == starts
        assert found.tokens == labels[starts].tolist()
        assert found.log_probs == pytest.approx(probs[starts].tolist(), abs=1e-5)
        assert found.score == pytest.approx(float(probs.sum()), abs=1e-9)
        repeats += int((labels != 0).sum()) - len(starts)
        if n == 3:
            assert found.tokens[found.frames.index(3) :][:2] == [5, 5] and 6 in found.frames
    assert repeats


def test_ctc_search_without_a_ctc_head_is_refused_by_name():
    search = make(dict())
    options = SearchOptions(decoding_method="ctc_greedy_search")
    with pytest.raises(UserError, match="ctc_greedy_search needs a model with a CTC head"):
        make_search(options, Heads(search.decoder, search.joiner))


def test_nbest_gives_as_many_as_asked_and_starts_with_the_result():
    search = make(dict(decoding_method="modified_beam_search", beam_size=6))
    x, lens = speech(LENS)
    state = whole(search, x, lens)
    assert [len(hyps) for hyps in search.nbest(state, 3)] == [3] * len(LENS)
    assert [hyps[0] for hyps in search.nbest(state, 3)] == search.results(state)


def test_an_untrained_network_that_never_says_blank_does_not_hold_beam_search_for_ever():
    search = make(dict(decoding_method="beam_search", beam_size=2, blank_penalty=50.0))
    x, lens = speech([3])
    assert search.results(whole(search, x, lens))[0].score < 0
