"""A language model of the BPE tokens: an LSTM whose state goes in and out.

Ids are the tokenizer's. A sentence begins after sos/eos and ends in it; a blank is never emitted.

Letters: N sentences, S tokens, M states computed together, V vocabulary, H width of the LSTM,
F = 2 * layers * H numbers of a state.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlsr_transducer.core.options import Options, option
from xlsr_transducer.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class LmOptions(Options):
    """Language model."""

    embedding_dim: int = option(256, "width of the token embeddings", at_least=1, at_most=65536)
    hidden_dim: int = option(512, "width of the LSTM", at_least=1, at_most=65536)
    num_layers: int = option(2, "layers of the LSTM", at_least=1, at_most=64)
    dropout: float = option(
        0.2, "share of activations dropped around each layer", at_least=0, below=1
    )


class LanguageModel(nn.Module):
    """Embedding, LSTM, output layer."""

    def __init__(self, vocab_size: int, options: LmOptions):
        super().__init__()
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size, options.embedding_dim)
        between = options.dropout if options.num_layers > 1 else 0.0
        self.lstm = nn.LSTM(
            options.embedding_dim,
            options.hidden_dim,
            options.num_layers,
            batch_first=True,
            dropout=between,
        )
        self.dropout = nn.Dropout(options.dropout)
        self.output = nn.Linear(options.hidden_dim, vocab_size)

    def forward(self, tokens: Tensor, token_lens: Tensor) -> Tensor:
        """Returns the log-probs of whole sentences, their ends included, in nats (N,).

        Args:
          tokens: (N, S) int64, anything that is a token beyond token_lens; token_lens: (N,).
        """
        given = F.pad(tokens, (1, 0), value=Tokenizer.sos_id)
        out, _ = self.lstm(self.dropout(self.embedding(given)))
        position = torch.arange(given.shape[1], device=given.device)
        lens = token_lens.unsqueeze(1)
        following = F.pad(tokens, (0, 1), value=Tokenizer.sos_id)
        following = following.masked_fill(position == lens, Tokenizer.sos_id)
        log_probs = self._log_probs(self.dropout(out)).gather(2, following.unsqueeze(2))[..., 0]
        return log_probs.masked_fill(position > lens, 0).sum(1)

    def init_state(self, num_states: int) -> Tensor:
        """Returns (M, F) states before any token, also before the sos/eos of the beginning."""
        width = 2 * self.lstm.num_layers * self.lstm.hidden_size
        return self.output.weight.new_zeros(num_states, width)

    def step(self, state: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log-probs (M, V) after ``token`` (M,) in ``state`` (M, F), and the new state.

        The log-prob of blank is -inf. There is no dropout: this is not for training.
        """
        shape = (-1, 2, self.lstm.num_layers, self.lstm.hidden_size)
        h, c = state.view(shape).unbind(1)
        x = self.embedding(token)
        new: tuple[list[Tensor], list[Tensor]] = ([], [])
        # For one step nn.LSTM takes two to three times as long on a CPU.
        for layer, weights in enumerate(self.lstm.all_weights):
            x, cell = torch.lstm_cell(x, (h[:, layer], c[:, layer]), *weights)
            new[0].append(x)
            new[1].append(cell)
        return self._log_probs(x), torch.cat([*new[0], *new[1]], 1)

    def _log_probs(self, out: Tensor) -> Tensor:
        logits = self.output(out).float()
        is_blank = torch.arange(self.vocab_size, device=out.device) == Tokenizer.blank_id
        return logits.masked_fill(is_blank, -float("inf")).log_softmax(-1)
