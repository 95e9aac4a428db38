"""Log-probabilities of symbols and blank, ``px`` and ``py``, from scores over the vocabulary.

Letters: B utterances, T frames, S symbols, R prune range, V vocabulary, N rows of logits.

Everything with a vocabulary dimension happens here, so memory is decided here: the smoothed
loss works on am (B, T, V) and lm (B, S + 1, V), and the normaliser of the logits makes no other
tensor of their size than their gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of logits handled at a time: on a CPU what stays in its cache.
CHUNK_ELEMENTS = {"cpu": 2**17, "cuda": 2**26}


def smoothed_logprobs(
    lm: Tensor, am: Tensor, symbols: Tensor, blank: int, lm_only_scale: float, am_only_scale: float
) -> tuple[Tensor, Tensor]:
    """``px`` (B, S, T) and ``py`` (B, S + 1, T) of the joiner "am + lm", interpolated.

    The distribution at (s, t) is ``softmax(am[t] + lm[s])``, whose normaliser is a product of
    exponentials and so one matrix product. With scales above 0 the log-probabilities are mixed
    with those of ``softmax(lm[s])`` and of ``softmax(am[t] + log unigram)``, where the unigram
    is the mean of ``softmax(lm)`` over all (b, s), padding included, as in k2.

    Source: Kuang et al., Pruned RNN-T for fast, memory-efficient ASR training (2022), section 3.

    Args:
      lm: (B, S + 1, V); am: (B, T, V); symbols: (B, S) int64.
    """
    tiny = torch.finfo(am.dtype).tiny
    # The maxima cancel out, in the gradient too: they only keep exp() in range.
    am_max = am.detach().amax(2, keepdim=True)
    lm_max = lm.detach().amax(2, keepdim=True)
    am_exp = (am - am_max).exp()
    lm_exp = (lm - lm_max).exp()
    norm = (torch.matmul(lm_exp, am_exp.transpose(1, 2)) + tiny).log()
    norm = norm + lm_max + am_max.transpose(1, 2)

    S = symbols.shape[1]
    index = symbols.unsqueeze(1).expand(-1, am.shape[1], -1)
    px_am = am.gather(2, index).transpose(1, 2)
    px_lm = lm[:, :S].gather(2, symbols.unsqueeze(2))
    py_am = am[:, :, blank].unsqueeze(1)
    py_lm = lm[:, :, blank].unsqueeze(2)
    combined_scale = 1.0 - lm_only_scale - am_only_scale
    px = (px_am + px_lm - norm[:, :S]) * combined_scale
    py = (py_am + py_lm - norm) * combined_scale
    if lm_only_scale == 0.0 and am_only_scale == 0.0:
        return px, py

    lm_sum = lm_exp.sum(2, keepdim=True)
    if lm_only_scale != 0.0:
        lm_norm = lm_sum.log() + lm_max
        px = px + (px_lm - lm_norm[:, :S]) * lm_only_scale
        py = py + (py_lm - lm_norm) * lm_only_scale
    if am_only_scale != 0.0:
        unigram = (lm_exp / lm_sum).mean((0, 1)) + tiny
        am_norm = (torch.matmul(am_exp, unigram).log() + am_max.squeeze(2)).unsqueeze(1)
        log_unigram = unigram.log()
        px = px + (px_am + log_unigram[symbols].unsqueeze(2) - am_norm) * am_only_scale
        py = py + (py_am + log_unigram[blank] - am_norm) * am_only_scale
    return px, py


def gather_logprobs(logits: Tensor, symbols: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """Returns the entries ``symbols`` and ``blank`` of ``log_softmax(logits, -1)``.

    Args:
      logits: (*, V).
      symbols: (*) int64.

    Returns:
      two tensors (*).
    """
    rows = logits.reshape(-1, logits.shape[-1])
    px, py = _GatherLogProbs.apply(rows, symbols.reshape(-1), blank)
    return px.view(symbols.shape), py.view(symbols.shape)


class _GatherLogProbs(torch.autograd.Function):
    """Chunk by chunk, so that neither pass makes a temporary of the size of the logits."""

    @staticmethod
    def forward(ctx, logits, symbols, blank):
        norm = logits.new_empty(logits.shape[0])
        for part in _chunks(logits):
            norm[part] = torch.logsumexp(logits[part], 1)
        ctx.save_for_backward(logits, symbols, norm)
        ctx.blank = blank
        px = logits.gather(1, symbols.unsqueeze(1)).squeeze(1) - norm
        return px, logits[:, blank] - norm

    @staticmethod
    @once_differentiable
    def backward(ctx, px_grad, py_grad):
        logits, symbols, norm = ctx.saved_tensors
        grad = torch.empty_like(logits)
        weight = -(px_grad + py_grad).unsqueeze(1)
        for part in _chunks(logits):
            rows = grad[part]
            torch.sub(logits[part], norm[part].unsqueeze(1), out=rows)
            rows.exp_().mul_(weight[part])
            rows.scatter_add_(1, symbols[part].unsqueeze(1), px_grad[part].unsqueeze(1))
        grad[:, ctx.blank] += py_grad
        return grad, None, None


def _chunks(rows: Tensor) -> list[slice]:
    """Returns the slices of rows (N, V) of about CHUNK_ELEMENTS each."""
    N, V = rows.shape
    limit = CHUNK_ELEMENTS.get(rows.device.type, CHUNK_ELEMENTS["cuda"])
    step = max(1, limit // max(1, V))
    return [slice(i, min(i + step, N)) for i in range(0, N, step)]
