"""fast_beam_search beside the installed k2's on random networks and ragged batches; the seed is
in each test's name.

Runs only where k2 imports (requirements-k2.txt).
"""

from __future__ import annotations

import pytest
import torch

from xlsr_transducer.compat import import_k2
from xlsr_transducer.errors import UserError
from xlsr_transducer.model.decoder import Decoder
from xlsr_transducer.model.joiner import Joiner
from xlsr_transducer.search import SearchOptions, make_search
from xlsr_transducer.search.k2_fsa import LatticeSearch

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
                make_search(chosen, decoder, joiner),
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
