"""Best paths through k2's lattices of CTC: along its topology alone, or along that and LG.

k2 is imported once one of them is made. As the result is read off the lattice of whole
utterances, the state of a stream is all of its frames so far.

Letters: N streams, T frames, D encoder width, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from xlsr_transducer.core.compat import import_k2
from xlsr_transducer.search.base import CtcSearch
from xlsr_transducer.search.hypothesis import Hypothesis
from xlsr_transducer.search.k2.lattices import NEVER, FramesState
from xlsr_transducer.search.options import SearchOptions

# icefall's, beside `--beam`. The beam of the lattice does not change its best path.
LATTICE_BEAM = 8.0
MIN_ACTIVE_STATES = 30
MAX_ACTIVE_STATES = 10_000


class CtcLatticeSearch(CtcSearch):
    """The best alignment, and along LG the best one of whole words with their weights.

    A token's frame and log-prob are those of the first frame that has its label. Where no path
    within the beam ends, as LG does after whole words only, there is no result.
    """

    def __init__(self, options: SearchOptions, ctc_output: nn.Linear, lg: Any = None):
        """``lg``: what ``read_lg`` returned; without it the graph is CTC's topology.

        Raises:
          UserError: k2 does not import.
        """
        super().__init__(options, ctc_output)
        self.k2 = k2 = import_k2(f"--decoding-method {options.decoding_method}")
        graph = k2.ctc_topo(ctc_output.out_features - 1)
        if lg is not None:
            graph = k2.connect(k2.compose(graph, k2.arc_sort(lg.to("cpu"))))
        self.graph = k2.arc_sort(graph).to(self._device())

    def init_state(self, num_streams: int, device: torch.device | str = "cpu") -> FramesState:
        """Returns the state of ``num_streams`` streams before their first frame."""
        weight = self.ctc_output.weight
        nothing = torch.zeros(0, weight.shape[1], device=device, dtype=weight.dtype)
        return FramesState((nothing,) * num_streams)

    @torch.no_grad()
    def advance(
        self, encoder_out: Tensor, encoder_out_lens: Tensor, state: FramesState
    ) -> FramesState:
        """Consumes the next frames of each stream (see ``Search.advance``)."""
        frames = self._frames(encoder_out, encoder_out_lens).to(self.ctc_output.weight.dtype)
        pieces = zip(state.frames, frames, encoder_out_lens.tolist())
        return FramesState(tuple(torch.cat([old, new[:n]]) for old, new, n in pieces))

    @torch.no_grad()
    def nbest(self, state: FramesState, n: int) -> list[list[Hypothesis]]:
        """Returns the best hypothesis of each stream, whatever ``n`` is."""
        # k2 wants the longest first, and no stream without a frame.
        lens = [len(frames) for frames in state.frames]
        order = sorted((i for i, n in enumerate(lens) if n), key=lambda i: -lens[i])
        found = [[Hypothesis()] for _ in lens]
        if order:
            log_probs = self._log_probs_of(
                pad_sequence([state.frames[i] for i in order], batch_first=True)
            ).float()
            best = self._best_paths(log_probs, [lens[i] for i in order])
            for i, hypothesis in zip(order, best):
                found[i] = [hypothesis]
        return found

    def _best_paths(self, log_probs: Tensor, lens: Sequence[int]) -> list[Hypothesis]:
        """Returns the best path of each stream; ``log_probs`` is (N, T, V)."""
        k2 = self.k2
        segments = [[row, 0, length] for row, length in enumerate(lens)]
        lattice = k2.intersect_dense_pruned(
            self.graph,
            k2.DenseFsaVec(log_probs, torch.tensor(segments, dtype=torch.int32)),
            search_beam=self.options.beam,
            output_beam=LATTICE_BEAM,
            min_active_states=MIN_ACTIVE_STATES,
            max_active_states=MAX_ACTIVE_STATES,
        )
        best = k2.shortest_path(lattice, use_double_scores=True)
        scores = best.get_tot_scores(use_double_scores=True, log_semiring=False).tolist()
        return [self._hypothesis(best[i], log_probs[i], score) for i, score in enumerate(scores)]

    def _hypothesis(self, path: Any, log_probs: Tensor, score: float) -> Hypothesis:
        """Returns the hypothesis of a linear lattice, which has an arc for each frame of (T, V)
        ``log_probs`` and a final one."""
        if not path.num_arcs:
            return Hypothesis(score=NEVER, norm_score=NEVER)
        labels = path.labels.tolist()[:-1]
        before = [self.blank_id, *labels]
        frames = [
            t for t, label in enumerate(labels) if label != self.blank_id and label != before[t]
        ]
        tokens = [labels[t] for t in frames]
        return Hypothesis(
            tokens=tokens,
            frames=frames,
            score=score,
            log_probs=[float(log_probs[t, token]) for t, token in zip(frames, tokens)],
            norm_score=score / (len(tokens) + self.context_size),
        )
