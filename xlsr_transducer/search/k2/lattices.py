"""Searches over k2's graphs and lattices; k2 is imported once one of them is made.

k2 walks all streams along a graph, frame by frame, and gives the lattice of all paths that it
kept. Its rules on the trivial graph, and what it makes of the last frame, are described in
tests/golden/README.md. As the result is read off the lattice of whole utterances, the state
of a stream is all of its frames so far.

Letters: N streams, T frames, J joiner width, V tokens.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from xlsr_transducer.core.compat import import_k2, load_tensors
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.files import write_bytes
from xlsr_transducer.data.tokenizer import WORD_START
from xlsr_transducer.search.base import Search
from xlsr_transducer.search.hypothesis import Hypothesis
from xlsr_transducer.search.options import SearchOptions

NEVER = -float("inf")
# Log-prob of all tokens but blank on a frame after the last one.
IMPOSSIBLE = -1e4


@dataclass(frozen=True)
class FramesState:
    """Per stream: all its frames so far."""

    frames: tuple[Tensor, ...]  # N of (T_n, J), the encoder side of the joiner


class LatticeSearch(Search):
    """The best path through the lattice; on the trivial graph k2's own fast_beam_search.

    ``fast_beam_flavour`` decides about the last frame, whose arcs k2 leaves out: with
    'whole' that is one more frame, on which nothing but blank is possible; and if no path ends
    where the graph does, the best of all is taken, as with 'partial'. With 'strict' there is
    no result then. A token of the last frame is never found by 'strict' and 'partial'. Along
    LG, a word that is not complete at the end is left out.
    """

    def __init__(
        self, options: SearchOptions, decoder: nn.Module, joiner: nn.Module, graph: Any = None
    ):
        """``graph``: what ``read_lg`` returned; by default the trivial graph.

        Raises:
          UserError: k2 does not import.
        """
        super().__init__(options, decoder, joiner)
        self.k2 = import_k2(f"--decoding-method {options.decoding_method}")
        if graph is None:
            graph = self.k2.trivial_graph(decoder.vocab_size - 1)
            graph.lm_scores = graph.scores.clone()
        self.graph = graph.to(self._device())

    def init_state(self, num_streams: int, device: torch.device | str = "cpu") -> FramesState:
        """Returns the state of ``num_streams`` streams before their first frame."""
        weight = self.joiner.encoder_proj.weight
        nothing = torch.zeros(0, len(weight), device=device, dtype=weight.dtype)
        return FramesState((nothing,) * num_streams)

    @torch.no_grad()
    def advance(
        self, encoder_out: Tensor, encoder_out_lens: Tensor, state: FramesState
    ) -> FramesState:
        """Consumes the next frames of each stream (see ``Search.advance``)."""
        encoder_side = self._project_encoder(encoder_out, encoder_out_lens)
        pieces = zip(state.frames, encoder_side, encoder_out_lens.tolist())
        return FramesState(tuple(torch.cat([old, new[:n]]) for old, new, n in pieces))

    @torch.no_grad()
    def nbest(self, state: FramesState, n: int) -> list[list[Hypothesis]]:
        """Returns up to ``n`` hypotheses per stream, best first; there is one unless paths are
        drawn."""
        started = [i for i, frames in enumerate(state.frames) if len(frames)]
        found = [[Hypothesis()] for _ in state.frames]
        if started:
            hyps = self._read(self.lattice([state.frames[i] for i in started]))
            for i, best in zip(started, hyps):
                found[i] = best[:n] or [Hypothesis(score=NEVER, norm_score=NEVER)]
        return found

    def lattice(self, frames: Sequence[Tensor]) -> Any:
        """k2's lattices, an FsaVec, of streams of (T_n, J) frames, T_n at least 1.

        Every arc is a frame, and the last one leads to the final state: arc t of a path has
        the token of frame t as its label, or 0.
        """
        k2, options = self.k2, self.options
        is_whole = options.fast_beam_flavour == "whole"
        lens = torch.tensor([len(f) for f in frames], device=self.graph.device)
        encoder_side = F.pad(pad_sequence(list(frames), batch_first=True), (0, 0, 0, is_whole))
        config = k2.RnntDecodingConfig(
            vocab_size=self.decoder.vocab_size,
            decoder_history_len=self.context_size,
            beam=options.beam,
            max_states=options.max_states,
            max_contexts=options.max_contexts,
        )
        parts = [k2.RnntDecodingStream(self.graph) for _ in frames]
        streams = k2.RnntDecodingStreams(parts, config)
        for t in range(encoder_side.shape[1]):
            shape, contexts = streams.get_contexts()
            row = shape.row_ids(1).long()
            decoder_side = self._project_context(contexts.long())
            log_probs = self._log_probs(encoder_side[row, t], decoder_side).float()
            if is_whole:
                is_over = lens[row] <= t
                log_probs[is_over] = IMPOSSIBLE
                log_probs[is_over, self.blank_id] = 0
            streams.advance(log_probs)
        streams.terminate_and_flush_to_streams()
        num_frames = (lens + is_whole).tolist()
        return streams.format_output(num_frames, options.fast_beam_flavour != "strict")

    def _read(self, lattice: Any) -> list[list[Hypothesis]]:
        """Returns the hypotheses of each stream, best first; none where no path ends."""
        best = self.k2.shortest_path(lattice, use_double_scores=True)
        scores = best.get_tot_scores(use_double_scores=True, log_semiring=False)
        return [
            [self._hypothesis(path, score)] if path.num_arcs else []
            for path, score in zip((best[i] for i in range(len(scores))), scores.tolist())
        ]

    def _hypothesis(self, path: Any, score: float) -> Hypothesis:
        """Returns the hypothesis of a linear lattice."""
        labels = path.labels.tolist()
        log_probs = (path.scores - path.lm_scores).tolist()
        end = len(labels)
        if hasattr(path, "boundary"):  # the last word may be cut off
            end = max((t for t, known in enumerate(path.boundary.tolist()) if known), default=0)
        frames = [t for t, token in enumerate(labels[:end]) if token > 0]
        return Hypothesis(
            tokens=[labels[t] for t in frames],
            frames=frames,
            score=score,
            log_probs=[log_probs[t] for t in frames],
            norm_score=score / (len(frames) + self.context_size),
        )


class NbestSearch(LatticeSearch):
    """Draws ``num_paths`` paths from the lattice, and ranks the token sequences among them.

    The score of a token sequence is that of its best path in the lattice, or, with
    ``fast_beam_search_nbest_LG``, the logarithm of the sum over all of its paths. k2 draws
    the same paths every time.
    """

    def _read(self, lattice: Any) -> list[list[Hypothesis]]:
        k2 = self.k2
        if lattice.num_arcs == 1:  # which k2 cannot index
            return super()._read(lattice)
        drawn = self._draw(lattice)
        found: list[list[Hypothesis]] = [[] for _ in drawn]
        stream = [n for n, rows in enumerate(drawn) for _ in rows]
        if not stream:
            return found
        # All paths with the same tokens, whatever their frames.
        texts = k2.linear_fsa([row for rows in drawn for row in rows], device=lattice.device)
        paths = k2.intersect_device(
            k2.arc_sort(lattice),
            k2.add_epsilon_self_loops(texts),
            torch.tensor(stream, dtype=torch.int32, device=lattice.device),
            sorted_match_a=True,
        )
        paths = k2.top_sort(k2.connect(paths))
        is_sum = self.options.decoding_method == "fast_beam_search_nbest_LG"
        scores = paths.get_tot_scores(use_double_scores=True, log_semiring=is_sum).tolist()
        best = k2.shortest_path(paths, use_double_scores=True)
        for i, (n, score) in enumerate(zip(stream, scores)):
            found[n].append(self._hypothesis(best[i], score))
        return [sorted(hyps, key=lambda h: -h.score) for hyps in found]

    def _draw(self, lattice: Any) -> list[list[list[int]]]:
        """Returns the different token sequences of each stream among the paths drawn."""
        scaled = lattice.clone()
        scaled.scores = lattice.scores * self.options.nbest_scale
        paths = self.k2.random_paths(
            scaled, use_double_scores=True, num_paths=self.options.num_paths
        )
        # They are a view into the arcs, which k2 refuses where there is only one.
        labels = lattice.labels.clone(memory_format=torch.contiguous_format)
        tokens = self.k2.ragged.index(labels, paths).remove_values_leq(0).tolist()
        return [list(map(list, dict.fromkeys(map(tuple, rows)))) for rows in tokens]


def write_lg(path: Path, lg: Any, tokens: list[str]) -> None:
    """Writes LG, a k2.Fsa over ``tokens``, as tensors and plain values."""
    content = io.BytesIO()  # as PyTorch does not tell why a file cannot be written
    torch.save({"arcs": lg.as_dict()["arcs"], "tokens": tokens}, content)
    write_bytes(path, content.getvalue())


def read_lg(path: Path, tokens: list[str], scale: float) -> Any:
    """Returns the k2.Fsa of a file by ``write_lg``, its weights times ``scale``; for
    ``LatticeSearch``.

    Its arcs have their weight as ``lm_scores``, and as ``boundary`` whether words are complete
    before them: 1 for what begins a word, and for final arcs.

    Raises:
      UserError: no such file, another kind of file, or one for other tokens; no k2.
    """
    k2 = import_k2(f"--ngram-lm {path}")
    if not path.is_file():
        raise UserError(f"--ngram-lm {path}: no such file; stage 7 of ./prepare.sh makes LG.pt")
    content = load_tensors(path)
    if not isinstance(content, dict) or content.keys() != {"arcs", "tokens"}:
        raise UserError(f"--ngram-lm {path}: not an LG.pt of stage 7 of ./prepare.sh")
    if content["tokens"] != tokens:
        raise UserError(
            f"--ngram-lm {path} belongs to other tokens than the model's; "
            "make one with stage 7 of ./prepare.sh"
        )
    graph = k2.Fsa(content["arcs"])
    graph.scores = graph.scores * scale
    graph.lm_scores = graph.scores.clone()
    begins = torch.tensor([token.startswith(WORD_START) for token in tokens])
    graph.boundary = (begins[graph.labels.clamp(min=0).long()] | (graph.labels < 0)).int()
    return graph
