"""What changes the scores of a search besides the model: hotwords and language models.

With every token that it emits, each stream walks along some graphs (``TokenGraph``), and updates
the state of the neural language model. A stream's hotwords may be its own.

Letters: N streams, B hypotheses per stream, M of them looked up, G graphs, F numbers of a state of
the neural language model (0 without one), V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Options, flag_of, option
from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.search.context_graph import read_context_file
from xlsr_transducer.search.k2.lattices import read_lg
from xlsr_transducer.search.lm.checkpoint import load_lm
from xlsr_transducer.search.lm.fusion import ScaledLm
from xlsr_transducer.search.lm.ngram import read_ngram_lm
from xlsr_transducer.search.options import LG_METHODS, LM_METHODS, SearchOptions
from xlsr_transducer.search.token_graph import TokenGraph

# What takes hotwords of a stream's own, and language models.
FREE = ("modified_beam_search", "ctc_prefix_beam_search")
SUPPORTED = (*FREE, *LM_METHODS)
# ctc_prefix_beam_search does without a neural language model, too.
NEURAL = ("ctc_prefix_beam_search", *LM_METHODS)
LODR = "modified_beam_search_LODR"


@dataclass(frozen=True)
class BiasOptions(Options):
    """Hotwords and language models."""

    context_file: Path | None = option(
        None, "hotwords: one phrase a line, or `phrase :score` for its own score"
    )
    context_score: float = option(
        2.0, "bonus of each token of a hotword", at_least=-1000, at_most=1000
    )
    ngram_lm: Path | None = option(
        None, "ARPA file of stage 5, added to the model's log-probs; or LG.pt of stage 7"
    )
    ngram_lm_scale: float | None = option(
        None,
        "what the n-gram model's log-probs are multiplied by; LODR needs one below 0 "
        "(default: 0.1; of LG 0.01)",
        at_least=-1000,
        at_most=1000,
    )
    lm_exp_dir: Path | None = option(None, "folder of a neural language model (train_lm)")
    lm_scale: float = option(
        0.3, "what the neural model's log-probs are multiplied by", at_least=0, at_most=1000
    )

    def __post_init__(self) -> None:
        """Refuses what contradicts itself.

        Raises:
          UserError: names the option, its value and what it has to be.
        """
        super().__post_init__()
        if self.context_file is None and self.context_score != 2.0:
            raise UserError(f"--context-score {self.context_score} needs --context-file")
        if self.ngram_lm is None and self.ngram_lm_scale is not None:
            raise UserError(f"--ngram-lm-scale {self.ngram_lm_scale} needs --ngram-lm")
        if self.lm_exp_dir is None and self.lm_scale != 0.3:
            raise UserError(f"--lm-scale {self.lm_scale} needs --lm-exp-dir")

    @property
    def ngram_scale(self) -> float:
        """``ngram_lm_scale``, or its default."""
        if self.ngram_lm_scale is not None:
            return self.ngram_lm_scale
        return 0.01 if self._has_lg() else 0.1

    def _has_lg(self) -> bool:
        return self.ngram_lm is not None and self.ngram_lm.suffix == ".pt"

    def require_supported(self, search: SearchOptions) -> None:
        """Raises UserError if the search cannot do what is asked for, or needs more."""
        method = search.method
        if method != LODR and self.ngram_scale < 0:
            raise UserError(f"--ngram-lm-scale {self.ngram_lm_scale}: must be 0 or more")
        if method in LG_METHODS and not self._has_lg():
            raise UserError(
                f"--decoding-method {method} needs --ngram-lm .../LG.pt, which stage 7 of "
                "./prepare.sh makes"
            )
        ngram_methods = LG_METHODS if self._has_lg() else SUPPORTED
        usable = dict(context_file=SUPPORTED, ngram_lm=ngram_methods, lm_exp_dir=NEURAL)
        for name, methods in usable.items():
            if getattr(self, name) is not None and method not in methods:
                raise UserError(
                    f"{flag_of(name)} {getattr(self, name)} works with "
                    f"--decoding-method {', '.join(methods)} only, not with {method}"
                )
        if method in LM_METHODS and self.lm_exp_dir is None:
            raise UserError(
                f"--decoding-method {method} needs --lm-exp-dir, the folder of a model that "
                "python -m xlsr_transducer.train_lm made"
            )
        if method == LODR and self.ngram_lm is None:
            raise UserError(
                f"--decoding-method {LODR} needs --ngram-lm, a bi-gram model of the training "
                "text: ./prepare.sh --stage 5 --ngram-order 2"
            )
        if method == LODR and self.ngram_scale > 0:
            raise UserError(
                f"--ngram-lm-scale {self.ngram_scale}: {LODR} takes the n-gram model's "
                "log-probs away, so it must be 0 or less, such as -0.1"
            )

    def load(self, tokenizer: Tokenizer, whose: str) -> Bias | None:
        """Reads the files. None if nothing was asked for.

        Args:
          tokenizer: the transducer's; ``whose`` names the transducer.

        Raises:
          UserError: a file cannot be used.
        """
        has_arpa = self.ngram_lm is not None and not self._has_lg()
        if self.context_file is None and not has_arpa and self.lm_exp_dir is None:
            return None
        hotwords = lm = neural = None
        if self.context_file is not None:
            hotwords = read_context_file(self.context_file, tokenizer, self.context_score)
        if has_arpa:
            lm = read_ngram_lm(self.ngram_lm, tokenizer.tokens).scaled(self.ngram_scale)
        if self.lm_exp_dir is not None:
            loaded = load_lm(self.lm_exp_dir)
            loaded.require_tokens(tokenizer.tokens, whose)
            neural = ScaledLm(loaded.model, self.lm_scale)
        return Bias(tokenizer.vocab_size, hotwords, lm, neural)

    def load_lg(self, tokenizer: Tokenizer) -> Any:
        """Reads LG, a k2.Fsa. None if it was not asked for.

        Raises:
          UserError: the file cannot be used, or there is no k2.
        """
        if not self._has_lg():
            return None
        return read_lg(self.ngram_lm, tokenizer.tokens, self.ngram_scale)

    def suffix(self) -> list[str]:
        """Returns what belongs into the names of result files."""
        parts = []
        if self.context_file is not None:
            parts.append(f"context-{self.context_file.stem}-score-{self.context_score}")
        if self.ngram_lm is not None:
            parts.append(f"{self.ngram_lm.stem}-scale-{self.ngram_scale}")
        if self.lm_exp_dir is not None:
            parts.append(f"{self.lm_exp_dir.name}-scale-{self.lm_scale}")
        return parts


class Bias:
    """The graphs and the neural language model of a search."""

    def __init__(
        self,
        vocab_size: int,
        hotwords: TokenGraph | None = None,
        lm: TokenGraph | None = None,
        neural: ScaledLm | None = None,
    ):
        """``hotwords``: those of streams that bring none of their own; the rest: for all."""
        self.lm = lm
        self.neural = neural
        self.nothing = TokenGraph.nothing(vocab_size)
        self.hotwords = hotwords or self.nothing
        # The graphs in use, side by side on one device, and where each of them begins there.
        self._graph = self.nothing
        self._first: WeakKeyDictionary[TokenGraph, int] = WeakKeyDictionary()
        self._device: torch.device | None = None

    def without_neural(self) -> Bias | None:
        """Returns the graphs alone; None if there are none."""
        if self.lm is None and self.hotwords is self.nothing:
            return None
        return Bias(self.nothing.vocab_size, self.hotwords, self.lm)

    def start(
        self, hotwords: tuple[TokenGraph, ...], device: torch.device | str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns where streams with these ``hotwords`` start.

        Returns:
          states in the streams' own graphs (N, G), states of the neural language model (N, F),
          and what each token is worth (N, V).
        """
        starts = [[g.start, self.lm.start] if self.lm else [g.start] for g in hotwords]
        starts = torch.tensor(starts, dtype=torch.int64, device=device)
        starts = starts.view(len(hotwords), 2 if self.lm else 1)
        walk = self.walk(hotwords, device)
        weights = walk.graph_weights(starts + walk.offsets)
        if self.neural is None:
            return starts, weights[:, :0], weights
        lm_state, lm_weights = self.neural.start(len(hotwords))
        return starts, lm_state, weights + lm_weights

    def walk(self, hotwords: tuple[TokenGraph, ...], device: torch.device | str) -> Walk:
        """Returns the graphs that streams with these ``hotwords`` walk along, on ``device``."""
        device = torch.device(device)
        if device != self._device or any(g not in self._first for g in hotwords):
            self._join(hotwords, device)
        first = [self._first[g] for g in hotwords]
        offsets = torch.tensor(first, dtype=torch.int64, device=device).unsqueeze(1)
        if self.lm is None:
            return Walk([self._graph], offsets, self.neural)
        return Walk([self._graph, self.lm], torch.cat([offsets, offsets * 0], 1), self.neural)

    def _join(self, hotwords: tuple[TokenGraph, ...], device: torch.device) -> None:
        """Puts ``hotwords`` beside the graphs that are in use still.

        So graphs are joined when a stream brings a new one, and not whenever other streams come
        together. A graph that nobody holds any more is left out.
        """
        used = list(self._first) if device == self._device else []
        graphs = list(dict.fromkeys([*used, *hotwords])) or [self.nothing]
        graph, first = TokenGraph.union(graphs)
        self._graph = graph.to(device)
        self._first = WeakKeyDictionary(zip(graphs, first))
        self._device = device
        if self.lm is not None:
            self.lm = self.lm.to(device)
        if self.neural is not None:
            self.neural.model.to(device)


@dataclass(frozen=True)
class Walk:
    """The graphs of the streams of one batch, side by side, and the neural language model.

    A hypothesis has one state in each of the G graphs. Between two pieces a state counts from
    the beginning of its stream's own graph, so that streams may leave and join the batch;
    ``offsets`` (N, G) lead from there to the number in the graphs at hand.
    """

    graphs: list[TokenGraph]
    offsets: Tensor
    neural: ScaledLm | None

    def entered(self, state: Tensor) -> Tensor:
        """Returns (N, B, G) states in the graphs at hand, from those of the streams' own."""
        return state + self.offsets.unsqueeze(1)

    def left(self, state: Tensor) -> Tensor:
        """Returns (N, B, G) the other way round."""
        return state - self.offsets.unsqueeze(1)

    def graph_weights(self, state: Tensor) -> Tensor:
        """Returns (M, V) what each token is worth in the states (M, G)."""
        return sum(g.weights(s) for g, s in zip(self.graphs, state.unbind(1)))

    def step(
        self, state: Tensor, lm_state: Tensor, token: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what ``token`` (M,) leads to from states (M, G) and (M, F): the same, and (M,
        V) what
        each token is worth then."""
        walked = [g.step(s, token) for g, s in zip(self.graphs, state.unbind(1))]
        state = torch.stack(walked, 1)
        weights = self.graph_weights(state)
        if self.neural is None:
            return state, lm_state, weights
        lm_state, lm_weights = self.neural.step(lm_state, token)
        return state, lm_state, weights + lm_weights

    def followed(
        self, biased: Sequence[Tensor], row: Tensor, token: Tensor, fresh: Tensor
    ) -> list[Tensor]:
        """Returns graph states, states of the language model and weights (n, B, *) after a frame.

        Args:
          biased: the same before the frame.
          row: (n * B,) where each hypothesis had its own there. Those that are not ``fresh`` have
            the tokens, and so the states, of that row.
          token: (n * B,) what they emitted.
        """
        shape = biased[0].shape[:2]
        biased = [x.flatten(0, 1)[row] for x in biased]
        grown = fresh.nonzero()[:, 0]
        if len(grown):
            graph_state, lm_state, _ = biased
            new = self.step(graph_state[grown], lm_state[grown], token[grown])
            for x, value in zip(biased, new):
                x[grown] = value
        return [x.unflatten(0, shape) for x in biased]

    def final(self, state: Tensor) -> Tensor:
        """Returns (N, B) what ending in the states (N, B, G) adds."""
        return sum(g.final_weight[s] for g, s in zip(self.graphs, state.unbind(2)))


def first_states(
    bias: Bias | None,
    shape: tuple[int, int],
    device: torch.device | str,
    hotwords: Sequence[TokenGraph | None] | None,
) -> tuple[tuple[TokenGraph, ...], Tensor, Tensor, Tensor]:
    """Returns what the hypotheses of new streams have of a bias.

    Args:
      shape: streams N and hypotheses B of each.
      hotwords: the graph of each stream; None is that of the bias.

    Returns:
      the graph of each stream, N of them; states (N, B, G) in the streams' own graphs, states
      (N, B, F) of the neural language model, and what each token is worth (N, B, V). Without a
      bias there are no graphs, and G, F and V are 0.
    """
    if bias is None:
        if hotwords is not None:
            raise ValueError("hotwords need a search that was made with a Bias")
        nothing = torch.zeros(*shape, 0, device=device)
        return (), nothing.to(torch.int64), nothing, nothing
    number, beam = shape
    if hotwords is None:
        hotwords = [None] * number
    if len(hotwords) != number:
        raise ValueError(f"{number} streams, but hotwords for {len(hotwords)}")
    graphs = tuple(g or bias.hotwords for g in hotwords)
    first = bias.start(graphs, device)
    return (graphs, *(x.unsqueeze(1).repeat(1, beam, 1) for x in first))
