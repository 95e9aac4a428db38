"""The few differences between PyTorch 1.13 (the k2 environment) and current PyTorch."""

from __future__ import annotations

import argparse
import contextlib
import pickle
from pathlib import Path
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from xlsr_transducer.errors import UserError

if hasattr(F, "scaled_dot_product_attention"):

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], dropout: float) -> Tensor:
        """softmax(q k' / sqrt(d)) v; ``mask`` is True where a key is seen."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)

else:

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], dropout: float) -> Tensor:
        """softmax(q k' / sqrt(d)) v; ``mask`` is True where a key is seen."""
        scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        weights = F.dropout(scores.softmax(-1), p=dropout, training=dropout > 0.0)
        return torch.matmul(weights, v)


def load_tensors(path: str | Path) -> Any:
    """``torch.load`` that can only make tensors and plain values, on the CPU.

    ``argparse.Namespace`` is let through where PyTorch can (older fairseq files hold one).

    Raises:
      UserError: the file is damaged, or holds objects that would run code when loaded.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        reason = str(e).strip().splitlines()[0][:200]
        raise UserError(
            f"{path}: refused, as it holds more than tensors and plain values, or is damaged "
            f"({reason}); save its state dict alone and load that"
        ) from e
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError) as e:
        reason = (str(e).strip() or type(e).__name__).splitlines()[0][:200]
        raise UserError(
            f"{path}: not a PyTorch file, or truncated ({reason}); copy or make it again"
        ) from e


def shapes_only() -> contextlib.AbstractContextManager:
    """Modules made inside have shapes and no values (where PyTorch can do that)."""
    if torch.__version__.startswith("1."):
        return contextlib.nullcontext()
    return torch.device("meta")
