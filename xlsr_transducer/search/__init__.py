"""Searches: from encoder output to token sequences, offline and streaming alike."""

from __future__ import annotations

from torch import nn

from xlsr_transducer.search.base import Search
from xlsr_transducer.search.beam import BeamSearch
from xlsr_transducer.search.bias import SUPPORTED, Bias, BiasOptions
from xlsr_transducer.search.fast_beam import FastBeamSearch
from xlsr_transducer.search.greedy import GreedySearch
from xlsr_transducer.search.hypothesis import Hypothesis
from xlsr_transducer.search.modified_beam import ModifiedBeamSearch
from xlsr_transducer.search.options import SearchOptions

__all__ = ["Bias", "BiasOptions", "Hypothesis", "Search", "SearchOptions", "make_search"]

SEARCHES = {
    "beam_search": BeamSearch,
    "fast_beam_search": FastBeamSearch,
    "greedy_search": GreedySearch,
    "modified_beam_search": ModifiedBeamSearch,
}


def make_search(
    options: SearchOptions, decoder: nn.Module, joiner: nn.Module, bias: Bias | None = None
) -> Search:
    """The search that ``options`` describe, over the given decoder and joiner.

    Raises:
      ValueError: the search takes no ``bias``.
    """
    search = SEARCHES[options.decoding_method]
    if bias is None:
        return search(options, decoder, joiner)
    if options.decoding_method not in SUPPORTED:
        raise ValueError(f"{options.decoding_method} takes no bias; {SUPPORTED} do")
    return search(options, decoder, joiner, bias)
