"""The interface that every search offers, offline and streaming alike.

A search object holds options and networks only. What it knows of the streams lies in a state
that goes in and comes out; streams of different ages share a batch, leave it (``select``) and
join it (``cat``) between two calls of ``advance``.

Letters: N streams, T frames of the piece at hand, D encoder width, J joiner width, V tokens,
C context size.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xlsr_transducer.model.heads.ctc import BLANK_ID
from xlsr_transducer.search.history import NEVER
from xlsr_transducer.search.hypothesis import Hypothesis
from xlsr_transducer.search.options import SearchOptions

State = TypeVar("State")

# ``norm_score`` of CTC is per token, with one more for the end.
CTC_NORM = 1


class Search(ABC):
    """Offline: ``init_state``, one ``advance`` over everything, ``results``.

    Streaming: the same with many calls of ``advance``; results do not depend on how the
    frames were cut into pieces, nor on which streams shared the batch.
    """

    def __init__(self, options: SearchOptions, decoder: nn.Module, joiner: nn.Module):
        self.options = options
        self.decoder = decoder
        self.joiner = joiner
        self.ctc_output = None
        self.blank_id: int = decoder.blank_id
        self.context_size: int = decoder.context_size

    @abstractmethod
    def init_state(self, num_streams: int, device: torch.device | str = "cpu") -> Any:
        """Returns the state of ``num_streams`` streams before their first frame."""

    @abstractmethod
    def advance(self, encoder_out: Tensor, encoder_out_lens: Tensor, state: State) -> State:
        """Consumes the next frames of each stream.

        Args:
          encoder_out: (N, T, D) encoder output, not yet projected; T may be 0.
          encoder_out_lens: (N,) int64 frames that count, 0 to T, different per stream.
          state: what ``init_state`` or the last ``advance`` returned; left as it was.
        """

    def rank(self, state: Any) -> tuple[Tensor, Tensor]:
        """Orders the hypotheses of each stream; every search that streams has it.

        Returns:
          (N, M) places in ``state.history``, best first, and their scores, -inf for none.
        """
        raise NotImplementedError(f"{type(self).__name__} does not stream")

    def nbest(self, state: Any, n: int) -> list[list[Hypothesis]]:
        """Returns up to ``n`` hypotheses per stream, best first."""
        which, score = (x[:, :n] for x in self.rank(state))
        return state.history.hypotheses(which, score, self.context_size)

    def tails(self, state: Any) -> list[Hypothesis]:
        """Returns ``results`` without the tokens that have settled: they cost as much after
        hours as after seconds. ``state.history.settled`` has the rest. How many are stable is
        counted."""
        which, score = (x[:, :1] for x in self.rank(state))
        found = state.history.hypotheses(which, score, self.context_size, with_settled=False)
        return [
            dataclasses.replace(best[0], num_stable=count)
            for best, count in zip(found, self.num_stable(state).tolist())
        ]

    def num_stable(self, state: Any) -> Tensor:
        """Returns (N,) how many of the tokens that have not settled no later frame can change."""
        which, score = self.rank(state)
        live = torch.zeros_like(score, dtype=torch.bool).scatter(1, which, score > NEVER)
        return state.history.num_shared(live)

    def results(self, state: Any) -> list[Hypothesis]:
        """Returns the best hypothesis of each stream, at any time: final or so far."""
        return [best[0] for best in self.nbest(state, 1)]

    def select(self, state: State, indexes: Tensor | Sequence[int]) -> State:
        """Returns the state of the streams ``indexes`` alone, in that order."""
        device = self._device()
        return _select(state, torch.as_tensor(indexes, dtype=torch.int64, device=device))

    def cat(self, states: Sequence[State]) -> State:
        """Returns one state for the streams of all ``states``."""
        return _cat(states)

    def put(self, state: State, rows: Tensor, part: State) -> State:
        """Writes the streams of ``part`` (M,) into ``rows`` (M,) of ``state``.

        The tensors of ``state`` change in place: it must be the caller's own, and is replaced by
        what is returned.
        """
        return _put(state, rows, part)

    def _device(self) -> torch.device:
        return next(self.joiner.parameters()).device

    def _first_context(self, num_streams: int, device: torch.device | str) -> Tensor:
        """Returns (N, C) the context before the first token: empty places, then a blank."""
        start = [-1] * (self.context_size - 1) + [self.blank_id]
        return torch.tensor(start, device=device).repeat(num_streams, 1)

    def _frames(self, encoder_out: Tensor, encoder_out_lens: Tensor) -> Tensor:
        """Returns (N, T', D) encoder output up to the longest length T'; checks the shapes."""
        num_streams, num_frames, _ = encoder_out.shape
        if encoder_out_lens.shape != (num_streams,):
            raise ValueError(
                f"{num_streams} streams of encoder output, but lengths of shape "
                f"{tuple(encoder_out_lens.shape)}"
            )
        longest = int(encoder_out_lens.max()) if num_streams else 0
        if longest > num_frames:
            raise ValueError(f"length {longest} exceeds the {num_frames} frames given")
        return encoder_out[:, :longest]

    def _project_encoder(self, encoder_out: Tensor, encoder_out_lens: Tensor) -> Tensor:
        """Returns (N, T', J) encoder side of the joiner, T' the longest length; checks the
        shapes."""
        frames = self._frames(encoder_out, encoder_out_lens)
        return self.joiner.encoder_proj(frames.to(next(self.joiner.parameters()).dtype))

    def _project_context(self, context: Tensor) -> Tensor:
        """Returns (M, J) decoder side of the joiner for contexts (M, C)."""
        return self.joiner.decoder_proj(self.decoder(context, need_pad=False)[:, 0])

    def _renewed(self, decoder_side: Tensor, context: Tensor, fresh: Tensor) -> Tensor:
        """``decoder_side`` (M, J), computed anew from ``context`` (M, C) where ``fresh`` (M,).

        On a CPU only the rows in need are computed (into ``decoder_side``); elsewhere all are,
        as looking for them would make the program wait for the device.
        """
        if decoder_side.device.type != "cpu":
            computed = self._project_context(context).to(decoder_side.dtype)
            return torch.where(fresh.unsqueeze(1), computed, decoder_side)
        rows = fresh.nonzero()[:, 0]
        if len(rows):
            decoder_side[rows] = self._project_context(context[rows]).to(decoder_side.dtype)
        return decoder_side

    def _log_probs(self, encoder_side: Tensor, decoder_side: Tensor) -> Tensor:
        """Returns (*, V) log-probs after blank penalty and temperature, in float32 at least."""
        return self._normalised(self.joiner(encoder_side, decoder_side, project_input=False))

    def _normalised(self, logits: Tensor) -> Tensor:
        """Returns the log-probs of ``logits`` (*, V), which it may change, as ``_log_probs`` has
        them."""
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        if self.options.blank_penalty != 0:
            logits[..., self.blank_id] -= self.options.blank_penalty
        if self.options.temperature != 1:
            logits = logits / self.options.temperature
        return logits.log_softmax(-1)


class CtcSearch(Search):
    """A search over the frames of a CTC head; there is no decoder."""

    def __init__(self, options: SearchOptions, ctc_output: nn.Module):
        """``ctc_output``: from encoder output (*, D) to logits (*, V)."""
        self.options = options
        self.decoder = self.joiner = None
        self.ctc_output = ctc_output
        self.blank_id = BLANK_ID
        self.context_size = CTC_NORM

    def _device(self) -> torch.device:
        return next(self.ctc_output.parameters()).device

    def _log_probs_of(self, frames: Tensor) -> Tensor:
        """Returns the log-probs (N, T, V) of encoder output, after blank penalty and
        temperature."""
        return self._normalised(
            self.ctc_output(frames.to(next(self.ctc_output.parameters()).dtype))
        )


def _select(state: Any, indexes: Tensor) -> Any:
    """Returns the rows ``indexes`` of a tensor, of a tuple, or of all fields of a state."""
    if isinstance(state, Tensor):
        return state[indexes]
    if isinstance(state, tuple):
        return tuple(state[i] for i in indexes.tolist() if state)
    fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    return type(state)(**{name: _select(value, indexes) for name, value in fields.items()})


def _cat(states: Sequence[Any]) -> Any:
    """Returns the rows of all ``states``; histories of unequal width are padded."""
    first = states[0]
    if isinstance(first, Tensor):
        return torch.cat(_equally_wide(states))
    if isinstance(first, tuple):
        return sum(states, ())
    names = [f.name for f in dataclasses.fields(first)]
    return type(first)(**{name: _cat([getattr(s, name) for s in states]) for name in names})


def _put(state: Any, rows: Tensor, part: Any) -> Any:
    """Writes ``part`` into ``rows`` of a state; histories of unequal width are padded."""
    if isinstance(state, Tensor):
        state, part = _equally_wide([state, part])
        return state.index_copy_(0, rows, part)
    if isinstance(state, tuple):
        places = dict(zip(rows.tolist(), part))
        return tuple(places.get(i, value) for i, value in enumerate(state))
    names = [f.name for f in dataclasses.fields(state)]
    written = {name: _put(getattr(state, name), rows, getattr(part, name)) for name in names}
    return type(state)(**written)


def _equally_wide(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns histories (N, B, W) with zeros added up to the widest; other tensors as they are."""
    if tensors[0].dim() != 3:
        return list(tensors)
    width = max(x.shape[2] for x in tensors)
    return [x if x.shape[2] == width else F.pad(x, (0, width - x.shape[2])) for x in tensors]
