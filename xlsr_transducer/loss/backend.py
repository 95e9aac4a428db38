"""The code that computes the transducer losses: k2, or this package's own PyTorch functions.

Both offer the same functions with the same argument order, defaults, values and gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from xlsr_transducer.core.compat import import_k2
from xlsr_transducer.core.errors import UserError
from xlsr_transducer.loss import rnnt_loss

BACKENDS = ("auto", "k2", "torch")


@dataclass(frozen=True)
class LossBackend:
    """k2's loss functions from one source; signatures as in ``loss/rnnt_loss.py``."""

    name: str
    rnnt_loss_simple: Callable
    rnnt_loss_smoothed: Callable
    get_rnnt_prune_ranges: Callable
    do_rnnt_pruning: Callable
    rnnt_loss_pruned: Callable
    rnnt_loss: Callable


# Cached, as every training step asks twice, and a k2 that fails to import is slow to fail.
@functools.cache
def get_backend(name: str = "auto") -> LossBackend:
    """Returns the loss functions to use.

    Args:
      name: ``k2``, ``torch``, or ``auto``: k2 where it imports, otherwise torch.

    Raises:
      UserError: the name is unknown, or k2 was asked for and does not import.
    """
    if name not in BACKENDS:
        raise UserError(f"unknown loss backend {name!r}: choose one of {', '.join(BACKENDS)}")
    if name == "torch":
        return _collect("torch", rnnt_loss)
    try:
        k2 = import_k2("--loss-backend k2")
    except UserError as e:
        if name == "auto":
            return _collect("torch", rnnt_loss)
        raise UserError(f"{e}, or use --loss-backend torch") from e
    return _collect("k2", k2)


def _collect(name: str, module: ModuleType) -> LossBackend:
    functions = [f for f in LossBackend.__dataclass_fields__ if f != "name"]
    return LossBackend(name=name, **{f: getattr(module, f) for f in functions})
