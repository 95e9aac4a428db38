"""Prefix beam search over a CTC head: beside sums over all alignments, plain Python, and others'
implementations (see golden/README.md)."""

from __future__ import annotations

import itertools
import math
from functools import cache

import pytest
import torch
from torch import nn

from tests.search.test_context_graph import PHRASES, plain_bonus
from tests.support import golden_files
from tests.support.language_models import NAMES, Plain, make_arpa, sentences, tiny_lm
from tests.support.random_searches import DIM, LENS, VOCAB, assert_same, make, speech, whole
from xlsr_transducer.recognition.alignment import ctc_best_path
from xlsr_transducer.search import Bias, Heads, SearchOptions, history, make_search
from xlsr_transducer.search.context_graph import context_graph
from xlsr_transducer.search.lm.fusion import ScaledLm
from xlsr_transducer.search.lm.ngram import read_ngram_lm

METHOD = "ctc_prefix_beam_search"
ROWS = sentences(40)


def prefix_search(bias: Bias | None = None, **setting):
    """The search over the random networks of the other tests."""
    plain = make(dict(decoding_method=METHOD) | setting)
    return make_search(plain.options, plain, bias)


def log_probs_of(search, frames: torch.Tensor) -> torch.Tensor:
    """(T, V) log-probs after penalty and temperature."""
    with torch.no_grad():
        logits = search.ctc_output(frames)
    logits[:, 0] -= search.options.blank_penalty
    return (logits / search.options.temperature).log_softmax(1)


def given_log_probs(log_probs: torch.Tensor, lens: list[int], **setting) -> list:
    """All hypotheses of the search where (N, T, V) ``log_probs`` are what the head says."""
    head = nn.Linear(log_probs.shape[2], log_probs.shape[2], dtype=log_probs.dtype)
    with torch.no_grad():
        head.weight.copy_(torch.eye(log_probs.shape[2]))
        head.bias.zero_()
    search = make_search(SearchOptions(METHOD, **setting), Heads(ctc_output=head))
    return search.nbest(whole(search, log_probs, torch.tensor(lens)), 10**6)


@pytest.mark.parametrize("seed", range(3))
def test_a_wide_beam_finds_every_prefix_with_the_sum_over_all_its_alignments(seed):
    lens, vocab_size = [5, 1, 0, 4], 4
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(4, 5, vocab_size, generator=generator, dtype=torch.float64)
    log_probs = x.log_softmax(-1)
    for n, found in enumerate(given_log_probs(log_probs, lens, beam_size=400)):
        alignments: dict[tuple[int, ...], list] = {}
        for labels in itertools.product(range(vocab_size), repeat=lens[n]):
            score = math.fsum(float(log_probs[n, t, k]) for t, k in enumerate(labels))
            begins = [t for t, k in enumerate(labels) if k and (t == 0 or labels[t - 1] != k)]
            tokens = tuple(labels[t] for t in begins)
            alignments.setdefault(tokens, []).append((score, begins))
        assert {tuple(h.tokens) for h in found} == alignments.keys()
        assert len(found) == len(alignments)
        for h in found:
            ways = alignments[tuple(h.tokens)]
            assert h.score == pytest.approx(math.log(sum(math.exp(s) for s, _ in ways)), abs=1e-9)
            assert h.norm_score == pytest.approx(h.score / (len(h.tokens) + 1))
            assert h.frames == max(ways)[1]
            probs = [float(log_probs[n, t, k]) for t, k in zip(h.frames, h.tokens)]
            assert h.log_probs == pytest.approx(probs, abs=1e-6)
        scores = [h.score for h in found]
        assert scores == sorted(scores, reverse=True)
        assert sum(map(math.exp, scores)) == pytest.approx(1)


def enter(pool: dict, tokens: tuple, kind: int, total: float, best: float, times: list) -> None:
    """Puts alignments of ``tokens`` into the pool."""
    ways = pool.setdefault(tokens, [(-math.inf, -math.inf, [])] * 2)
    at_best = max((ways[kind][1:], (best, times)), key=lambda x: x[0])
    ways[kind] = (logaddexp(ways[kind][0], total), *at_best)


def plain_prefix_beam(log_probs, beam_size, gain=lambda before, now: 0.0):
    """Prefix by prefix: sums and best alignments that end in blank (0) and in a token (1).

    Args:
      gain: what growing from a token sequence into another one adds.
    """
    pool = {(): [(0.0, 0.0, []), (-math.inf, -math.inf, [])]}
    for t, frame in enumerate(log_probs.tolist()):
        grown: dict = {}
        for tokens, ways in pool.items():
            for kind, (total, best, times) in enumerate(ways):
                if total == -math.inf:
                    continue
                for v, p in enumerate(frame):
                    if v == 0 or (kind == 1 and v == tokens[-1]):
                        enter(grown, tokens, min(v, 1), total + p, best + p, times)
                    else:
                        now = tokens + (v,)
                        p += gain(tokens, now)
                        enter(grown, now, 1, total + p, best + p, [*times, t])
        order = sorted(grown, key=lambda k: -logaddexp(*(w[0] for w in grown[k])))
        pool = {tokens: grown[tokens] for tokens in order[:beam_size]}
    found = []
    for tokens, ways in pool.items():
        times = max(ways, key=lambda way: way[1])[2]
        found.append((tokens, logaddexp(ways[0][0], ways[1][0]), times))
    return found


def logaddexp(a: float, b: float) -> float:
    return max(a, b) + math.log1p(math.exp(-abs(a - b))) if math.isfinite(a + b) else max(a, b)


def assert_finds(search, found, expected) -> None:
    """``expected``: tokens, score, frames of each prefix of one stream, in any order."""
    expected = sorted(expected, key=lambda h: -h[1])
    assert [tuple(h.tokens) for h in found] == [h[0] for h in expected]
    assert [h.frames for h in found] == [h[2] for h in expected]
    assert [h.score for h in found] == pytest.approx([h[1] for h in expected], abs=1e-5)


@pytest.mark.parametrize(
    "setting",
    [
        dict(beam_size=1),
        dict(beam_size=4),
        dict(beam_size=9, blank_penalty=1.5),
        dict(beam_size=30, temperature=0.3),
    ],
)
def test_a_narrow_beam_finds_what_the_plain_search_finds(setting):
    search = prefix_search(**setting)
    x, lens = speech(LENS)
    x[3, 2:8] = 40 * search.ctc_output.weight[[0, 5, 5, 0, 5, 5]].detach()
    for n, found in enumerate(search.nbest(whole(search, x, lens), 100)):
        log_probs = log_probs_of(search, x[n, : LENS[n]])
        expected = plain_prefix_beam(log_probs, search.options.beam_size)
        assert_finds(search, found, expected)
    assert any(h.tokens[h.frames.index(3) :][:2] == [5, 5] for h in found if 3 in h.frames)


def biases(tmp_path):
    """Hotwords, an n-gram model and a neural one together, and by their definitions."""
    lm = read_ngram_lm(make_arpa(tmp_path / "lm.arpa", ROWS, 2), NAMES).scaled(0.4)
    model, plain = tiny_lm(), Plain(ROWS, 2)
    bias = Bias(VOCAB, context_graph(PHRASES, VOCAB), lm, ScaledLm(model, 0.2))

    @cache
    def neural(emitted: tuple[int, ...]) -> list[float]:
        with torch.no_grad():
            out, _ = model.lstm(model.embedding(torch.tensor([[1, *emitted]])))
            logits = model.output(out[0, -1])
            logits[0] = -math.inf
            return logits.log_softmax(-1).tolist()

    @cache
    def gain(before: tuple[int, ...], now: tuple[int, ...]) -> float:
        token = max(now[-1], 2)  # what is never emitted weighs as much as <unk>
        added = plain_bonus(PHRASES, now, False) - plain_bonus(PHRASES, before, False)
        added += 0.4 * math.log(plain.prob((0, *before)[-1:], token))
        return added + 0.2 * neural(before)[token]

    return bias, gain


@pytest.mark.parametrize("beam_size", [1, 6])
def test_hotwords_and_language_models_add_what_their_definitions_say(tmp_path, beam_size):
    bias, gain = biases(tmp_path)
    search, unbiased = prefix_search(bias, beam_size=beam_size), prefix_search(beam_size=beam_size)
    x, lens = speech(LENS)
    without, different = unbiased.results(whole(unbiased, x, lens)), 0
    for n, found in enumerate(search.nbest(whole(search, x, lens), 100)):
        log_probs = log_probs_of(search, x[n, : LENS[n]])
        expected = [
            (k, score + plain_bonus(PHRASES, k, True) - plain_bonus(PHRASES, k, False), times)
            for k, score, times in plain_prefix_beam(log_probs, beam_size, gain)
        ]
        assert_finds(search, found, expected)
        different += found[0].tokens != without[n].tokens
    assert different


def test_a_bias_of_nothing_changes_nothing():
    x, lens = speech([41, 30, 1, 0])
    search, plain = prefix_search(Bias(VOCAB)), prefix_search()
    assert search.nbest(whole(search, x, lens), 4) == plain.nbest(whole(plain, x, lens), 4)


def test_each_stream_has_its_own_hotwords_and_comes_and_goes(tmp_path):
    search = prefix_search(biases(tmp_path)[0])
    own = [context_graph([([9, 2], 6.0), ([7], 4.0)], VOCAB), None, context_graph([], VOCAB)]
    x, lens = speech([30, 30, 30])
    x[1:] = x[0]
    expected = search.results(search.advance(x, lens, search.init_state(3, hotwords=own)))
    assert len({tuple(h.tokens) for h in expected}) == 3
    state = search.init_state(2, hotwords=own[:2])
    state = search.advance(x[:2, :7], torch.tensor([7, 7]), state)
    state = search.cat([state, search.init_state(1, hotwords=own[2:])])
    for done, sizes in (([7, 7, 0], [3, 0, 9]), ([10, 7, 9], [20, 23, 21])):
        piece = torch.zeros(3, 23, DIM, dtype=torch.float64)
        for n, (at, size) in enumerate(zip(done, sizes)):
            piece[n, :size] = x[n, at : at + size]
        state = search.advance(piece, torch.tensor(sizes), state)
    assert_same(search.results(state), expected)
    swapped = search.put(
        search.select(state, [0, 1]), torch.tensor([1]), search.select(state, [2])
    )
    assert_same(search.results(swapped), [expected[0], expected[2]])


def test_the_sum_finds_what_the_best_alignment_alone_misses():
    # Two alignments of `1` together beat the one of nothing, which is the best of all.
    log_probs = torch.tensor([[[0.55, 0.45], [0.55, 0.45]]], dtype=torch.float64).log()
    [[best, other]] = given_log_probs(log_probs, [2])
    assert best.tokens == [1] and math.exp(best.score) == pytest.approx(1 - 0.55**2)
    assert other.tokens == [] and math.exp(other.score) == pytest.approx(0.55**2)


def test_frames_are_those_of_forced_alignment():
    search = prefix_search(beam_size=40)
    x, lens = speech([12, 7])
    for n, found in enumerate(search.nbest(whole(search, x, lens), 5)):
        log_probs = log_probs_of(search, x[n, : lens[n]])
        for h in found:
            tokens, count = torch.tensor([h.tokens]), torch.tensor([len(h.tokens)])
            _, frames = ctc_best_path(log_probs[None], lens[n : n + 1], tokens, count, 0)
            assert h.frames == frames[0].tolist()


def test_all_tokens_of_a_single_prefix_are_stable_at_once():
    search = prefix_search(beam_size=1)
    x, lens = speech([25])
    state = search.init_state(1)
    for frame in x.split(1, dim=1):
        state = search.advance(frame, torch.tensor([1]), state)
        [best] = search.tails(state)
        assert best.num_stable == len(best.tokens)
    assert len(best.tokens) > 10


def test_long_streams_lose_no_precision_and_their_state_stays_small(monkeypatch):
    monkeypatch.setattr(history.History.settle, "__defaults__", (16,))
    search = prefix_search(beam_size=3)
    x, _ = speech([30], seed=7)
    state, sizes, scores = search.init_state(1), [], [0.0]
    for _ in range(16):
        state = search.advance(x, torch.tensor([30]), state)
        sizes.append(state.history.tokens.shape[2])
        scores.append(float(search.rank(state)[1][0, 0]))
    assert int(state.history.num_settled) > 100 and max(sizes[8:]) <= max(sizes[:8]) + 2
    gains = [b - a for a, b in zip(scores, scores[1:])]
    assert gains[-1] == pytest.approx(gains[8], abs=1e-9)


@pytest.mark.parametrize("name", golden_files.ctc_prefix_cases())
def test_it_finds_what_other_implementations_find(name):
    z = golden_files.arrays(golden_files.manifest()["ctc_prefix"]["file"])
    log_probs = golden_files.tensor(z[f"{name}.log_probs"])
    [found] = given_log_probs(log_probs[None], [len(log_probs)], beam_size=500)
    lens = z[f"{name}.lens"].tolist()
    assert [len(h.tokens) for h in found[: len(lens)]] == lens
    assert sum((h.tokens for h in found[: len(lens)]), []) == z[f"{name}.tokens"].tolist()
    scores = [h.score for h in found[: len(lens)]]
    assert scores == pytest.approx(z[f"{name}.scores"].tolist(), abs=1e-4)
