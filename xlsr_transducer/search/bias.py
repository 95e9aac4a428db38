"""What else than the model has a say in a search: hotwords and an n-gram language model.

Each stream walks along some graphs (``TokenGraph``) with every token it says. A stream's
hotwords may be its own.

Letters: N streams, B hypotheses per stream, M of them looked up, G graphs, V tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.errors import UserError
from xlsr_transducer.options import option
from xlsr_transducer.search.context_graph import read_context_file
from xlsr_transducer.search.ngram_lm import read_ngram_lm
from xlsr_transducer.search.options import SearchOptions
from xlsr_transducer.search.token_graph import TokenGraph

SUPPORTED = ("modified_beam_search",)


@dataclass(frozen=True)
class BiasOptions:
    """Hotwords and language model."""

    context_file: Path | None = option(
        None, "hotwords: one phrase a line, or `phrase :score` for its own score"
    )
    context_score: float = option(2.0, "bonus of each token of a hotword")
    ngram_lm: Path | None = option(None, "ARPA file of stage 5, added to the model's log-probs")
    ngram_lm_scale: float = option(0.1, "what the n-gram model's log-probs are multiplied by")

    def __post_init__(self) -> None:
        """Refuses what contradicts itself.

        Raises:
          UserError: names the option, its value and what it has to be.
        """
        if not math.isfinite(self.context_score):
            raise UserError(f"--context-score {self.context_score}: must be a number")
        if self.context_file is None and self.context_score != 2.0:
            raise UserError(f"--context-score {self.context_score} needs --context-file")
        if not (math.isfinite(self.ngram_lm_scale) and self.ngram_lm_scale >= 0):
            raise UserError(f"--ngram-lm-scale {self.ngram_lm_scale}: must be 0 or more")
        if self.ngram_lm is None and self.ngram_lm_scale != 0.1:
            raise UserError(f"--ngram-lm-scale {self.ngram_lm_scale} needs --ngram-lm")

    def require_supported(self, search: SearchOptions) -> None:
        """Raises UserError if the search cannot do what is asked for."""
        for name in ("context_file", "ngram_lm"):
            if getattr(self, name) is not None and search.decoding_method not in SUPPORTED:
                raise UserError(
                    f"--{name.replace('_', '-')} works with --decoding-method "
                    f"{' or '.join(SUPPORTED)} only, not with {search.decoding_method}"
                )

    def load(self, tokenizer: Tokenizer) -> Bias | None:
        """Reads the files. None if nothing was asked for.

        Raises:
          UserError: a file cannot be used.
        """
        if self.context_file is None and self.ngram_lm is None:
            return None
        hotwords = lm = None
        if self.context_file is not None:
            hotwords = read_context_file(self.context_file, tokenizer, self.context_score)
        if self.ngram_lm is not None:
            lm = read_ngram_lm(self.ngram_lm, tokenizer.tokens).scaled(self.ngram_lm_scale)
        return Bias(tokenizer.vocab_size, hotwords, lm)

    def suffix(self) -> list[str]:
        """What belongs into the names of result files."""
        parts = []
        if self.context_file is not None:
            parts.append(f"context-{self.context_file.stem}-score-{self.context_score}")
        if self.ngram_lm is not None:
            parts.append(f"{self.ngram_lm.stem}-scale-{self.ngram_lm_scale}")
        return parts


class Bias:
    """The graphs of a search."""

    def __init__(
        self, vocab_size: int, hotwords: TokenGraph | None = None, lm: TokenGraph | None = None
    ):
        """``hotwords``: those of streams that bring none of their own; ``lm``: for all."""
        self.lm = lm
        self.nothing = TokenGraph.nothing(vocab_size)
        self.hotwords = hotwords or self.nothing
        self._last: tuple[tuple[TokenGraph, ...], torch.device | str, Walk] | None = None

    def start(self, hotwords: tuple[TokenGraph, ...], device: torch.device | str) -> Tensor:
        """(N, G) the states in which streams with these ``hotwords`` start."""
        starts = [[g.start, self.lm.start] if self.lm else [g.start] for g in hotwords]
        starts = torch.tensor(starts, dtype=torch.int64, device=device)
        return starts.view(len(hotwords), 2 if self.lm else 1)

    def walk(self, hotwords: tuple[TokenGraph, ...], device: torch.device | str) -> Walk:
        """The graphs that streams with these ``hotwords`` walk along, on ``device``."""
        # The same streams come again and again, a piece at a time.
        if self._last is None or self._last[:2] != (hotwords, device):
            self._last = (hotwords, device, self._made(hotwords, device))
        return self._last[2]

    def _made(self, hotwords: tuple[TokenGraph, ...], device: torch.device | str) -> Walk:
        different = list(dict.fromkeys(hotwords)) or [self.nothing]
        graph, first = TokenGraph.union(different)
        place = dict(zip(different, first))
        offsets = torch.tensor([place[g] for g in hotwords], dtype=torch.int64, device=device)
        offsets = offsets.unsqueeze(1)
        if self.lm is None:
            return Walk([graph.to(device)], offsets)
        self.lm = self.lm.to(device)
        return Walk([graph.to(device), self.lm], torch.cat([offsets, offsets * 0], 1))


@dataclass(frozen=True)
class Walk:
    """The graphs of the streams of one batch, side by side.

    A hypothesis has one state in each of the G graphs. Between two pieces a state counts from
    the beginning of its stream's own graph, so that streams may leave and join the batch;
    ``offsets`` (N, G) lead from there to the number in the graphs at hand.
    """

    graphs: list[TokenGraph]
    offsets: Tensor

    def entered(self, state: Tensor) -> Tensor:
        """(N, B, G) states in the graphs at hand, from those of the streams' own."""
        return state + self.offsets.unsqueeze(1)

    def left(self, state: Tensor) -> Tensor:
        """(N, B, G) the other way round."""
        return state - self.offsets.unsqueeze(1)

    def weights(self, state: Tensor) -> Tensor:
        """(M, V) what each token is worth in the states (M, G)."""
        return sum(g.weights(s) for g, s in zip(self.graphs, state.unbind(1)))

    def step(self, state: Tensor, token: Tensor) -> Tensor:
        """(M, G) the states after ``token`` (M,)."""
        return torch.stack([g.step(s, token) for g, s in zip(self.graphs, state.unbind(1))], 1)

    def final(self, state: Tensor) -> Tensor:
        """(N, B) what ending in the states (N, B, G) adds."""
        return sum(g.final_weight[s] for g, s in zip(self.graphs, state.unbind(2)))
