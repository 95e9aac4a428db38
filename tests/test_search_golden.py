"""The searches give what k2 and icefall gave: tokens, frames and scores of the golden files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from xlsr_transducer.model.decoder import Decoder
from xlsr_transducer.model.joiner import Joiner
from xlsr_transducer.search import SearchOptions, make_search

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "manifest.json").read_text())["decode"]
_loaded: dict[str, tuple] = {}


def load(case: str) -> tuple:
    """(file contents, decoder, joiner, encoder output, lengths) of a golden case."""
    if case not in _loaded:
        z = np.load(GOLDEN / CASES[case]["file"])
        w = {k[2:]: torch.from_numpy(z[k]) for k in z.files if k.startswith("w.")}
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
        x, lens = torch.from_numpy(z["in.x"]), torch.from_numpy(z["in.lens"])
        _loaded[case] = (z, decoder.eval(), joiner.eval(), x, lens)
    return _loaded[case]


def ragged(z, key: str) -> list[list[int]]:
    splits = z[key + ".splits"]
    return [z[key + ".tokens"][a:b].tolist() for a, b in zip(splits[:-1], splits[1:])]


def entries(method: str) -> list[tuple[str, dict]]:
    return [(case, entry) for case, c in CASES.items() for entry in c[method]]


def search_case(case: str, **options):
    z, decoder, joiner, x, lens = load(case)
    search = make_search(SearchOptions(**options), decoder, joiner)
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
