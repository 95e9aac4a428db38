"""fast_beam_search beside the installed k2's on random networks and ragged batches (the seed is
in each test's name), and the searches over k2's lattices beside brute force.

Runs only where k2 imports (requirements-k2.txt).
"""

from __future__ import annotations

import math

import pytest
import torch

from tests.support import golden_files
from tests.support.random_searches import WIDE, all_paths, assert_same, nbest
from xlsr_transducer.core.compat import import_k2
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.model.decoder import Decoder
from xlsr_transducer.model.joiner import Joiner
from xlsr_transducer.search import Heads, SearchOptions, make_search
from xlsr_transducer.search.k2.lattices import LatticeSearch, NbestSearch

try:
    import_k2("this test")
except UserError as e:
    pytest.skip(str(e), allow_module_level=True)


def random_case(seed: int) -> tuple[dict, Decoder, Joiner, torch.Tensor, torch.Tensor]:
    """Options, networks, encoder output and lengths: 3 to 5 streams, of which one has no frame
    and one a single frame, in any order; float64, so that rounding decides little."""
    torch.manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,)))

    def choice(*options):
        return options[integer(0, len(options) - 1)]

    vocab_size, dim = integer(3, 40), 4 * integer(1, 4)
    decoder = Decoder(vocab_size, dim, context_size=integer(1, 3)).double().eval()
    joiner = Joiner(dim, dim, 16, vocab_size).double().eval()
    with torch.no_grad():
        joiner.output_linear.weight *= choice(1.0, 4.0, 12.0)
        joiner.output_linear.bias[0] += choice(0.0, 1.0, 3.0)
    lens = [0, 1, *(integer(2, 20) for _ in range(integer(1, 3)))]
    lens = torch.tensor(lens)[torch.randperm(len(lens))]
    x = torch.randn(len(lens), int(lens.max()), dim, dtype=torch.float64)
    max_contexts = integer(1, 12)
    options = dict(
        beam=choice(1.0, 4.0, 10.0, 20.0),
        max_contexts=max_contexts,
        max_states=max_contexts + choice(0, 1, 5, 50),
        blank_penalty=choice(0.0, 0.0, 1.0),
        temperature=choice(1.0, 1.0, 2.0),
    )
    return options, decoder, joiner, x, lens


@pytest.mark.parametrize("seed", range(200))
def test_fast_beam_search_finds_what_the_installed_k2_finds(seed):
    options, decoder, joiner, x, lens = random_case(seed)
    has_end = [True] * len(lens)
    for flavour in ("strict", "partial", "whole"):
        chosen = SearchOptions("fast_beam_search", fast_beam_flavour=flavour, **options)
        ours, theirs = (
            search.results(search.advance(x, lens, search.init_state(len(lens))))
            for search in (
                make_search(chosen, Heads(decoder, joiner)),
                LatticeSearch(chosen, decoder, joiner),
            )
        )
        if flavour == "strict":
            has_end = [h.score > -float("inf") for h in theirs]
        for n, (a, b) in enumerate(zip(ours, theirs)):
            count = len(a.tokens)
            if flavour == "partial" and not has_end[n]:
                # The last arc that k2 takes here is arbitrary, so ours may have a token more.
                count -= int(lens[n]) - 1 in a.frames
            assert (a.tokens[:count], a.frames[:count]) == (b.tokens, b.frames), (flavour, n)
            assert a.score == pytest.approx(b.score, rel=1e-5, abs=1e-4), (flavour, n)
            assert a.log_probs[:count] == pytest.approx(b.log_probs, abs=1e-4), (flavour, n)


@pytest.mark.parametrize("seed", range(200, 230))
def test_one_path_drawn_at_a_large_scale_is_that_of_fast_beam_search(seed):
    options, decoder, joiner, x, lens = random_case(seed)
    for flavour in ("strict", "whole"):
        options["fast_beam_flavour"] = flavour
        one = SearchOptions("fast_beam_search_nbest", num_paths=1, nbest_scale=1e3, **options)
        found = nbest(make_search(one, Heads(decoder, joiner)), x, lens)
        expected = nbest(LatticeSearch(one, decoder, joiner), x, lens)
        assert_same([h for [h] in found], [h for [h] in expected])


@pytest.mark.parametrize("seed", range(230, 250))
def test_many_paths_are_ranked_different_and_none_better_than_the_best(seed):
    options, decoder, joiner, x, lens = random_case(seed)
    many = make_search(SearchOptions("fast_beam_search_nbest", **options), Heads(decoder, joiner))
    best = nbest(LatticeSearch(many.options, decoder, joiner), x, lens)
    for hyps, [first] in zip(nbest(many, x, lens), best):
        assert len({tuple(h.tokens) for h in hyps}) == len(hyps) <= 200
        scores = [h.score for h in hyps]
        assert scores == sorted(scores, reverse=True) and scores[0] <= first.score + 1e-4


@pytest.mark.parametrize("method", ["fast_beam_search_LG", "fast_beam_search_nbest"])
def test_batches_and_pieces_change_nothing(method):
    options, decoder, joiner, _, _ = random_case(8)
    kind = NbestSearch if "nbest" in method else LatticeSearch
    search = kind(SearchOptions(method, **options), decoder, joiner)
    lens = torch.tensor([17, 0, 1, 30, 8])
    width = joiner.encoder_proj.in_features
    x = torch.randn(5, 30, width, dtype=torch.float64)
    expected = nbest(search, x, lens)
    padded = x.clone()
    for n, length in enumerate(lens.tolist()):
        padded[n, length:] = float("nan")
        assert_same(nbest(search, x[n : n + 1], lens[n : n + 1])[0], expected[n])
    state = search.init_state(5)
    for at in range(0, 30, 7):
        piece = padded[:, at : at + 7]
        state = search.advance(piece, (lens - at).clamp(0, piece.shape[1]), state)
    state = search.cat([search.select(state, [3, 4]), search.select(state, [0, 1, 2])])
    for a, b in zip(search.nbest(state, 1000), [expected[n] for n in (3, 4, 0, 1, 2)]):
        assert_same(a, b)
    assert sum(len(hyps[0].tokens) for hyps in expected) > 20


def test_ctc_decoding_finds_what_greedy_search_and_the_golden_file_have():
    entry = golden_files.manifest()["ctc"]
    z = golden_files.arrays(entry["file"])
    logits, lens = (golden_files.tensor(z[f"in.{name}"]) for name in ("logits", "lens"))
    head = torch.nn.Linear(logits.shape[2], logits.shape[2])
    with torch.no_grad():
        head.weight.copy_(torch.eye(logits.shape[2]))
        head.bias.zero_()
    order = [2, 0, 1]  # not the longest first
    search, greedy = (
        make_search(SearchOptions(method), Heads(ctc_output=head))
        for method in ("ctc_decoding", "ctc_greedy_search")
    )
    found = [hyps[0] for hyps in nbest(search, logits[order], lens[order])]
    assert [h.tokens for h in found] == [entry["one_best"][n] for n in order]
    assert_same(found, [hyps[0] for hyps in nbest(greedy, logits[order], lens[order])])


def tiny_case() -> tuple[Decoder, Joiner, torch.Tensor, torch.Tensor]:
    """Four tokens and up to five frames: all paths can be listed."""
    torch.manual_seed(3)
    decoder, joiner = Decoder(4, 8).double().eval(), Joiner(8, 8, 8, 4).double().eval()
    with torch.no_grad():
        joiner.output_linear.weight *= 4
    return decoder, joiner, torch.randn(2, 5, 8, dtype=torch.float64), torch.tensor([5, 4])


@torch.no_grad()
@pytest.mark.parametrize("method", ["fast_beam_search_nbest", "fast_beam_search_nbest_LG"])
def test_scores_are_those_of_the_best_or_of_all_paths(method):
    """On the trivial graph, where nothing is pruned."""
    decoder, joiner, x, lens = tiny_case()
    search = NbestSearch(SearchOptions(method, **WIDE), decoder, joiner)
    for n, hyps in enumerate(nbest(search, x, lens)):
        scores: dict = {}
        for tokens, score in all_paths(search, x[n, : lens[n]]):
            scores.setdefault(tokens, []).append(score)
        for tokens, parts in scores.items():
            sums = math.log(sum(map(math.exp, parts)))
            scores[tokens] = sums if method.endswith("LG") else max(parts)
        assert tuple(hyps[0].tokens) == max(scores, key=scores.get)
        assert len(hyps) > 0.9 * len(scores)
        for h in hyps:
            assert h.score == pytest.approx(scores[tuple(h.tokens)], abs=1e-5)
