"""Transducer losses under k2's names, by k2 itself or by the project's own PyTorch code."""

from xlsr_transducer.loss.backend import BACKENDS, LossBackend, get_backend

__all__ = ["BACKENDS", "LossBackend", "get_backend"]
