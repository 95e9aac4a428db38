"""Search options refuse contradictions by name, and name result files by every setting."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
from torch import nn

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import add_options, from_args
from xlsr_transducer.model.decoder import Decoder
from xlsr_transducer.model.joiner import Joiner
from xlsr_transducer.search import BiasOptions, Heads, SearchOptions, make_search
from xlsr_transducer.search.options import CTC_METHODS, METHODS


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(decoding_method="magic"), "--decoding-method magic: known are greedy_search"),
        (dict(beam_size=0), "--beam-size 0: must be at least 1"),
        (dict(max_sym_per_frame=0), "--max-sym-per-frame 0"),
        (dict(beam=0.0), "--beam 0.0: must be above 0"),
        (dict(temperature=-1.0), "--temperature -1.0"),
        (dict(temperature=float("nan")), "--temperature nan"),
        (dict(max_contexts=65), "--max-contexts 65 exceeds --max-states 64"),
        (
            dict(max_sym_per_frame=2, decoding_method="fast_beam_search"),
            "--max-sym-per-frame 2 works with --decoding-method greedy_search only",
        ),
        (dict(fast_beam_flavour="strict"), "--fast-beam-flavour strict works with"),
        (dict(num_paths=0), "--num-paths 0: must be at least 1"),
        (dict(num_paths=9, decoding_method="fast_beam_search_LG"), "--num-paths 9 works with"),
        (dict(nbest_scale=1.0), "--nbest-scale 1.0 works with --decoding-method fast"),
        (
            dict(fast_beam_flavour="loose", decoding_method="fast_beam_search"),
            "--fast-beam-flavour loose: known are whole, strict, partial",
        ),
    ],
)
def test_contradictions_are_refused_by_name(wrong, words):
    with pytest.raises(UserError) as e:
        SearchOptions(**wrong)
    assert words in str(e.value)


def test_the_suffix_differs_for_every_setting_that_matters_and_no_other():
    def suffix(method, **settings):
        return SearchOptions(decoding_method=method, **settings).suffix()

    matters = {
        "greedy_search": [dict(max_sym_per_frame=3)],
        "beam_search": [dict(beam_size=9)],
        "ctc_greedy_search": [],
        "ctc_prefix_beam_search": [dict(beam_size=9)],
        "ctc_decoding": [dict(beam=4.0)],
        "ctc_LG": [dict(beam=4.0)],
        "modified_beam_search": [dict(beam_size=9)],
        "fast_beam_search": [
            dict(beam=4.0),
            dict(max_contexts=4),
            dict(max_states=32),
            dict(fast_beam_flavour="strict"),
        ],
        "fast_beam_search_LG": [dict(max_contexts=4), dict(fast_beam_flavour="strict")],
        "fast_beam_search_nbest": [dict(beam=4.0), dict(num_paths=9), dict(nbest_scale=1.0)],
        "fast_beam_search_nbest_oracle": [dict(num_paths=9)],
    }
    seen = []
    for method, changes in matters.items():
        changes = [{}, dict(blank_penalty=1.0), dict(temperature=2.0), *changes]
        seen += [suffix(method, **change) for change in changes]
    assert len(set(seen)) == len(seen)
    assert all("/" not in s and " " not in s for s in seen)
    assert suffix("greedy_search", beam_size=9, beam=1.0) == suffix("greedy_search")
    assert suffix("ctc_greedy_search", beam_size=9) == suffix("ctc_greedy_search")
    assert suffix("ctc_decoding", beam_size=9) == suffix("ctc_decoding")
    assert suffix("modified_beam_search") == "modified_beam_search-beam-size-4"


LATTICES = ["LG", "nbest", "nbest_oracle", "nbest_LG"]


@pytest.mark.parametrize(
    "method", [*(f"fast_beam_search_{name}" for name in LATTICES), "ctc_decoding", "ctc_LG"]
)
def test_searches_over_lattices_do_not_stream_and_need_k2(method, monkeypatch):
    options = SearchOptions(decoding_method=method)
    with pytest.raises(UserError, match=f"{method} needs whole utterances"):
        options.require_streaming()
    monkeypatch.setitem(sys.modules, "k2", None)
    lg = object() if method.endswith("LG") else None
    with pytest.raises(UserError, match=f"{method}: k2 does not import .*; install"):
        make_search(options, Heads(Decoder(5, 4), Joiner(4, 4, 4, 5), nn.Linear(4, 5)), lg=lg)


TRANSDUCER = Heads(Decoder(5, 4), Joiner(4, 4, 4, 5))
CTC = Heads(ctc_output=nn.Linear(4, 5))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_needs_its_own_head_and_the_error_names_it(method):
    lacking, words = TRANSDUCER, "needs a model with a CTC head: train it with --heads"
    if method not in CTC_METHODS:
        lacking, words = CTC, f"needs a model with a transducer; .* {', '.join(CTC_METHODS)}"
    with pytest.raises(UserError, match=f"--decoding-method {method} {words}"):
        SearchOptions(method).resolved(lacking)
    with pytest.raises(
        UserError, match=f"{method} needs .*a classifier: use xlsr_transducer.classify"
    ):
        SearchOptions(method).resolved(Heads())
    assert SearchOptions(method).resolved(Heads(*TRANSDUCER[:2], CTC.ctc_output)).method == method


def test_the_default_is_greedy_search_of_the_head_that_there_is():
    assert SearchOptions().resolved(CTC).method == "ctc_greedy_search"
    assert SearchOptions().resolved(TRANSDUCER).method == "greedy_search"
    with pytest.raises(UserError, match="max-sym-per-frame 2 .* not with ctc_greedy_search"):
        SearchOptions(max_sym_per_frame=2).resolved(CTC)


@pytest.mark.parametrize(
    "method, given, words",
    [
        ("ctc_greedy_search", dict(context_file=Path("x")), "not with ctc_greedy_search"),
        ("ctc_decoding", dict(ngram_lm=Path("x.arpa")), "not with ctc_decoding"),
        ("ctc_decoding", dict(ngram_lm=Path("LG.pt")), "ctc_LG only, not with ctc_decoding"),
        ("ctc_prefix_beam_search", dict(ngram_lm=Path("LG.pt")), "not with ctc_prefix_beam"),
        ("ctc_LG", dict(), "ctc_LG needs --ngram-lm .*LG.pt, which stage 7"),
        ("ctc_LG", dict(lm_exp_dir=Path("x")), "ctc_LG needs --ngram-lm"),
    ],
)
def test_what_a_ctc_method_cannot_use_is_refused_by_name(method, given, words):
    with pytest.raises(UserError, match=words):
        BiasOptions(**given).require_supported(SearchOptions(method))


def test_the_command_line_has_icefalls_names_and_defaults():
    parser = argparse.ArgumentParser()
    add_options(parser, SearchOptions)
    assert from_args(SearchOptions, parser.parse_args([])) == SearchOptions()
    args = "--decoding-method fast_beam_search --beam 4 --max-contexts 4 --max-states 32".split()
    options = from_args(SearchOptions, parser.parse_args(args))
    assert (options.beam, options.max_contexts, options.max_states) == (4.0, 4, 32)
