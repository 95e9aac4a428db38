"""Searches: from encoder output to token sequences, offline and streaming alike."""

from __future__ import annotations

from typing import Any

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.search.base import Search
from xlsr_transducer.search.beam import BeamSearch
from xlsr_transducer.search.bias import SUPPORTED, Bias, BiasOptions
from xlsr_transducer.search.ctc_greedy import CtcGreedySearch
from xlsr_transducer.search.ctc_prefix import CtcPrefixBeamSearch
from xlsr_transducer.search.fast_beam import FastBeamSearch
from xlsr_transducer.search.greedy import GreedySearch
from xlsr_transducer.search.hypothesis import Hypothesis
from xlsr_transducer.search.k2.ctc import CtcLatticeSearch
from xlsr_transducer.search.k2.lattices import LatticeSearch, NbestSearch
from xlsr_transducer.search.lm.rescore import LmRescoreSearch
from xlsr_transducer.search.modified_beam import ModifiedBeamSearch
from xlsr_transducer.search.options import (
    CTC_METHODS,
    LG_METHODS,
    LM_METHODS,
    Heads,
    Searchable,
    SearchOptions,
)

__all__ = ["Bias", "BiasOptions", "Heads", "Hypothesis", "Search", "SearchOptions", "make_search"]

SEARCHES = {
    "beam_search": BeamSearch,
    "ctc_LG": CtcLatticeSearch,
    "ctc_decoding": CtcLatticeSearch,
    "ctc_greedy_search": CtcGreedySearch,
    "ctc_prefix_beam_search": CtcPrefixBeamSearch,
    "fast_beam_search": FastBeamSearch,
    "fast_beam_search_LG": LatticeSearch,
    "fast_beam_search_nbest": NbestSearch,
    "fast_beam_search_nbest_LG": NbestSearch,
    "fast_beam_search_nbest_oracle": NbestSearch,
    "greedy_search": GreedySearch,
    "modified_beam_search": ModifiedBeamSearch,
    "modified_beam_search_LODR": ModifiedBeamSearch,
    "modified_beam_search_lm_rescore": LmRescoreSearch,
    "modified_beam_search_lm_shallow_fusion": ModifiedBeamSearch,
}


def make_search(
    options: SearchOptions,
    model: Searchable,
    bias: Bias | None = None,
    lg: Any = None,
) -> Search:
    """Returns the search that ``options`` describe, over the heads of ``model``.

    ``lg`` is what the methods with LG walk along (``BiasOptions.load_lg``).

    Raises:
      UserError: the search needs a head or a language model, and there is none.
      ValueError: the search takes no ``bias``, or needs ``lg``, or takes none.
    """
    options = options.resolved(model)
    method = options.decoding_method
    if (lg is not None) != (method in LG_METHODS):
        raise ValueError(f"{LG_METHODS} take LG and no other; this is {method}")
    if bias is not None and method not in SUPPORTED:
        raise ValueError(f"{method} takes no bias; {SUPPORTED} do")
    if method in LM_METHODS and (bias is None or bias.neural is None):
        raise UserError(f"--decoding-method {method} needs a neural language model")
    heads = [model.ctc_output] if method in CTC_METHODS else [model.decoder, model.joiner]
    more = [x for x in (bias, lg) if x is not None]
    return SEARCHES[method](options, *heads, *more)
