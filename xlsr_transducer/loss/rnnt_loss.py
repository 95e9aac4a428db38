"""Transducer losses in PyTorch: names, argument order, defaults and results of k2's.

Letters: B utterances, T frames, S symbols, R prune range, V vocabulary.

Arguments that all functions share:

* ``symbols``: (B, S) int64, padded with any valid symbol;
* ``termination_symbol``: blank;
* ``boundary``: (B, 4) int64 [s_begin, t_begin, s_end, t_end] = [0, 0, S_b, T_b] for ordinary
  padded batches, or None: everything counts;
* ``rnnt_type``: ``regular``: any number of symbols per frame; ``modified``: at most one, which
  ends the frame; ``constrained``: likewise, and a symbol is followed by the blank's score;
* ``delay_penalty``: d >= 0 adds d * ((T_b - 1) / 2 - t) to a symbol's score on frame t, so
  that late symbols cost;
* ``reduction``: ``none`` (B,), ``mean`` over utterances, or ``sum``.

An utterance with no path (modified or constrained with more symbols than frames) has loss
infinity and gradient 0. All raise ValueError where shapes do not fit, UserError for an unknown
``rnnt_type`` or ``reduction`` or a negative ``delay_penalty``.

Source: Kuang et al., Pruned RNN-T for fast, memory-efficient ASR training (2022); k2 1.23.4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xlsr_transducer.core.errors import UserError
from xlsr_transducer.loss.lattice import INF, total_scores
from xlsr_transducer.loss.logprobs import gather_logprobs, smoothed_logprobs
from xlsr_transducer.loss.pruning import do_rnnt_pruning, get_rnnt_prune_ranges

__all__ = [
    "do_rnnt_pruning",
    "get_rnnt_prune_ranges",
    "rnnt_loss",
    "rnnt_loss_pruned",
    "rnnt_loss_simple",
    "rnnt_loss_smoothed",
]

RNNT_TYPES = ("regular", "modified", "constrained")

LossAndOccupation = tuple[Tensor, tuple[Tensor, Tensor]]


def rnnt_loss_simple(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str | None = "mean",
    return_grad: bool = False,
) -> Tensor | LossAndOccupation:
    """Returns the loss of the joiner "am + lm". Arguments and result as ``rnnt_loss_smoothed``."""
    return rnnt_loss_smoothed(
        lm, am, symbols, termination_symbol, 0.0, 0.0,
        boundary, rnnt_type, delay_penalty, reduction, return_grad,
    )  # fmt: skip


def rnnt_loss_smoothed(
    lm: Tensor,
    am: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    lm_only_scale: float = 0.1,
    am_only_scale: float = 0.1,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str | None = "mean",
    return_grad: bool = False,
) -> Tensor | LossAndOccupation:
    """Returns the loss of the joiner "am + lm", mixed with lm-only and am-only log-probabilities.

    Args:
      lm: (B, S + 1, V) unnormalised scores from the decoder.
      am: (B, T, V) unnormalised scores from the encoder.
      lm_only_scale, am_only_scale: weights of the two; the rest is the joiner's.
      return_grad: also return the occupations, for ``get_rnnt_prune_ranges``.

    Returns:
      the loss; with ``return_grad``: (loss, (px_grad, py_grad)), where px_grad (B, S, T + 1) for
      regular, else (B, S, T), and py_grad (B, S + 1, T) are the probabilities that the alignment
      emits symbol s, or blank, on frame t.
    """
    B, T, V = am.shape
    S = lm.shape[1] - 1
    if lm.shape != (B, S + 1, V):
        raise ValueError(f"am is {tuple(am.shape)} but lm {tuple(lm.shape)}")
    _check(symbols, boundary, rnnt_type, delay_penalty, (B, T, S))
    px, py = smoothed_logprobs(lm, am, symbols, termination_symbol, lm_only_scale, am_only_scale)
    scores, occupation = _scores(px, py, boundary, rnnt_type, delay_penalty, return_grad)
    loss = _reduce(scores, reduction)
    return (loss, occupation) if return_grad else loss


def rnnt_loss_pruned(
    logits: Tensor,
    symbols: Tensor,
    ranges: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str | None = "mean",
) -> Tensor:
    """Returns the loss over the alignments that stay within ``ranges``.

    Args:
      logits: (B, T, R, V) of the joiner on what ``do_rnnt_pruning`` returned, not normalised.
      ranges: (B, T, R) int64, of ``get_rnnt_prune_ranges``.
    """
    B, T, R, _ = logits.shape
    if ranges.shape != (B, T, R):
        raise ValueError(f"logits are {tuple(logits.shape)} but ranges {tuple(ranges.shape)}")
    S = symbols.shape[-1]
    _check(symbols, boundary, rnnt_type, delay_penalty, (B, T, S))
    # At position S there is nothing left to emit: any symbol will do, its px is not used.
    with_end = torch.cat((symbols, symbols.new_full((B, 1), termination_symbol)), 1)
    targets = with_end.unsqueeze(1).expand(B, T, S + 1).gather(2, ranges)
    px, py = gather_logprobs(logits, targets, termination_symbol)
    pruned_away = px.new_full((B, T, S + 1), -INF)
    px = pruned_away.scatter(2, ranges, px)[:, :, :S].transpose(1, 2)
    py = pruned_away.scatter(2, ranges, py).transpose(1, 2)
    return _reduce(_scores(px, py, boundary, rnnt_type, delay_penalty)[0], reduction)


def rnnt_loss(
    logits: Tensor,
    symbols: Tensor,
    termination_symbol: int,
    boundary: Tensor | None = None,
    rnnt_type: str = "regular",
    delay_penalty: float = 0.0,
    reduction: str | None = "mean",
) -> Tensor:
    """Returns the loss over all alignments, from logits (B, T, S + 1, V), not normalised."""
    B, T, S1, _ = logits.shape
    S = symbols.shape[-1]
    _check(symbols, boundary, rnnt_type, delay_penalty, (B, T, S))
    if S1 != S + 1:
        raise ValueError(f"logits are {tuple(logits.shape)} but symbols {tuple(symbols.shape)}")
    with_end = torch.cat((symbols, symbols.new_full((B, 1), termination_symbol)), 1)
    px, py = gather_logprobs(logits, with_end.unsqueeze(1).expand(B, T, S1), termination_symbol)
    px, py = px[:, :, :S].transpose(1, 2), py.transpose(1, 2)
    return _reduce(_scores(px, py, boundary, rnnt_type, delay_penalty)[0], reduction)


def _scores(px, py, boundary, rnnt_type, delay_penalty, return_grad=False):
    """Log-probability (B,) of the symbols, and (px_grad, py_grad) or (None, None)."""
    if rnnt_type == "constrained":
        px = px + py[:, 1:]
    if delay_penalty:
        px = px + _delay_penalty(px, boundary, delay_penalty)
    skew = int(rnnt_type == "regular")
    scores, px_grad, py_grad = total_scores(px, py, boundary, skew, return_grad)
    if return_grad and skew:  # k2's px of the regular topology has a frame past the last
        px_grad = torch.nn.functional.pad(px_grad, (0, 1))
    return scores, (px_grad, py_grad)


def _delay_penalty(px: Tensor, boundary: Tensor | None, delay_penalty: float) -> Tensor:
    """Returns what frame t adds to a symbol's score, (B or 1, 1, T).

    With a boundary in float32 even for float64 scores, to give k2's numbers.
    """
    T = px.shape[2]
    if boundary is None:
        middle = torch.full((1,), (T - 1) / 2, dtype=px.dtype, device=px.device)
    else:
        middle = (boundary[:, 3].float() - 1) / 2
    penalty = (middle.unsqueeze(1) - torch.arange(T, device=px.device)) * delay_penalty
    return penalty.unsqueeze(1).to(px.dtype)


def _reduce(scores: Tensor, reduction: str | None) -> Tensor:
    if reduction == "none":
        return -scores
    if reduction == "mean":
        return -scores.mean()
    if reduction == "sum":
        return -scores.sum()
    raise UserError(f"unknown reduction {reduction!r}: choose none, mean or sum")


def _check(symbols, boundary, rnnt_type, delay_penalty, sizes) -> None:
    B, T, S = sizes
    if rnnt_type not in RNNT_TYPES:
        raise UserError(f"unknown rnnt_type {rnnt_type!r}: choose {', '.join(RNNT_TYPES)}")
    if delay_penalty < 0.0:
        raise UserError(f"delay_penalty is {delay_penalty}, must not be negative")
    if symbols.shape != (B, S):
        raise ValueError(f"symbols are {tuple(symbols.shape)}, must be {(B, S)}")
    if boundary is None:
        return
    if boundary.shape != (B, 4):
        raise ValueError(f"boundary is {tuple(boundary.shape)}, must be {(B, 4)}")
    if boundary.device.type == "cpu":  # elsewhere looking at values would wait for the device
        s_begin, t_begin, s_end, t_end = boundary.unbind(1)
        ordered = (0 <= s_begin) & (s_begin <= s_end) & (s_end <= S)
        ordered &= (0 <= t_begin) & (t_begin <= t_end) & (t_end <= T)
        if not bool(ordered.all()):
            b = int((~ordered).nonzero()[0])
            raise ValueError(
                f"boundary of utterance {b} is {boundary[b].tolist()}: must be [s_begin, t_begin, "
                f"s_end, t_end] with 0 <= s_begin <= s_end <= {S}, 0 <= t_begin <= t_end <= {T}"
            )
