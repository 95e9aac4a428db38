"""Searches over random networks, plain Python to compare them with, and the comparison."""

from __future__ import annotations

import math

import pytest
import torch

from xlsr_transducer.model.decoder import Decoder
from xlsr_transducer.model.joiner import Joiner
from xlsr_transducer.search import Bias, Heads, SearchOptions, make_search

VOCAB, DIM = 12, 16
LENS = [23, 9, 1, 30]
MODIFIED = dict(decoding_method="modified_beam_search")
WIDE = dict(beam=1e3, max_contexts=100, max_states=1000, num_paths=3000)


def make(setting: dict, blank_bias: float = 2.0, context_size: int = 2):
    """A search over random networks in float64, so that rounding decides nothing."""
    torch.manual_seed(20)
    decoder = Decoder(VOCAB, DIM, context_size).double().eval()
    joiner = Joiner(DIM, DIM, 24, VOCAB).double().eval()
    ctc_output = torch.nn.Linear(DIM, VOCAB).double()
    with torch.no_grad():
        joiner.output_linear.weight *= 12
        joiner.output_linear.bias[0] += blank_bias
        ctc_output.bias[0] += 0.5
    return make_search(SearchOptions(**setting), Heads(decoder, joiner, ctc_output))


def biased(bias: Bias | None, **setting):
    search = make(MODIFIED | setting)
    return make_search(search.options, search, bias)


def speech(lens: list[int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(len(lens), max(lens), DIM, generator=generator, dtype=torch.float64)
    return x, torch.tensor(lens)


def whole(search, x, lens):
    return search.advance(x, lens, search.init_state(len(lens)))


def nbest(search, x: torch.Tensor, lens: torch.Tensor, n: int = 1000) -> list:
    return search.nbest(search.advance(x, lens, search.init_state(len(lens))), n)


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert (a.tokens, a.frames) == (b.tokens, b.frames)
        assert a.score == pytest.approx(b.score, abs=1e-3)
        assert a.norm_score == pytest.approx(b.norm_score, abs=1e-3)
        assert a.log_probs == pytest.approx(b.log_probs, abs=1e-5)


def log_probs_of(search, frame, tokens: tuple[int, ...]) -> list[float]:
    """Log-probs of all tokens after ``tokens``, after penalty and temperature."""
    o = search.options
    context = ([-1] * (search.context_size - 1) + [0] + list(tokens))[-search.context_size :]
    with torch.no_grad():
        decoder_out = search.decoder(torch.tensor([context]), need_pad=False)[:, 0]
        logits = search.joiner(frame.unsqueeze(0), decoder_out)[0]
        logits[0] -= o.blank_penalty
        return (logits / o.temperature).log_softmax(-1).tolist()


def add(pool: dict, tokens: tuple, score: float, times: list) -> None:
    if tokens in pool:
        total = pool[tokens][0]
        pool[tokens] = (total + math.log1p(math.exp(score - total)), pool[tokens][1])
    else:
        pool[tokens] = (score, times)


def all_paths(search, frames: torch.Tensor) -> list[tuple[tuple[int, ...], float]]:
    """Tokens and log-prob of every path: a token or blank on each of (T, D) ``frames``."""
    encoder_side = search.joiner.encoder_proj(frames)
    paths = [((), 0.0)]
    for t in range(len(frames)):
        grown = []
        for tokens, score in paths:
            context = torch.tensor([([0] * search.context_size + list(tokens))])
            decoder_side = search._project_context(context[:, -search.context_size :])
            log_probs = search._log_probs(encoder_side[t], decoder_side)[0].tolist()
            for v, p in enumerate(log_probs):
                grown.append((tokens + (v,) * (v > 0), score + p))
        paths = grown
    return paths
