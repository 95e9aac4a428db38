"""The result of a search for one stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Hypothesis:
    """A token sequence with times and scores.

    ``tokens``, ``frames`` and ``log_probs`` have one entry per token.
    """

    tokens: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    """Encoder frame in which each token came, counted from the start of the stream."""
    score: float = 0.0
    """Natural log-prob of the hypothesis, blanks included, and what hotwords and language
    models add to it; -inf if the search found none."""
    log_probs: list[float] = field(default_factory=list)
    """Log-prob of each token where it came, the basis of its confidence."""
    norm_score: float = 0.0
    """``score`` divided by the number of tokens plus the context size: the n-best order of most
    searches (fast_beam_search and those of CTC order by ``score``)."""
    num_stable: int = field(default=0, compare=False)
    """How many of its first tokens all live hypotheses of a stream share, so that no later frame
    can change them; 0 where nobody counted."""

    @staticmethod
    def joined(parts: Sequence[Hypothesis]) -> Hypothesis:
        """One hypothesis of several that follow one another. Without a ``norm_score``."""
        if len(parts) == 1:
            return parts[0]
        return Hypothesis(
            tokens=[token for p in parts for token in p.tokens],
            frames=[frame for p in parts for frame in p.frames],
            score=sum(p.score for p in parts),
            log_probs=[log_prob for p in parts for log_prob in p.log_probs],
        )
