"""The searches give what k2 and icefall gave: tokens, frames and scores of the golden files."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from tests.support.golden_files import decode_case, decode_cases
from xlsr_transducer.model.decoder import Decoder
from xlsr_transducer.model.joiner import Joiner
from xlsr_transducer.search import Heads, SearchOptions, make_search


@cache
def load(case: str) -> tuple:
    """(file contents, decoder, joiner, encoder output, lengths) of a golden case."""
    _, z = decode_case(case)
    w = {k[2:]: torch.tensor(z[k]) for k in z if k.startswith("w.")}
    vocab_size, dim = w["embedding"].shape
    decoder = Decoder(vocab_size, dim, context_size=w["conv"].shape[2])
    decoder.load_state_dict({"embedding.weight": w["embedding"], "conv.weight": w["conv"]})
    joiner_dim, encoder_dim = w["encoder_proj_weight"].shape
    joiner = Joiner(encoder_dim, dim, joiner_dim, vocab_size)
    names = {"encoder_proj": "encoder_proj", "decoder_proj": "decoder_proj"}
    names["output_linear"] = "output"
    joiner.load_state_dict(
        {f"{a}.{p}": w[f"{b}_{p}"] for a, b in names.items() for p in ("weight", "bias")}
    )
    return z, decoder.eval(), joiner.eval(), torch.tensor(z["in.x"]), torch.tensor(z["in.lens"])


def ragged(z, key: str) -> list[list[int]]:
    splits = z[key + ".splits"]
    return [z[key + ".tokens"][a:b].tolist() for a, b in zip(splits[:-1], splits[1:])]


def entries(method: str) -> list[tuple[str, dict]]:
    return [(case, entry) for case in decode_cases() for entry in decode_case(case)[0][method]]


def search_case(case: str, **options):
    z, decoder, joiner, x, lens = load(case)
    search = make_search(SearchOptions(**options), Heads(decoder, joiner))
    return z, search.results(search.advance(x, lens, search.init_state(len(lens))))


@pytest.mark.parametrize("case, entry", entries("greedy_search"))
def test_greedy_search_gives_the_golden_tokens_and_frames(case, entry):
    z, found = search_case(case, blank_penalty=entry["blank_penalty"])
    assert [h.tokens for h in found] == ragged(z, entry["key"] + ".hyp")
    assert [h.frames for h in found] == ragged(z, entry["key"] + ".frame")


@pytest.mark.parametrize("case, entry", entries("modified_beam_search"))
def test_modified_beam_search_gives_the_golden_tokens_frames_and_scores(case, entry):
    z, found = search_case(
        case,
        decoding_method="modified_beam_search",
        beam_size=int(entry["beam"]),
        temperature=entry["temperature"],
        blank_penalty=entry["blank_penalty"],
    )
    assert [h.tokens for h in found] == ragged(z, entry["key"] + ".hyp")
    assert [h.frames for h in found] == ragged(z, entry["key"] + ".frame")
    expected = z[entry["key"] + ".log_prob"]
    np.testing.assert_allclose([h.score for h in found], expected, rtol=1e-5, atol=1e-4)


def fast_options(entry: dict, flavour: str) -> dict:
    names = ("beam", "max_states", "max_contexts", "temperature", "blank_penalty")
    return {
        "decoding_method": "fast_beam_search",
        "fast_beam_flavour": flavour,
        **{name: entry[name] for name in names},
    }


@pytest.mark.parametrize("flavour", ["whole", "strict", "partial"])
@pytest.mark.parametrize("case, entry", entries("fast_beam_search"))
def test_fast_beam_search_gives_the_golden_tokens_frames_and_scores(case, entry, flavour):
    z, found = search_case(case, **fast_options(entry, flavour))
    key = f"{entry['key']}.{flavour}"
    tokens, frames = ragged(z, key + ".hyp"), ragged(z, key + ".frame")
    ends = np.isfinite(z[f"{entry['key']}.strict.best_score"])
    for n, h in enumerate(found):
        if flavour == "partial" and not ends[n]:
            # The last arc k2 takes here is arbitrary, and may be a blank.
            last = (entry_lens(case)[n] - 1,)
            h_sure = [(v, t) for v, t in zip(h.tokens, h.frames) if t not in last]
            sure = [(v, t) for v, t in zip(tokens[n], frames[n]) if t not in last]
            assert h_sure == sure
        else:
            assert (h.tokens, h.frames) == (tokens[n], frames[n])
    expected = z[key + ".best_score"]
    np.testing.assert_allclose([h.score for h in found], expected, rtol=1e-5, atol=1e-4)


def entry_lens(case: str) -> list[int]:
    return load(case)[4].tolist()


@pytest.mark.parametrize("case, entry", entries("fast_beam_search"))
def test_fast_beam_search_keeps_the_golden_contexts_on_every_frame(case, entry):
    z, decoder, joiner, x, lens = load(case)
    search = make_search(SearchOptions(**fast_options(entry, "whole")), Heads(decoder, joiner))
    splits, contexts = z[entry["key"] + ".context_splits"], z[entry["key"] + ".contexts"]
    starts = np.concatenate([[0], np.cumsum(splits[:, -1])])
    state = search.init_state(len(lens))
    for t in range(x.shape[1]):
        for n in range(len(lens)):
            if t >= lens[n]:
                continue
            live = state.context[n][state.score[n] > -float("inf")].tolist()
            golden = contexts[starts[t] : starts[t + 1]][splits[t, n] : splits[t, n + 1]]
            assert sorted(live) == sorted(golden.tolist()), (t, n)
        state = search.advance(x[:, t : t + 1], (lens - t).clamp(0, 1), state)
