"""Modified beam search whose hypotheses a neural language model ranks at the end."""

from __future__ import annotations

from torch import nn

from xlsr_transducer.search.bias import Bias
from xlsr_transducer.search.hypothesis import Hypothesis
from xlsr_transducer.search.modified_beam import BeamState, ModifiedBeamSearch
from xlsr_transducer.search.options import SearchOptions


class LmRescoreSearch(ModifiedBeamSearch):
    """The language model does not decide which hypotheses are kept, only which one wins."""

    def __init__(self, options: SearchOptions, decoder: nn.Module, joiner: nn.Module, bias: Bias):
        """``bias`` holds the language model, and what takes part in the search."""
        super().__init__(options, decoder, joiner, bias.without_neural())
        self.rescorer = bias.neural
        self.rescorer.model.to(self._device())

    def nbest(self, state: BeamState, n: int) -> list[list[Hypothesis]]:
        """Returns up to ``n`` hypotheses per stream, by the length-normalised sum of both
        scores."""
        found = super().nbest(state, self.options.beam_size)
        rescored = iter(self.rescorer.rescored(sum(found, []), self.context_size))
        ranked = [[next(rescored) for _ in hypotheses] for hypotheses in found]
        return [sorted(hyps, key=lambda h: -h.norm_score)[:n] for hyps in ranked]
