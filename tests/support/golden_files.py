"""Finds the golden files (k2's own results, see golden/README.md) by their manifest.

Tests ask for cases and keys and compare; nothing here or there knows particular values, so the
files can be replaced by others of the same layout.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN_DIR = Path(__file__).resolve().parents[1] / "golden"


@cache
def manifest() -> dict:
    """The whole manifest: ``loss``, ``decode``, ``loss_infeasible``, ``ctc``, ``ctc_prefix``."""
    return json.loads((GOLDEN_DIR / "manifest.json").read_text(encoding="utf-8"))


@cache
def arrays(file: str) -> dict[str, np.ndarray]:
    """All arrays of one file, by key; do not write to them."""
    with np.load(GOLDEN_DIR / file, allow_pickle=False) as z:
        return {k: z[k] for k in z.files}


def loss_cases() -> list[str]:
    return sorted(manifest()["loss"])


def decode_cases() -> list[str]:
    return sorted(manifest()["decode"])


def loss_case(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Manifest entry and arrays of a loss case."""
    entry = manifest()["loss"][name]
    return entry, arrays(entry["file"])


def decode_case(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Manifest entry and arrays of a decoding case."""
    entry = manifest()["decode"][name]
    return entry, arrays(entry["file"])


def ctc_prefix_cases() -> list[str]:
    return manifest()["ctc_prefix"]["cases"]


def tensor(array: np.ndarray, dtype: torch.dtype | None = None) -> Tensor:
    """A copy as a tensor, optionally of another dtype."""
    t = torch.from_numpy(np.array(array))
    return t if dtype is None else t.to(dtype)
