"""Shallow fusion: what a neural language model adds to a beam search.

Letters: M states looked up together, F numbers of a state, V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xlsr_transducer.data.tokenizer import Tokenizer
from xlsr_transducer.search.hypothesis import Hypothesis
from xlsr_transducer.search.lm.model import LanguageModel


@dataclass(frozen=True)
class ScaledLm:
    """A language model whose log-probs count ``scale`` times.

    As with an n-gram model blank weighs nothing, and sos/eos, which is never emitted, as much as
    unk; where a stream ends costs nothing.
    """

    model: LanguageModel
    scale: float

    @torch.no_grad()
    def start(self, number: int) -> tuple[Tensor, Tensor]:
        """States (M, F) before the first token, and what each token is worth then (M, V)."""
        state = self.model.init_state(1)
        token = torch.full((1,), Tokenizer.sos_id, device=state.device)
        return tuple(x.repeat(number, 1) for x in self.step(state, token))

    def step(self, state: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """States after ``token`` (M,) in ``state`` (M, F), and what each token is worth then."""
        log_probs, state = self.model.step(state, token)
        log_probs[:, Tokenizer.blank_id] = 0
        log_probs[:, Tokenizer.sos_id] = log_probs[:, Tokenizer.unk_id]
        return state, log_probs * self.scale

    @torch.no_grad()
    def rescored(self, hypotheses: Sequence[Hypothesis], norm: int) -> list[Hypothesis]:
        """Returns the same hypotheses with the log-probs of their whole texts, ends included.

        Args:
          norm: added to the number of tokens that the score is divided by.
        """
        if not hypotheses:
            return []
        device = self.model.output.weight.device
        texts = [torch.tensor(h.tokens, dtype=torch.int64) for h in hypotheses]
        tokens = pad_sequence(texts, batch_first=True, padding_value=Tokenizer.unk_id)
        lens = torch.tensor([len(s) for s in texts])
        added = self.model(tokens.to(device), lens.to(device)) * self.scale
        scores = [h.score + x for h, x in zip(hypotheses, added.tolist())]
        return [
            replace(h, score=score, norm_score=score / (len(h.tokens) + norm))
            for h, score in zip(hypotheses, scores)
        ]
