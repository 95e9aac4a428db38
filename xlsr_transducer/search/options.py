"""Options of a search: one dataclass for every command, checked in one place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import nn

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.core.options import Options, flag_of, option

METHODS = (
    "greedy_search",
    "beam_search",
    "modified_beam_search",
    "fast_beam_search",
    "ctc_greedy_search",
    "ctc_prefix_beam_search",
    "modified_beam_search_lm_shallow_fusion",
    "modified_beam_search_LODR",
    "modified_beam_search_lm_rescore",
    "fast_beam_search_LG",
    "fast_beam_search_nbest",
    "fast_beam_search_nbest_oracle",
    "fast_beam_search_nbest_LG",
    "ctc_decoding",
    "ctc_LG",
)
# They need a neural language model.
LM_METHODS = tuple(method for method in METHODS if method.startswith("modified_beam_search_"))
FAST_METHODS = tuple(method for method in METHODS if method.startswith("fast_beam_search"))
LATTICE_CTC_METHODS = ("ctc_decoding", "ctc_LG")
NBEST_METHODS = tuple(method for method in METHODS if "nbest" in method)
# They walk along a graph of words, LG.
LG_METHODS = tuple(method for method in METHODS if method.endswith("_LG"))
ORACLE = "fast_beam_search_nbest_oracle"
# Their results are made at the end of an utterance.
OFFLINE_METHODS = (
    "modified_beam_search_lm_rescore",
    "fast_beam_search_LG",
    *NBEST_METHODS,
    *LATTICE_CTC_METHODS,
)
# They need nothing beside the model: no language model, graph of words, k2 or reference.
SELF_CONTAINED = tuple(
    method for method in METHODS if method not in (*LM_METHODS, *OFFLINE_METHODS)
)
# They read the CTC head; all others the transducer.
CTC_METHODS = tuple(method for method in METHODS if method.startswith("ctc_"))
FLAVOURS = ("whole", "strict", "partial")


class Searchable(Protocol):
    """What a search reads: a ``SpeechModel``, a ``Recogniser``, ``Heads``; None where there is no
    such head."""

    decoder: nn.Module | None
    joiner: nn.Module | None
    ctc_output: nn.Module | None


class Heads(NamedTuple):
    """Networks to search with, without an encoder."""

    decoder: nn.Module | None = None
    joiner: nn.Module | None = None
    ctc_output: nn.Module | None = None


@dataclass(frozen=True)
class SearchOptions(Options):
    """Search options. Names and defaults are icefall's."""

    decoding_method: str | None = option(
        None,
        "how to search (default: greedy_search, or ctc_greedy_search of a model without a "
        "transducer)",
        METHODS,
    )
    beam_size: int = option(
        4,
        "hypotheses kept by beam_search, modified_beam_search* and ctc_prefix_beam_search",
        at_least=1,
    )
    beam: float = option(
        20.0,
        "fast_beam_search*, ctc_decoding, ctc_LG: log-prob below the best at which to prune",
        above=0,
    )
    max_contexts: int = option(
        8, "fast_beam_search*: contexts kept per stream and frame", at_least=1
    )
    max_states: int = option(64, "fast_beam_search*: states kept per stream and frame", at_least=1)
    fast_beam_flavour: str = option(
        "whole",
        "fast_beam_search*: 'whole' counts the last frame, 'strict' and 'partial' treat it as "
        "k2's format_output does without and with allow_partial",
        FLAVOURS,
    )
    num_paths: int = option(
        200, "fast_beam_search_nbest*: paths drawn from the lattice", at_least=1
    )
    nbest_scale: float = option(
        0.5,
        "fast_beam_search_nbest*: log-probs times this decide how likely a path is drawn",
        above=0,
    )
    max_sym_per_frame: int = option(1, "greedy_search: most tokens in one frame", at_least=1)
    blank_penalty: float = option(
        0.0, "subtracted from the logit of blank", at_least=-1000, at_most=1000
    )
    temperature: float = option(
        1.0, "divides the logits before the softmax", at_least=0.001, at_most=1000
    )

    def __post_init__(self) -> None:
        """Refuses what contradicts itself.

        Raises:
          UserError: names the option, its value and what it has to be.
        """
        super().__post_init__()
        if self.decoding_method not in (None, *METHODS):
            known = ", ".join(METHODS)
            raise UserError(f"--decoding-method {self.decoding_method}: known are {known}")
        if self.fast_beam_flavour not in FLAVOURS:
            known = ", ".join(FLAVOURS)
            raise UserError(f"--fast-beam-flavour {self.fast_beam_flavour}: known are {known}")
        if self.max_contexts > self.max_states:
            raise UserError(
                f"--max-contexts {self.max_contexts} exceeds --max-states {self.max_states}: "
                "every context takes up a state"
            )
        self._refuse_foreign("max_sym_per_frame", 1, ("greedy_search",))
        self._refuse_foreign("fast_beam_flavour", "whole", FAST_METHODS)
        self._refuse_foreign("num_paths", 200, NBEST_METHODS)
        self._refuse_foreign("nbest_scale", 0.5, NBEST_METHODS)

    def _refuse_foreign(self, name: str, default: object, methods: tuple[str, ...]) -> None:
        if getattr(self, name) != default and self.method not in methods:
            raise UserError(
                f"{flag_of(name)} {getattr(self, name)} works with --decoding-method "
                f"{', '.join(methods)} only, not with {self.method}"
            )

    @property
    def method(self) -> str:
        """The method; before the model is known, that of a transducer where none is given."""
        return self.decoding_method or "greedy_search"

    def resolved(self, model: Searchable) -> SearchOptions:
        """Returns the same with a method, which must fit the heads of ``model``.

        Raises:
          UserError: it needs a head that the model has not.
        """
        has_transducer, has_ctc = model.joiner is not None, model.ctc_output is not None
        default = "greedy_search" if has_transducer or not has_ctc else "ctc_greedy_search"
        method = self.decoding_method or default
        if not has_transducer and not has_ctc:
            raise UserError(
                f"--decoding-method {method} needs a model that recognises words; this one is a "
                "classifier: use xlsr_transducer.classify"
            )
        if method in CTC_METHODS and not has_ctc:
            raise UserError(
                f"--decoding-method {method} needs a model with a CTC head: train it with "
                "--heads transducer,ctc or --heads ctc"
            )
        if method not in CTC_METHODS and not has_transducer:
            raise UserError(
                f"--decoding-method {method} needs a model with a transducer; this one has CTC "
                f"alone: {', '.join(CTC_METHODS)}"
            )
        return dataclasses.replace(self, decoding_method=method)

    def require_streaming(self) -> None:
        """Raises UserError if the method cannot follow a stream."""
        if self.decoding_method in OFFLINE_METHODS:
            raise UserError(
                f"--decoding-method {self.decoding_method} needs whole utterances: it does not "
                "stream; fast_beam_search, modified_beam_search_lm_shallow_fusion and "
                "ctc_prefix_beam_search do"
            )

    def suffix(self) -> str:
        """Returns the method and every setting that matters to it, for names of result files."""
        parts = [self.method]
        if self.method == "greedy_search":
            parts.append(f"max-sym-per-frame-{self.max_sym_per_frame}")
        elif self.decoding_method in FAST_METHODS:
            parts.append(f"beam-{self.beam}")
            parts.append(f"max-contexts-{self.max_contexts}-max-states-{self.max_states}")
            if self.decoding_method in NBEST_METHODS:
                parts.append(f"num-paths-{self.num_paths}-nbest-scale-{self.nbest_scale}")
            if self.fast_beam_flavour != "whole":
                parts.append(self.fast_beam_flavour)
        elif self.method in LATTICE_CTC_METHODS:
            parts.append(f"beam-{self.beam}")
        elif self.method != "ctc_greedy_search":
            parts.append(f"beam-size-{self.beam_size}")
        if self.blank_penalty != 0:
            parts.append(f"blank-penalty-{self.blank_penalty}")
        if self.temperature != 1:
            parts.append(f"temperature-{self.temperature}")
        return "-".join(parts)
